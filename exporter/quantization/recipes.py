"""What the weights file holds and how each tensor is made, one weight of the model at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from exporter.checkpoints.transposition import transpose_into
from exporter.errors import ExportError
from exporter.quantization.activations import ActivationStatistics
from exporter.quantization.int4 import quantize_blocks
from exporter.quantization.int8 import quantize_columns, quantize_row_blocks, quantize_rows
from exporter.quantization.smoothing import activation_scale
from exporter.weight_names import HEAD_TABLE, TOKEN_TABLE
from exporter.weights import WeightSource, read_weight
from graphs.contract import ModelConfig
from graphs.quantization import (
    HALVES,
    BlockMatrix,
    Int8Lookup,
    Int8Matrix,
    Scheme,
    StoredTensor,
    block_size,
    half_weight,
    head_factors,
    is_layer_matrix,
    is_position_table,
    takes_blocks,
)

OUTPUT_CHUNK = 1024  # output channels of a matrix that are transposed at a time


@dataclass(frozen=True)
class Recipe:
    """Tensors that are made together from one weight.

    Attributes:
        tensors: in the order in which they are stored.
        make: gives their values in that order; a tensor may come in several arrays, one after another.
    """

    tensors: tuple[StoredTensor, ...]
    make: Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Activations:
    """What calibration found out; empty for weights that are stored as they are.

    Attributes:
        statistics: of every dense layer's input before smoothing.
        factors: what smoothing divides the inputs by, where it does.
    """

    statistics: Mapping[str, ActivationStatistics]
    factors: Mapping[str, np.ndarray]

    def scale(self, weight: str) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of the input that a weight is multiplied with."""
        return activation_scale(self.statistics[weight], self.factors.get(weight))

    def importance(self, weight: str) -> np.ndarray | None:
        """Mean square of each channel of that input, after smoothing; `None` if it was not observed."""
        if weight not in self.statistics:
            return None
        return self.statistics[weight].mean_square / self.factors.get(weight, np.float32(1)) ** 2


UNQUANTIZED = Activations({}, {})


def scheme_tensors(source: WeightSource, schemes: Collection[Scheme]) -> set[str]:
    """What graphs of these schemes need, told before there are graphs: names for `plan_recipes`."""
    quantized = any(scheme.quantized for scheme in schemes)
    names = set()
    for weight in source.shapes:
        for scheme in schemes:
            storage: str = scheme.floats
            if is_layer_matrix(weight):
                storage = scheme.layers
                if storage not in HALVES and scheme.floats in HALVES:
                    storage = f"{storage}.{scheme.floats}"
            elif weight in (TOKEN_TABLE, HEAD_TABLE):
                storage = scheme.tables
            elif quantized and is_position_table(weight):
                storage = "fp16"
            suffix = "" if storage == "fp32" else f".{storage}"
            names |= {weight + suffix, f"{weight}{suffix}.rows"}
    return names


def plan_recipes(
    config: ModelConfig,
    source: WeightSource,
    needed: set[str],
    activations: Activations = UNQUANTIZED,
) -> list[Recipe]:
    """How to make the tensors that the graphs need, in the order of the model's weights.

    Args:
        config: sizes and switches of the model.
        source: its weights, smoothed where `activations` says so.
        needed: names of the graphs' weights.
        activations: what calibration found out.
    """
    recipes = []
    for weight in source.shapes:
        for recipe in _of_weight(config, source, weight, activations):
            if any(tensor.name in needed for tensor in recipe.tensors):
                recipes.append(recipe)
    return recipes


def _of_weight(
    config: ModelConfig, source: WeightSource, weight: str, activations: Activations
) -> Iterator[Recipe]:
    """Every way in which a weight may be stored."""
    shape = source.shapes[weight]
    yield Recipe((StoredTensor(weight, "float32", shape),), lambda: _contiguous(source.blocks(weight)))
    for storage in HALVES:
        yield _half(source, weight, storage)
    if is_layer_matrix(weight):
        yield _int8_matrix(source, weight, activations)
        if takes_blocks(config):
            yield _int4_matrix(config, source, weight, activations, "fp32")
            yield _int4_matrix(config, source, weight, activations, "fp16")
            yield _int8_blocks(config, source, weight)
    elif weight in (TOKEN_TABLE, HEAD_TABLE):
        yield _int8_table(config, source, weight, activations)
        if takes_blocks(config):
            yield _int4_table(config, source, weight, activations)


def _contiguous(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(block, np.float32) for block in blocks)


def _int8_matrix(source: WeightSource, weight: str, activations: Activations) -> Recipe:
    matrix = Int8Matrix.of(weight, source.shapes[weight])

    def make() -> Iterator[np.ndarray]:
        codes, scales = quantize_columns(read_weight(source, weight))
        yield codes
        yield scales
        yield from _input_scale(weight, activations)

    return Recipe((matrix.codes, matrix.scales, matrix.input_scale, matrix.input_zero_point), make)


def _input_scale(weight: str, activations: Activations) -> Iterator[np.ndarray]:
    scale, zero_point = activations.scale(weight)
    yield np.array(scale, np.float32)
    yield np.array(zero_point, np.uint8)


def _int8_table(
    config: ModelConfig, source: WeightSource, weight: str, activations: Activations
) -> Recipe:
    """A head with its input's scale, a table of rows to look up, or both in one."""
    is_head = config.tied_head or weight != TOKEN_TABLE
    matrix = Int8Matrix.of(weight, source.shapes[weight], outputs_axis=0)
    lookup = Int8Lookup.of(weight, config)
    tensors = [matrix.codes, matrix.scales] if is_head else [lookup.codes, lookup.scales]
    if is_head:
        factors = head_factors(weight, config.embedding_width)
        tensors += [matrix.input_scale, matrix.input_zero_point, factors]

    def make() -> Iterator[np.ndarray]:
        scales = []
        for block in source.blocks(weight):
            codes, found = quantize_rows(block)
            scales.append(found)
            yield codes
        yield np.concatenate(scales)
        if is_head:
            yield from _input_scale(weight, activations)
            yield 1 / activations.factors[weight]

    return Recipe(tuple(tensors), make)


def _half(source: WeightSource, weight: str, storage: str) -> Recipe:
    """A weight in floats of 16 bits, a layer's matrix transposed."""
    tensor = half_weight(weight, source.shapes[weight], storage)

    def make() -> Iterator[np.ndarray]:
        matrix = is_layer_matrix(weight)
        for rows in _transposed_rows(source, weight) if matrix else source.blocks(weight):
            yield _narrow(rows, weight, storage)

    return Recipe((tensor,), make)


def _narrow(block: np.ndarray, weight: str, storage: str) -> np.ndarray:
    """The nearest numbers of 16 bits.

    Raises:
        ExportError: if a number is too large for them.
    """
    dtype = np.dtype(ml_dtypes.bfloat16 if storage == "bf16" else np.float16)
    with np.errstate(over="ignore"):
        narrow = block.astype(dtype)
    if not np.isfinite(narrow).all():
        raise ExportError(
            f"{weight} has the number {np.abs(block).max():g}, more than {HALVES[storage]} holds; "
            "export the model with --precision bf16, which holds what fp32 does, or for another target"
        )
    return narrow


def _transposed_rows(source: WeightSource, weight: str) -> Iterator[np.ndarray]:
    """A kernel's columns as rows, a few at a time."""
    kernel = read_weight(source, weight)
    for start in range(0, kernel.shape[1], OUTPUT_CHUNK):
        columns = kernel[:, start : start + OUTPUT_CHUNK]
        chunk = np.empty(columns.shape[::-1], np.float32)
        transpose_into(columns, chunk)
        yield chunk


def _int8_blocks(config: ModelConfig, source: WeightSource, weight: str) -> Recipe:
    inputs, outputs = source.shapes[weight]
    size = block_size(config)
    matrix = BlockMatrix.of(weight, outputs, inputs, size, 8, "fp16")

    def make() -> Iterator[np.ndarray]:
        scales = []
        for rows in _transposed_rows(source, weight):
            codes, found = quantize_row_blocks(rows, size)
            scales.append(_narrow(found, weight, "fp16"))
            yield codes
        yield np.concatenate(scales)

    return Recipe((matrix.codes, matrix.scales), make)


def _int4_matrix(
    config: ModelConfig, source: WeightSource, weight: str, activations: Activations, floats: str
) -> Recipe:
    inputs, outputs = source.shapes[weight]
    matrix = BlockMatrix.of(weight, outputs, inputs, block_size(config), 4, floats)
    importance = activations.importance(weight)
    return _int4_recipe(weight, matrix, lambda: _transposed_rows(source, weight), importance)


def _int4_table(
    config: ModelConfig, source: WeightSource, weight: str, activations: Activations
) -> Recipe:
    outputs, inputs = source.shapes[weight]
    matrix = BlockMatrix.of(weight, outputs, inputs, block_size(config))
    return _int4_recipe(weight, matrix, lambda: source.blocks(weight), activations.importance(weight))


def _int4_recipe(
    weight: str,
    matrix: BlockMatrix,
    rows: Callable[[], Iterator[np.ndarray]],
    importance: np.ndarray | None,
) -> Recipe:
    assert matrix.zero_points is not None

    def make() -> Iterator[np.ndarray]:
        scales, zero_points = [], []
        for block in rows():
            found = quantize_blocks(block, matrix.block_size, importance)
            assert found.zero_points is not None
            narrow = matrix.scales.dtype == HALVES["fp16"]
            scales.append(_narrow(found.scales, weight, "fp16") if narrow else found.scales)
            zero_points.append(found.zero_points)
            yield found.codes
        yield np.concatenate(scales)
        yield np.concatenate(zero_points)

    return Recipe((matrix.codes, matrix.scales, matrix.zero_points), make)
