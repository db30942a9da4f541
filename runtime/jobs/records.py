"""What a job writes for a line of its input: one record, a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from runtime.jobs.requests import Request
from runtime.results import GenerationResult
from runtime.sentences import legible

ERROR, LINE = "error", "line"
# What a record has of a result. Where a line has such a name too, it is from a job before this one.
RESULT_NAMES = frozenset(GenerationResult("", (), (), "stop", 0.0, 0.0).to_dict()) | {
    field.name for field in fields(GenerationResult)
}


def result_record(request: Request, result: GenerationResult) -> dict[str, Any]:
    """What the line holds and what its prompt became."""
    return {**_own_fields(request), **result.to_dict()}


def error_record(request: Request, error: str) -> dict[str, Any]:
    """What the line holds, why there is no text for it, and its number."""
    return {**_own_fields(request), ERROR: legible(error), LINE: request.line}


def to_line(record: Mapping[str, Any], *, ascii_only: bool = False) -> str:
    """A record as a line of JSON.

    Raises:
        ValueError: if it holds a number that JSON has not.
    """
    return json.dumps(record, ensure_ascii=ascii_only, allow_nan=False) + "\n"


def is_error(record: Mapping[str, Any]) -> bool:
    """Whether a record tells of an error."""
    return ERROR in record


def is_record_of(record: Any, request: Request) -> bool:
    """Whether a record is what a job wrote for a line of its input."""
    if not isinstance(record, dict):
        return False
    own = _own_fields(request)
    if is_error(record):
        own = {**own, LINE: request.line}
    elif request.problem is not None or not record.keys() >= {"text", "finish_reason"}:
        return False
    return all(name in record and record[name] == value for name, value in own.items())


def begins_record_of(data: bytes, request: Request) -> bool:
    """Whether some bytes are a part of what a job writes for a line: its beginning, or zeros.

    Zeros are what some file systems have in a file when the machine lost power.
    """
    begin = to_line(_own_fields(request)).encode().removesuffix(b"}\n")
    return not data.strip(b"\0") or data[: len(begin)] == begin[: len(data)]


def _own_fields(request: Request) -> dict[str, Any]:
    return {name: v for name, v in request.fields.items() if name not in (ERROR, *RESULT_NAMES)}
