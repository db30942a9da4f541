"""Writes preset folders in the format that keras-hub reads: the work behind every `save_to_preset`."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from exporter.checkpoints.formats import KERAS_PRESET
from exporter.checkpoints.writers import WRITTEN_FILES
from exporter.opt.backbone import OPTBackbone
from exporter.opt.causal_lm import CausalLM
from exporter.opt.keras_backend import keras
from exporter.opt.preprocessor import OPTCausalLMPreprocessor
from exporter.opt.tokenizer import OPTTokenizer
from exporter.presets import keras_config
from exporter.presets.generation_config import GENERATION_FILE, generation_values
from exporter.presets.generation_defaults import carried_options
from exporter.presets.live_weights import check_shard_size, write_live_weights
from exporter.presets.staging import check_format, staged_files

DEFAULT_SHARD_SIZE = 10  # GB, as in keras-hub
# The task's files are about its old backbone.
BACKBONE_FILES = (*WRITTEN_FILES["keras"], "task.json", GENERATION_FILE)
TOKENIZER_FILES = ("assets/tokenizer/*",)


def save_backbone(
    backbone: OPTBackbone, folder: str | Path, max_shard_size: float | None = DEFAULT_SHARD_SIZE
) -> None:
    """Writes `config.json`, `metadata.json` and the weights.

    Args:
        backbone: the model.
        folder: created where it does not exist; a tokenizer and other files in it stay.
        max_shard_size: most GB (2**30 bytes) of one weights file; `None` for a single one.

    Raises:
        ValueError: if the folder holds a model in another format, or for a size that is not positive.
    """
    check_shard_size(max_shard_size)
    check_format(Path(folder), "keras")
    with staged_files(Path(folder), BACKBONE_FILES) as stage:
        _write_backbone(backbone, stage, max_shard_size, None)


def save_causal_lm(
    model: CausalLM,
    folder: str | Path,
    max_shard_size: float | None = DEFAULT_SHARD_SIZE,
    weights_dtype: str | None = None,
) -> None:
    """Writes a model, and its tokenizer and preprocessor where it has them.

    Args:
        model: the language model.
        folder: created where it does not exist; other files in it stay.
        max_shard_size: most GB (2**30 bytes) of one weights file; `None` for a single one.
        weights_dtype: dtype to store the weights in; by default that of the variables.

    Raises:
        ValueError: if the folder holds a model in another format, for a size that is not positive, or
            for `default_options` that a preset cannot carry.
    """
    check_shard_size(max_shard_size)
    check_format(Path(folder), "keras")
    options = carried_options(model.default_options, model.backbone.vocabulary_size)
    text = model.text_preprocessor
    replaced = BACKBONE_FILES if text is None else BACKBONE_FILES + TOKENIZER_FILES
    with staged_files(Path(folder), replaced) as stage:
        backbone = _write_backbone(model.backbone, stage, max_shard_size, weights_dtype)
        preprocessor = None if text is None else _write_preprocessor(text, stage)
        parts = [part for part in (backbone, preprocessor) if part is not None]
        task = keras_config.serialized(
            "OPTCausalLM",
            {"backbone": backbone, "preprocessor": preprocessor, "name": model.name},
            in_keras_hub=all(map(keras_config.is_in_keras_hub, parts)),
        )
        _write_json(stage / "task.json", task)
        if generation := generation_values(model.end_token_ids, options):
            _write_json(stage / GENERATION_FILE, generation)


def save_preprocessor(preprocessor: OPTCausalLMPreprocessor, folder: str | Path) -> None:
    """Writes `preprocessor.json` and the tokenizer; a model in the folder stays."""
    check_format(Path(folder), "keras")
    with staged_files(Path(folder), TOKENIZER_FILES) as stage:
        _write_preprocessor(preprocessor, stage)


def save_tokenizer(tokenizer: OPTTokenizer, folder: str | Path) -> None:
    """Writes `tokenizer.json` and the vocabulary; a model in the folder stays."""
    check_format(Path(folder), "keras")
    with staged_files(Path(folder), TOKENIZER_FILES) as stage:
        _write_tokenizer(tokenizer, stage)


# === The files; each function returns what it wrote as configuration ===


def _write_backbone(
    backbone: OPTBackbone, folder: Path, max_shard_size: float | None, weights_dtype: str | None
) -> dict[str, Any]:
    config = keras_config.backbone_config(
        backbone.model_config,
        name=backbone.name,
        trainable=backbone.trainable,
        dtype=keras.dtype_policies.serialize(backbone.dtype_policy),
        dropout=backbone.dropout,
    )
    metadata = {
        "keras_version": keras.__version__,
        "parameter_count": backbone.model_config.num_parameters,
        "date_saved": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d@%H:%M:%S"),
        "tasks": ["CausalLM"],
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "metadata.json", metadata)
    write_live_weights(backbone, folder, "keras", KERAS_PRESET, max_shard_size, weights_dtype)
    return config


def _write_preprocessor(preprocessor: OPTCausalLMPreprocessor, folder: Path) -> dict[str, Any]:
    tokenizer = _write_tokenizer(preprocessor.tokenizer, folder)
    config = {
        **preprocessor.get_config(),
        "trainable": True,
        "dtype": keras_config.dtype_policy("float32"),
        "tokenizer": tokenizer,
        "config_file": "preprocessor.json",
    }
    in_keras_hub = keras_config.is_in_keras_hub(tokenizer)
    written = keras_config.serialized("OPTCausalLMPreprocessor", config, in_keras_hub=in_keras_hub)
    _write_json(folder / "preprocessor.json", written)
    return written


def _write_tokenizer(tokenizer: OPTTokenizer, folder: Path) -> dict[str, Any]:
    assets = folder / "assets" / "tokenizer"
    assets.mkdir(parents=True)
    tokenizer.save_assets(assets)
    config = {
        **tokenizer.get_config(),
        "trainable": True,
        "dtype": keras_config.dtype_policy(tokenizer.dtype),
        "config_file": "tokenizer.json",
    }
    del config["assets"]
    in_keras_hub = not tokenizer.is_own_file
    written = keras_config.serialized("OPTTokenizer", config, in_keras_hub=in_keras_hub)
    _write_json(folder / "tokenizer.json", written)
    return written


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
