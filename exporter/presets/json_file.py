"""The JSON files of a preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.errors import PresetError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        PresetError: if it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PresetError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise PresetError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    return read_json(path) if path.is_file() else {}
