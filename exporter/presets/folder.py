"""What is in a preset folder: Keras's or Hugging Face's layout, read into one description."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from exporter.checkpoints.formats import HUGGING_FACE, KERAS_PRESET
from exporter.checkpoints.readers import TensorReader, open_checkpoint
from exporter.checkpoints.weight_map import BoundTarget, WeightMap, bind_checkpoint
from exporter.errors import PresetError
from exporter.presets.hugging_face_config import read_hugging_face_config
from graphs.contract import ModelConfig

KERAS_CLASSES = ("keras_hub>OPTBackbone", "keras_nlp>OPTBackbone", "opt_onnx>OPTBackbone")
DEFAULT_SEQUENCE_LENGTH = 1024  # Keras's, also of presets from before preprocessor.json


@dataclass(frozen=True)
class PresetFolder:
    """An OPT preset on disk.

    Attributes:
        folder: where it is.
        format: `"keras"` or `"huggingface"`.
        config: the model's sizes.
        dropout: dropout rate for training.
        dtype: Keras dtype name of computations and weights.
        sequence_length: the preprocessor's, which is also the default of `max_length`.
        vocabulary, merges: the tokenizer's data; both `None` where the preset has no tokenizer.
    """

    folder: Path
    format: str
    config: ModelConfig
    dropout: float
    dtype: str
    sequence_length: int
    add_start_token: bool = True
    add_end_token: bool = True
    vocabulary: dict[str, int] | None = None
    merges: list[str] | None = None

    def open_weights(self) -> tuple[TensorReader, list[BoundTarget]]:
        """Opens the weight files and fits them to the configuration; close the reader after use.

        Raises:
            CheckpointError: if they are missing, truncated or do not fit.
        """
        weight_map: WeightMap = KERAS_PRESET if self.format == "keras" else HUGGING_FACE
        reader = open_checkpoint(self.folder, self.format)
        try:
            return reader, bind_checkpoint(weight_map, self.config, reader, str(self.folder))
        except BaseException:
            reader.close()
            raise


def read_preset(folder: Path) -> PresetFolder:
    """Reads a preset folder's configuration and tokenizer, not its weights.

    Raises:
        PresetError: if it has no `config.json`, is not an OPT model, or has unsupported switches.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise PresetError(
            f"{folder} is not a preset folder: it has no config.json (Keras and Hugging Face both "
            "write one beside the weights)"
        )
    config = _read_json(path)
    try:
        if "registered_name" in config or "class_name" in config:
            return _read_keras(folder, config)
        return _read_hugging_face(folder, config)
    except KeyError as error:
        raise PresetError(f"{path} lacks the value {error}") from None
    except PresetError:
        raise
    except (TypeError, ValueError) as error:
        raise PresetError(f"{path}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PresetError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise PresetError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


# === Keras ===


def _read_keras(folder: Path, config: dict[str, Any]) -> PresetFolder:
    name = config.get("registered_name") or config.get("class_name")
    if name not in KERAS_CLASSES:
        raise PresetError(f"{folder} holds {name!r}, not an OPT model ({KERAS_CLASSES[0]!r})")
    values = config["config"]
    preprocessor = _preprocessor_config(folder / "preprocessor.json")
    vocabulary, merges = _keras_tokenizer(folder / "assets" / "tokenizer")
    return PresetFolder(
        folder=folder,
        format="keras",
        config=_keras_sizes(values),
        dropout=values.get("dropout", 0.1),
        dtype=_keras_dtype(values.get("dtype")),
        sequence_length=preprocessor.get("sequence_length", DEFAULT_SEQUENCE_LENGTH),
        add_start_token=preprocessor.get("add_start_token", True),
        add_end_token=preprocessor.get("add_end_token", True),
        vocabulary=vocabulary,
        merges=merges,
    )


def _keras_sizes(values: dict[str, Any]) -> ModelConfig:
    """Sizes as keras-hub writes them; presets of other OPT models hold their switches too."""
    known = {field.name: values[field.name] for field in fields(ModelConfig) if field.name in values}
    return ModelConfig.from_dict({"max_sequence_length": 2048, **known})


def _preprocessor_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    config = _read_json(path).get("config", {})
    length = config.get("sequence_length", 1) if isinstance(config, dict) else None
    if type(length) is not int or length < 1:
        raise PresetError(f"{path}: sequence_length must be a positive whole number, got {length!r}")
    return config


def _keras_dtype(value: Any) -> str:
    """A dtype is a name, a serialized policy, or absent in older files."""
    if isinstance(value, dict):
        value = value.get("config", {}).get("name")
    return value or "float32"


def _keras_tokenizer(assets: Path) -> tuple[dict[str, int] | None, list[str] | None]:
    if not (assets / "vocabulary.json").is_file():
        return None, None
    return dict(_read_json(assets / "vocabulary.json")), _read_lines(assets / "merges.txt")


# === Hugging Face ===


def _read_hugging_face(folder: Path, config: dict[str, Any]) -> PresetFolder:
    sizes = read_hugging_face_config(config, str(folder))
    vocabulary, merges = _hugging_face_tokenizer(folder)
    return PresetFolder(
        folder=folder,
        format="huggingface",
        config=sizes,
        dropout=config.get("dropout", 0.1),
        dtype="float32",
        sequence_length=min(DEFAULT_SEQUENCE_LENGTH, sizes.max_sequence_length),
        vocabulary=vocabulary,
        merges=merges,
    )


def _hugging_face_tokenizer(folder: Path) -> tuple[dict[str, int] | None, list[str] | None]:
    """From `vocab.json` and `merges.txt`, or else from a fast tokenizer's `tokenizer.json`."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return dict(_read_json(folder / "vocab.json")), _read_lines(folder / "merges.txt")
    if not (folder / "tokenizer.json").is_file():
        return None, None
    path = folder / "tokenizer.json"
    fast = _read_json(path)
    try:
        model = fast["model"]
        vocabulary = dict(model["vocab"])
        vocabulary.update({token["content"]: token["id"] for token in fast.get("added_tokens", [])})
        merges = [rule if isinstance(rule, str) else " ".join(rule) for rule in model["merges"]]
    except KeyError as error:
        raise PresetError(f"{path} lacks the value {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise PresetError(f"{path}: {error}") from None
    return vocabulary, merges


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")
