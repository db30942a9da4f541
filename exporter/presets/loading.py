"""Builds the Keras objects of a preset: the work behind every `from_preset`."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from exporter.errors import PresetError
from exporter.opt.backbone import OPTBackbone
from exporter.opt.causal_lm import CausalLM, OPTCausalLM
from exporter.opt.keras_backend import keras
from exporter.opt.preprocessor import OPTCausalLMPreprocessor
from exporter.opt.tokenizer import OPTTokenizer
from exporter.presets.adapted import merged, open_preset
from exporter.presets.folder import PresetFolder, TextFolder, read_text_folder
from exporter.presets.handles import resolve_preset
from exporter.weights import CheckpointWeights, WeightSource, read_weight

_LOGGER = logging.getLogger(__name__)
_NOT_GIVEN = object()
_MODEL_OPTIONS = ("name", "trainable", "compile")


def load_backbone(
    cls: type[OPTBackbone], preset: str | Path, *, load_weights: bool = True, **overrides: Any
) -> OPTBackbone:
    """The backbone of a preset; `overrides` replace values of its configuration."""
    folder = open_preset(preset, weights=load_weights)
    return _build_backbone(cls, folder, load_weights, {**folder.model_options, **overrides})


def load_tokenizer(cls: type[OPTTokenizer], preset: str | Path, **overrides: Any) -> OPTTokenizer:
    """The tokenizer of a preset, which may have been saved alone."""
    return _build_tokenizer(cls, read_text_folder(resolve_preset(preset, weights=False)), overrides)


def load_preprocessor(
    cls: type[OPTCausalLMPreprocessor], preset: str | Path, **overrides: Any
) -> OPTCausalLMPreprocessor:
    """The preprocessor of a preset; `overrides` replace values of its configuration."""
    folder = read_text_folder(resolve_preset(preset, weights=False))
    return _build_preprocessor(cls, folder, overrides)


def load_causal_lm(
    cls: type[CausalLM],
    preset: str | Path,
    *,
    load_weights: bool = True,
    preprocessor: Any = _NOT_GIVEN,
    **overrides: Any,
) -> CausalLM:
    """The language model of a preset. OPT is the only architecture, so `CausalLM` means it.

    `name`, `trainable` and `compile` go to the language model, other overrides to the backbone.
    """
    task = OPTCausalLM if cls is CausalLM else cls
    assert issubclass(task, OPTCausalLM)
    folder = open_preset(preset, weights=load_weights)
    if preprocessor is _NOT_GIVEN:
        has_tokenizer = folder.tokenizer_files is not None
        preprocessor = (
            _build_preprocessor(OPTCausalLMPreprocessor, folder, {}) if has_tokenizer else None
        )
    options = {name: overrides.pop(name) for name in _MODEL_OPTIONS if name in overrides}
    options["end_token_ids"] = folder.generation.end_token_ids
    options["default_options"] = folder.generation.writing.options or None
    arguments = {**folder.model_options, **overrides}
    backbone = _build_backbone(OPTBackbone, folder, load_weights, arguments)
    return task(backbone=backbone, preprocessor=preprocessor, **options)


def _assign_weights(backbone: OPTBackbone, source: WeightSource) -> None:
    """Reads weights into a backbone, one tensor at a time; it may have fewer layers than there are."""
    variables = {variable.path: variable for variable in backbone.variables}
    for name in source.shapes:
        if name in variables:
            variables[name].assign(read_weight(source, name))


def _build_backbone(
    cls: type[OPTBackbone], folder: PresetFolder, load_weights: bool, overrides: dict[str, Any]
) -> OPTBackbone:
    arguments = {"dropout": folder.dropout, "dtype": None, **overrides}
    if arguments["dtype"] is None:  # Keras's own, whatever the preset was saved in, as in keras-hub
        policy = keras.config.dtype_policy().name
        if folder.format == "keras" and policy != folder.dtype:  # of others the files know it
            _LOGGER.info("weights saved as %s are loaded as %s, Keras's policy", folder.dtype, policy)
    if not load_weights:
        return cls.from_sizes(folder.config, **arguments)
    _check_sizes(folder, overrides)
    # The files first: sizes that they do not have are refused before a model of them is made.
    base = CheckpointWeights(folder)
    with contextlib.closing(merged(base, folder)) as source:
        backbone = cls.from_sizes(folder.config, **arguments)
        _assign_weights(backbone, source)
        backbone.padding_positions = base.padding_positions()
    return backbone


def _check_sizes(folder: PresetFolder, overrides: dict[str, Any]) -> None:
    """Weights are of the model that they were trained as; only layers may be left off at the end."""
    sizes = folder.config.to_dict()
    others = {
        name: value for name, value in overrides.items() if name in sizes and value != sizes[name]
    }
    if type(layers := others.get("num_layers")) is int and 0 < layers < folder.config.num_layers:
        del others["num_layers"]
    if others:
        asked = ", ".join(f"{name}={value!r:.80}" for name, value in others.items())
        found = ", ".join(f"{name}={sizes[name]!r}" for name in others)
        raise ValueError(
            f"the weights of {folder.folder} are of a model with {found}, not {asked}; leave that out, "
            "or give load_weights=False for a model with random weights"
        )


def _build_tokenizer(
    cls: type[OPTTokenizer], folder: TextFolder, overrides: dict[str, Any]
) -> OPTTokenizer:
    if folder.tokenizer_files is None:
        raise PresetError(f"{folder.folder} has no tokenizer files; make an OPTTokenizer by hand")
    return cls.from_files(folder.tokenizer_files, **{**folder.tokenizer_options, **overrides})


def _build_preprocessor(
    cls: type[OPTCausalLMPreprocessor], folder: TextFolder, overrides: dict[str, Any]
) -> OPTCausalLMPreprocessor:
    arguments = {
        "sequence_length": folder.sequence_length,
        "add_start_token": folder.add_start_token,
        "add_end_token": folder.add_end_token,
        **overrides,
    }
    if "tokenizer" not in arguments:
        arguments["tokenizer"] = _build_tokenizer(OPTTokenizer, folder, {})
    return cls(**arguments)
