"""What is in a preset folder: Keras's or Hugging Face's layout, read into one description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoints.formats import HUGGING_FACE, KERAS_PRESET
from exporter.checkpoints.readers import TensorReader, open_checkpoint
from exporter.checkpoints.weight_map import BoundTarget, WeightMap, bind_checkpoint
from exporter.errors import PresetError
from exporter.foreign_files import find_file
from exporter.presets.generation_config import GenerationConfig, read_generation
from exporter.presets.hugging_face_config import read_hugging_face_config
from exporter.presets.json_file import read_json, read_json_if_there, serialized_config
from exporter.presets.tokenizer_files import (
    hugging_face_tokenizer_files,
    keras_tokenizer_files,
    keras_tokenizer_options,
)
from exporter.presets.tokenizer_notices import disagreements, vocabulary_of
from graphs.contract import MAX_SIZES, ModelConfig
from runtime.text_files import MAX_TOKENIZER_BYTES

if TYPE_CHECKING:
    from exporter.adapters.adapter import Adapter

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
        notices: what a user should know of the tokenizer's files, a sentence each.
    """

    folder: Path
    sequence_length: int = DEFAULT_SEQUENCE_LENGTH
    add_start_token: bool = True
    add_end_token: bool = True
    tokenizer_files: Mapping[str, str] | None = None
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PresetFolder(TextFolder):
    """An OPT preset on disk.

    Attributes:
        format: `"keras"` or `"huggingface"`.
        config: the model's sizes.
        dropout: dropout rate for training.
        dtype: Keras dtype name of computations and weights.
        generation: what ends texts.
        model_options: name and trainability of the backbone, where the preset says.
        adapters: what is merged into the weights.
        base_config: sizes of the weight files, where adapters change those of the model.
    """

    format: str
    config: ModelConfig
    dropout: float
    dtype: str
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    base_config: ModelConfig | None = None

    def open_weights(self) -> tuple[TensorReader, list[BoundTarget]]:
        """Opens the weight files and fits them to the configuration; close the reader after use.

        Adapters are not merged; see `exporter.presets.adapted.merged`.

        Raises:
            CheckpointError: if they are missing, truncated or do not fit.
        """
        weight_map: WeightMap = KERAS_PRESET if self.format == "keras" else HUGGING_FACE
        reader = open_checkpoint(self.folder, self.format)
        try:
            config = self.base_config or self.config
            return reader, bind_checkpoint(weight_map, config, reader, str(self.folder))
        except BaseException:
            reader.close()
            raise


def read_preset(folder: Path) -> PresetFolder:
    """Reads a preset folder's configuration and tokenizer, not its weights.

    Raises:
        PresetError: if it has no `config.json`, is not an OPT model, or has unsupported switches.
    """
    path = folder / "config.json"
    if find_file(folder, path.name, PresetError) is None:
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
    except (AttributeError, TypeError, ValueError) as error:
        raise PresetError(f"{path}: {error}") from None


def read_text_folder(folder: Path) -> TextFolder:
    """Reads a preset folder's tokenizer and preprocessor, which may have been saved without a model.

    Raises:
        PresetError: if it is no preset folder, or one of another kind of model.
    """
    has_model = find_file(folder, "config.json", PresetError) is not None
    if not has_model and (text := _read_text(folder)) is not None:
        return text
    return read_preset(folder)


def _read_text(folder: Path) -> TextFolder | None:
    """A folder with a tokenizer, in either format, and maybe a preprocessor; `None` if it has none."""
    tokenizer = read_json_if_there(folder, "tokenizer.json", MAX_TOKENIZER_BYTES)
    if "class_name" in tokenizer or "registered_name" in tokenizer:
        return TextFolder(**_keras_text(folder))
    text = TextFolder(folder=folder, **_hugging_face_text(folder, {}))
    return None if text.tokenizer_files is None else text


def read_tokenizer(folder: Path) -> TextFolder:
    """Reads the tokenizer of a folder, whatever model may be in it beside.

    Raises:
        PresetError: if it has none.
    """
    text = _read_text(folder)
    if text is None or text.tokenizer_files is None:
        raise PresetError(
            f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt, as "
            "Hugging Face writes them, or tokenizer.json and assets/tokenizer, as Keras does"
        )
    return text


# === Keras ===


def _read_keras(folder: Path, config: dict[str, Any]) -> PresetFolder:
    name = config.get("registered_name") or config.get("class_name")
    if name not in KERAS_CLASSES:
        raise PresetError(f"{folder} holds {name!r:.200}, not an OPT model ({KERAS_CLASSES[0]!r})")
    values = config["config"]
    model_options = {key: values[key] for key in ("name", "trainable") if key in values}
    for key, kind in (("name", str), ("trainable", bool)):
        if not isinstance(model_options.get(key, kind()), kind):
            raise ValueError(f"{key} is not valid: {model_options[key]!r:.200}")
    sizes = _keras_sizes(values)
    return PresetFolder(
        format="keras",
        config=sizes,
        generation=read_generation(folder, {}, sizes.vocabulary_size),
        dropout=_dropout(values),
        dtype=_keras_dtype(values.get("dtype")),
        model_options=model_options,
        **_keras_text(folder),
    )


def _dropout(values: Mapping[str, Any]) -> float:
    rate = values.get("dropout", 0.1)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
        raise ValueError(f"dropout must be a number from 0 to 1, got {rate!r:.200}")
    return rate


def _keras_text(folder: Path) -> dict[str, Any]:
    """The values of `TextFolder`."""
    preprocessor = _preprocessor_config(folder)
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


def _preprocessor_config(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor.json"
    config = serialized_config(read_json_if_there(folder, path.name), path)
    length = config.get("sequence_length", 1)
    if type(length) is not int or not 1 <= length <= MAX_SIZES["max_sequence_length"]:
        raise PresetError(
            f"{path}: sequence_length must be a positive whole number up to "
            f"{MAX_SIZES['max_sequence_length']}, got {length!r:.200}"
        )
    for name in ("add_start_token", "add_end_token"):
        if not isinstance(config.get(name, False), bool):
            raise PresetError(f"{path}: {name} must be true or false, got {config[name]!r:.200}")
    return config


def _keras_dtype(value: Any) -> str:
    """A dtype is a name, a serialized policy, or absent in older files."""
    if isinstance(value, dict):
        if value.get("class_name") not in ("DTypePolicy", "FloatDTypePolicy"):  # Keras 3's and before
            raise ValueError(
                f"a {value.get('class_name')!s:.200} as dtype, of a quantized model, is not supported; "
                "save the model in float32, float16, bfloat16 or a mixed policy"
            )
        value = value.get("config", {}).get("name")
    value = value or "float32"
    if not isinstance(value, str):
        raise ValueError(f"dtype must be a name, got {value!r:.200}")
    return value


# === Hugging Face ===


def _read_hugging_face(folder: Path, config: dict[str, Any]) -> PresetFolder:
    sizes = read_hugging_face_config(config, str(folder))
    generation = read_generation(folder, config, sizes.vocabulary_size)
    text_config = {**config, "eos_token_id": list(generation.end_token_ids or ())}
    return PresetFolder(
        folder=folder,
        format="huggingface",
        config=sizes,
        dropout=_dropout(config),
        dtype="float32",
        generation=generation,
        sequence_length=min(DEFAULT_SEQUENCE_LENGTH, sizes.max_sequence_length),
        **_hugging_face_text(folder, text_config),
    )


def _hugging_face_text(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's values of `TextFolder`."""
    files = hugging_face_tokenizer_files(folder, config)
    told = () if files is None else disagreements(folder, vocabulary_of(files), config)
    return {"tokenizer_files": files, "notices": told}
