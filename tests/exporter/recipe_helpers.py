"""What recipes make of a toy model's weights, and the float weights that it stands for."""

from __future__ import annotations

import numpy as np

from exporter.layer_walk import head_table
from exporter.progress import Progress
from exporter.quantization.calibration import calibration_tokens
from exporter.quantization.preparation import prepare_weights
from exporter.quantization.recipes import plan_recipes
from exporter.weights import read_weight

QUIET = Progress(quiet=True)


def made(recipe):
    """Every tensor of a recipe by name, in the shape that it is to have."""
    arrays = recipe.make()
    found = {}
    for tensor in recipe.tensors:
        size, parts = int(np.prod(tensor.shape)), []
        while sum(part.size for part in parts) < size:
            part = next(arrays)
            assert part.dtype == tensor.dtype, tensor.name
            parts.append(part.reshape(-1))
        found[tensor.name] = np.concatenate(parts).reshape(tensor.shape)
    assert next(arrays, None) is None
    return found


class EveryName:
    """A set that holds every name but those that begin in a given way."""

    def __init__(self, *but):
        self._but = but

    def __contains__(self, name):
        return not name.startswith(self._but)


def stored_values(config, source, schemes):
    """All that exports of the given schemes, calibrated with random tokens, may store, by name."""
    tokens = calibration_tokens(None, None, config) if any(s.quantized for s in schemes) else None
    prepared, activations = prepare_weights(config, source, schemes, tokens, QUIET)
    int8_tables = any(scheme.tables == "int8" for scheme in schemes)
    table = head_table(config)
    but = () if int8_tables else (f"{table}.int8", f"{table}.input", f"{table}.factors")
    recipes = plan_recipes(config, prepared, EveryName(*but), activations)
    return {name: value for recipe in recipes for name, value in made(recipe).items()}


def unpack(packed):
    """Two numbers of 0 to 15 for each byte, the lower half first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def dequantized_blocks(values, name):
    """The matrix [outputs, inputs] that int4 tensors stand for."""
    scales = values[f"{name}.int4.scales"]
    outputs, blocks = scales.shape
    codes = unpack(values[f"{name}.int4"]).astype(np.float32)
    zeros = unpack(values[f"{name}.int4.zero_points"])[:, :blocks].astype(np.float32)
    return ((codes - zeros[..., None]) * scales[..., None]).reshape(outputs, -1)


def read_all(source):
    """Every weight of a source by name."""
    return {name: read_weight(source, name) for name in source.shapes}
