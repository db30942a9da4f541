"""Which files of a repository make a preset; all others stay on the hub.

Repositories often hold the same weights for several frameworks: one set of them is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from exporter.presets.hubs.failure import HubFailure, one_line
from exporter.presets.json_file import MAX_CONFIG_BYTES
from graphs.shown import listed
from graphs.strict_json import parse_json
from runtime.text_files import read_text

CONFIG_FILE = "config.json"

# Beside the configuration and the weights; each may be absent.
KERAS_FILES = (
    "metadata.json",
    "task.json",
    "preprocessor.json",
    "generation_config.json",
    "tokenizer.json",
    "assets/tokenizer/vocabulary.json",
    "assets/tokenizer/merges.txt",
)
HUGGING_FACE_FILES = (
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
ADAPTER_CONFIG = "adapter_config.json"  # of peft
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def layout_of(config_file: Path) -> str:
    """Whose preset a `config.json` belongs to: `"keras"` or `"huggingface"`.

    Raises:
        HubFailure: if there is no such file, or it holds no JSON object.
    """
    try:
        config = parse_json(read_text(config_file, MAX_CONFIG_BYTES))
    except FileNotFoundError:
        raise HubFailure(f"it has no {CONFIG_FILE}, so it holds no model") from None
    except ValueError as error:
        raise HubFailure(f"its {CONFIG_FILE} is not JSON: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise HubFailure(f"its {CONFIG_FILE} is not a JSON object")
    return "keras" if "registered_name" in config or "class_name" in config else "huggingface"


def weight_files(layout: str, names: Collection[str], locate: Callable[[str], Path]) -> list[str]:
    """The files of one set of weights, with the index where they are in shards.

    Args:
        layout: `"keras"` or `"huggingface"`.
        names: all files that there are.
        locate: gives the path of an index file on this machine.

    Raises:
        HubFailure: if there are no weights, or not all of their shards.
        CheckpointError: if an index is none.
    """
    from exporter.checkpoints.readers import WEIGHT_FILES, shard_names  # with NumPy and h5py

    for files in WEIGHT_FILES[layout]:
        if files.single in names:
            return [files.single]
        if files.index in names:
            shards = shard_names(locate(files.index))
            if missing := [name for name in shards if name not in names]:
                raise HubFailure(f"it lacks the shards {listed(missing)} that {files.index} lists")
            return [files.index, *shards]
    expected = " or ".join(name for f in WEIGHT_FILES[layout] for name in (f.single, f.index))
    raise HubFailure(f"it has no weights: expected {expected}")


def check_weights(folder: Path) -> None:
    """Checks that a folder has all weight files that its preset needs.

    Raises:
        HubFailure: if it does not.
        CheckpointError: if an index of shards is none.
    """
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    weight_files(layout_of(folder / CONFIG_FILE), names, lambda name: folder / name)
