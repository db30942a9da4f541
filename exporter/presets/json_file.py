"""The JSON files of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.errors import PresetError
from exporter.foreign_files import find_file
from graphs.strict_json import parse_json
from runtime.text_files import MEGABYTE, read_text

MAX_CONFIG_BYTES = 4 * MEGABYTE


def read_json(path: Path, most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most so many bytes.

    Raises:
        PresetError: if it holds something else.
    """
    try:
        value = parse_json(read_text(path, most))
    except ValueError as error:
        raise PresetError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise PresetError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read_json_if_there(folder: Path, name: str, most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file of a folder; empty where there is no file."""
    path = find_file(folder, name, PresetError)
    return {} if path is None else read_json(path, most)


def serialized_config(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The `config` of one of Keras's serialized objects; empty where there is none."""
    config = values.get("config", {})
    if not isinstance(config, dict):
        raise PresetError(f"{path}: config must be an object, got {type(config).__name__}")
    return config


def ids_of(value: Any) -> list[int]:
    """The token ids of a configuration's value: one, a list of some, or none."""
    ids = value if isinstance(value, list) else [value]
    return [i for i in ids if type(i) is int]
