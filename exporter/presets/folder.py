"""What is in a preset folder: Keras's or Hugging Face's layout, read into one description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from exporter.checkpoints.formats import HUGGING_FACE, KERAS_PRESET
from exporter.checkpoints.readers import TensorReader, open_checkpoint
from exporter.checkpoints.weight_map import BoundTarget, WeightMap, bind_checkpoint
from exporter.errors import PresetError
from exporter.presets.hugging_face_config import read_hugging_face_config
from exporter.presets.json_file import read_json
from exporter.presets.tokenizer_files import (
    hugging_face_tokenizer_files,
    keras_tokenizer_files,
    keras_tokenizer_options,
)
from graphs.contract import ModelConfig

KERAS_CLASSES = ("keras_hub>OPTBackbone", "keras_nlp>OPTBackbone", "opt_onnx>OPTBackbone")
DEFAULT_SEQUENCE_LENGTH = 1024  # Keras's, also of presets from before preprocessor.json


@dataclass(frozen=True, kw_only=True)
class TextFolder:
    """What a preset on disk says about text; all of it, where there is no model.

    Attributes:
        folder: where it is.
        sequence_length: the preprocessor's, which is also the default of `max_length`.
        add_start_token, add_end_token: the preprocessor's.
        tokenizer_files: what `Tokenizer.from_files` takes; `None` where the preset has no tokenizer.
        tokenizer_options: of `OPTTokenizer`, where they are not the default.
    """

    folder: Path
    sequence_length: int = DEFAULT_SEQUENCE_LENGTH
    add_start_token: bool = True
    add_end_token: bool = True
    tokenizer_files: Mapping[str, str] | None = None
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PresetFolder(TextFolder):
    """An OPT preset on disk.

    Attributes:
        format: `"keras"` or `"huggingface"`.
        config: the model's sizes.
        dropout: dropout rate for training.
        dtype: Keras dtype name of computations and weights.
        model_options: name and trainability of the backbone, where the preset says.
    """

    format: str
    config: ModelConfig
    dropout: float
    dtype: str
    model_options: Mapping[str, Any] = field(default_factory=dict)

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
        what = "not a preset folder" if _read_text(folder) is None else "a tokenizer without a model"
        raise PresetError(
            f"{folder} is {what}: it has no config.json (Keras and Hugging Face both write one beside "
            "the weights)"
        )
    config = read_json(path)
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


def read_text_folder(folder: Path) -> TextFolder:
    """Reads a preset folder's tokenizer and preprocessor, which may have been saved without a model.

    Raises:
        PresetError: if it is no preset folder, or one of another kind of model.
    """
    if not (folder / "config.json").is_file() and (text := _read_text(folder)) is not None:
        return text
    return read_preset(folder)


def _read_text(folder: Path) -> TextFolder | None:
    """A folder with a tokenizer, in either format, and maybe a preprocessor; `None` if it has none."""
    if (folder / "tokenizer_config.json").is_file():
        return TextFolder(folder=folder, tokenizer_files=hugging_face_tokenizer_files(folder, {}))
    return TextFolder(**_keras_text(folder)) if (folder / "tokenizer.json").is_file() else None


# === Keras ===


def _read_keras(folder: Path, config: dict[str, Any]) -> PresetFolder:
    name = config.get("registered_name") or config.get("class_name")
    if name not in KERAS_CLASSES:
        raise PresetError(f"{folder} holds {name!r}, not an OPT model ({KERAS_CLASSES[0]!r})")
    values = config["config"]
    return PresetFolder(
        format="keras",
        config=_keras_sizes(values),
        dropout=values.get("dropout", 0.1),
        dtype=_keras_dtype(values.get("dtype")),
        model_options={key: values[key] for key in ("name", "trainable") if key in values},
        **_keras_text(folder),
    )


def _keras_text(folder: Path) -> dict[str, Any]:
    """The values of `TextFolder`."""
    preprocessor = _preprocessor_config(folder / "preprocessor.json")
    names = ("sequence_length", "add_start_token", "add_end_token")
    return {
        "folder": folder,
        "tokenizer_files": keras_tokenizer_files(folder),
        "tokenizer_options": keras_tokenizer_options(folder),
        **{name: preprocessor[name] for name in names if name in preprocessor},
    }


def _keras_sizes(values: dict[str, Any]) -> ModelConfig:
    """Sizes as keras-hub writes them; presets of other OPT models hold their switches too."""
    known = {field.name: values[field.name] for field in fields(ModelConfig) if field.name in values}
    config = ModelConfig.from_dict({"max_sequence_length": 2048, **known})
    if "layer_norm_epsilon" in config.switches:  # keras-hub's is fixed too
        raise ValueError(f"layer_norm_epsilon must be 1e-05, got {config.layer_norm_epsilon}")
    return config


def _preprocessor_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    config = read_json(path).get("config", {})
    length = config.get("sequence_length", 1) if isinstance(config, dict) else None
    if type(length) is not int or length < 1:
        raise PresetError(f"{path}: sequence_length must be a positive whole number, got {length!r}")
    return config


def _keras_dtype(value: Any) -> str:
    """A dtype is a name, a serialized policy, or absent in older files."""
    if isinstance(value, dict):
        if value.get("class_name") not in ("DTypePolicy", "FloatDTypePolicy"):  # Keras 3's and before
            raise PresetError(
                f"a {value.get('class_name')} as dtype, of a quantized model, is not supported; save "
                "the model in float32, float16, bfloat16 or a mixed policy"
            )
        value = value.get("config", {}).get("name")
    return value or "float32"


# === Hugging Face ===


def _read_hugging_face(folder: Path, config: dict[str, Any]) -> PresetFolder:
    sizes = read_hugging_face_config(config, str(folder))
    return PresetFolder(
        folder=folder,
        format="huggingface",
        config=sizes,
        dropout=config.get("dropout", 0.1),
        dtype="float32",
        sequence_length=min(DEFAULT_SEQUENCE_LENGTH, sizes.max_sequence_length),
        tokenizer_files=hugging_face_tokenizer_files(folder, config),
    )
