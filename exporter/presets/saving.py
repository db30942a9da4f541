"""Writes preset folders in the format that keras-hub reads."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from exporter.checkpoints.formats import KERAS_PRESET
from exporter.checkpoints.weight_map import bind_names
from exporter.opt.backbone import OPTBackbone
from exporter.opt.causal_lm import CausalLM
from exporter.opt.keras_backend import keras
from exporter.opt.preprocessor import OPTCausalLMPreprocessor
from exporter.opt.tokenizer import OPTTokenizer


def save_causal_lm(model: CausalLM, folder: str | Path, weights_dtype: str | None = None) -> None:
    """Writes a model, its tokenizer and preprocessor as a preset folder.

    Args:
        model: the language model.
        folder: created where it does not exist.
        weights_dtype: dtype to store the weights in; by default that of the variables.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _serialized(model.backbone, "opt_backbone", model.backbone.get_config())
    _write_json(folder / "config.json", config)
    task: dict[str, Any] = {"backbone": config, "preprocessor": None, "name": model.name}
    if model.preprocessor is not None:
        task["preprocessor"] = _save_preprocessor(model.preprocessor, folder)
    _write_json(folder / "task.json", _serialized(model, "opt_causal_lm", task))
    _write_json(
        folder / "metadata.json",
        {
            "keras_version": keras.__version__,
            "parameter_count": model.backbone.count_params(),
            "date_saved": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d@%H:%M:%S"),
            "tasks": ["CausalLM"],
        },
    )
    _save_weights(model.backbone, folder / "model.weights.h5", weights_dtype)


def _save_preprocessor(preprocessor: OPTCausalLMPreprocessor, folder: Path) -> dict[str, Any]:
    tokenizer = preprocessor.tokenizer
    assets = folder / "assets" / "tokenizer"
    assets.mkdir(parents=True, exist_ok=True)
    tokenizer.save(assets)
    tokenizer_config = _serialized(tokenizer, "opt_tokenizer", _tokenizer_config(tokenizer))
    _write_json(folder / "tokenizer.json", tokenizer_config)
    config = {
        "name": "opt_causal_lm_preprocessor",
        "trainable": True,
        "dtype": keras.dtype_policies.serialize(keras.DTypePolicy("float32")),
        "tokenizer": tokenizer_config,
        "config_file": "preprocessor.json",
        **preprocessor.get_config(),
    }
    serialized = _serialized(preprocessor, "opt_causal_lm_preprocessor", config)
    _write_json(folder / "preprocessor.json", serialized)
    return serialized


def _tokenizer_config(tokenizer: OPTTokenizer) -> dict[str, Any]:
    return {
        "name": "opt_tokenizer",
        "trainable": True,
        "dtype": keras.dtype_policies.serialize(keras.DTypePolicy("int32")),
        "config_file": "tokenizer.json",
        "sequence_length": tokenizer.sequence_length,
        "add_prefix_space": False,
        "unsplittable_tokens": tokenizer.special_tokens,
    }


def _serialized(item: Any, module: str, config: dict[str, Any]) -> dict[str, Any]:
    """Keras's serialized form, under keras-hub's name for the class."""
    name = type(item).__name__
    return {
        "module": f"keras_hub.src.models.opt.{module}",
        "class_name": name,
        "config": config,
        "registered_name": f"keras_hub>{name}",
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _save_weights(backbone: OPTBackbone, path: Path, dtype: str | None) -> None:
    variables = {variable.path: variable for variable in backbone.variables}
    with h5py.File(path, "w") as file:
        for target in bind_names(KERAS_PRESET, backbone.model_config):
            values = keras.ops.convert_to_numpy(variables[target.name].value)
            for name, part in target.split(values.astype(dtype or values.dtype)):
                _write_dataset(file, name, part)


def _write_dataset(file: h5py.File, name: str, values: np.ndarray) -> None:
    dataset = file.create_dataset(name, data=values)
    if values.dtype == ml_dtypes.bfloat16:  # HDF5 has no bfloat16: h5py stores it as opaque bytes
        dataset.attrs["dtype"] = "bfloat16"
