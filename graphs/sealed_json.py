"""JSON that ends with the SHA-256 of itself, so that a change of any bit of it is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from graphs.strict_json import parse_json

SEAL = "sha256"


class SealError(ValueError):
    """JSON is not as `seal` wrote it."""


def seal(values: Mapping[str, Any]) -> str:
    """The text of values with their hash: `SEAL` as the last name, over the text without it."""
    digest = hashlib.sha256(_text(values).encode()).hexdigest()
    return _text({**values, SEAL: digest})


def unseal(data: bytes) -> dict[str, Any]:
    """The values of parsed text, whose seal is checked by `check_seal`.

    Raises:
        SealError: if it is not JSON, or no object.
    """
    try:
        values = parse_json(data.decode("utf-8"))
    except ValueError as error:
        raise SealError(f"is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise SealError("is no object of JSON")
    return values


def check_seal(values: Mapping[str, Any], data: bytes) -> None:
    """Raises `SealError` unless `seal` of the values without their seal gives these very bytes."""
    if SEAL not in values:
        raise SealError("has no SHA-256 of its own")
    try:
        expected = seal({name: value for name, value in values.items() if name != SEAL}).encode()
    except (ValueError, RecursionError):  # a character that is none, say
        expected = b""
    if data != expected:
        raise SealError("was altered: its SHA-256 is another")


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
