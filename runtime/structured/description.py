"""What a text is to be, as a caller says it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from graphs.shown import shown
from graphs.strict_json import parse_json
from runtime.structured.json_schema import MAX_STRING_PATTERNS, check_schema
from runtime.structured.repetitions import check_repetitions

MAX_BYTES = 2**16  # of a description; llguidance compiles as much in about a second
MAX_CHOICES = 5000
MAX_OPERATORS = MAX_STRING_PATTERNS  # "and" and "not" between patterns, of a grammar

Kind = Literal["json_schema", "regex", "choice", "grammar", "json_object"]

_EMBEDDED_SCHEMA = re.compile(r"%json\s*")
_LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//.*')


@dataclass(frozen=True)
class StructuredOutput:
    """What a whole text is to be: one of these, the others are left out. Names and meanings are vLLM's.

    What llguidance does not support is refused when it is compiled.

    Attributes:
        json_schema: JSON of a JSON Schema, which is given as a mapping or as text and kept as text.
            Properties come in the schema's order. White space is one space, or a line end with up to 32
            spaces or tabs.
        regex: a text that matches a regular expression as a whole, in the syntax of Rust's `regex`
            without look-around, back references and word borders.
        choice: one of some strings; given as a list, kept as a tuple.
        grammar: a text of a context-free grammar in llguidance's variant of Lark's syntax.
        json_object: true for any JSON object.

    Raises:
        ValueError: if none or several are given, or what is given is not as described or too large.
    """

    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]
        given = [
            name for name in names if not (getattr(self, name) is None or getattr(self, name) is False)
        ]
        if len(given) != 1:
            got = " and ".join(given) if given else "none of them"
            raise ValueError(f"a structured output is one of {', '.join(names)}, got {got}")
        kind = given[0]
        value = getattr(self, kind)
        for name in names:
            object.__setattr__(self, name, _READERS[name](value) if name == kind else None)

    @property
    def kind(self) -> Kind:
        """Which of the fields is given."""
        given = (field.name for field in fields(self) if getattr(self, field.name) is not None)
        return cast(Kind, next(given))

    def get_config(self) -> dict[str, Any]:
        """The field that is given, as JSON has it; `StructuredOutput(**config)` is the same again."""
        value = getattr(self, self.kind)
        return {self.kind: list(value) if isinstance(value, tuple) else value}


def _sized(value: object, name: str) -> str:
    """A text that is not empty, has characters only and is not too large."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text that is not empty, got {shown(value)}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a character, a surrogate without its pair") from None
    if size > MAX_BYTES:
        raise ValueError(f"{name} has {size:,} bytes; at most {MAX_BYTES:,} are allowed")
    return value


def _read_schema(value: object) -> str:
    if isinstance(value, Mapping):
        try:
            value = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"json_schema must hold what JSON has: {error}") from None
    if not isinstance(value, str):
        raise ValueError(f"json_schema must be a mapping or JSON text, got {shown(value)}")
    text = _sized(value, "json_schema")
    try:
        schema = parse_json(text)
    except ValueError as error:
        raise ValueError(f"json_schema is not JSON: {error}") from None
    check_schema(schema, "json_schema")
    return json.dumps(schema, ensure_ascii=False)


def _read_regex(value: object) -> str:
    text = _sized(value, "regex")
    check_repetitions(text, "regex")
    return text


def _read_choice(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"choice must be a list of strings, got {shown(value)}")
    if not value:
        raise ValueError("choice must have at least one string, got none")
    if len(value) > MAX_CHOICES:
        raise ValueError(f"choice has {len(value):,} strings; at most {MAX_CHOICES:,} are allowed")
    _sized("\n".join(value) or "\n", "choice")
    return tuple(value)


def _read_grammar(value: object) -> str:
    text = _sized(value, "grammar")
    operators = sum(map(_LITERALS.sub("", text).count, "&~"))
    if operators > MAX_OPERATORS:
        raise ValueError(
            f"grammar has {operators} operators & and ~; at most {MAX_OPERATORS} are allowed"
        )
    for found in _EMBEDDED_SCHEMA.finditer(text):
        try:
            schema, _ = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"grammar has a %json that no JSON follows: {error}") from None
        check_schema(schema, "grammar's %json")
    return text


def _read_json_object(value: object) -> bool:
    if value is not True:
        raise ValueError(f"json_object must be true or left out, got {shown(value)}")
    return True


_READERS = {
    "json_schema": _read_schema,
    "regex": _read_regex,
    "choice": _read_choice,
    "grammar": _read_grammar,
    "json_object": _read_json_object,
}
