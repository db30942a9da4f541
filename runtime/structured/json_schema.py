"""What is looked at in a JSON Schema before llguidance compiles it.

llguidance says by itself which keywords and formats it does not support. Here are refused values that
are no JSON Schema (draft 2020-12, https://json-schema.org/draft/2020-12), with the place where they
are, what it would accept and not keep to, and what would take it long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from graphs.shown import shown
from runtime.structured.repetitions import check_repetitions

MAX_NESTING = 100  # brackets in each other; llguidance reads up to 127
MAX_SUBSCHEMAS = 1000  # that hold for one value, references followed
MAX_PATTERNS = 16  # of properties of one object: each pair is compared
MAX_MULTIPLE = 5000  # least common multiple for one value; takes as many states

_TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_types(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(name, str) and name in _TYPES for name in values)


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "type": (_are_types, f"one or several of {', '.join(_TYPES)}"),
    "required": (_are_texts, "a list of strings"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list of at least one value"),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),  # type: ignore[operator]
    **{
        name: (_is_number, "a number")
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    },
    **{
        f"{end}{what}": (_is_size, "a whole number of at least 0")
        for end in ("min", "max")
        for what in ("Length", "Items", "Properties")
    },
    **{
        name: (_is_text, "a string")
        for name in ("pattern", "format", "$ref", "$schema", "$id", "$anchor", "$comment", "title")
    },
    "description": (_is_text, "a string"),
    **{name: (lambda value: isinstance(value, dict), "an object of schemas") for name in _MAPS},
    **{name: (lambda value: isinstance(value, list), "a list of schemas") for name in _LISTS},
}


def check_schema(schema: Any, name: str) -> None:
    """Looks through a parsed JSON Schema.

    Args:
        schema: an object, as `json` reads it.
        name: of the field that it was given for.

    Raises:
        ValueError: if it is no JSON Schema, or one of those that the module's description names.
    """
    if not isinstance(schema, dict):
        raise ValueError(f"{name} must be a JSON Schema that is an object, got {shown(schema)}")
    if _nesting(schema) > MAX_NESTING:
        raise ValueError(f"{name} has more than {MAX_NESTING} brackets in each other")
    sizes = _Sizes(schema, name)
    for place, part in _subschemas(schema, name):
        if isinstance(part, bool):
            continue
        if not isinstance(part, dict):
            raise ValueError(f"{place} must be a schema, an object or true or false, got {shown(part)}")
        _check_keywords(part, place)
        sizes.check(part, place)


def _nesting(value: object) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_NESTING:
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth - 1


def _subschemas(schema: Any, place: str) -> Iterator[tuple[str, Any]]:
    """A schema and all in it, outer ones first, each with its place."""
    yield place, schema
    if not isinstance(schema, dict):
        return
    for key in _MAPS:
        for name, part in schema.get(key, {}).items():
            yield from _subschemas(part, f"{place}.{key}[{shown(name)}]")
    for key in (*_LISTS, *_SINGLE):
        part = schema.get(key)
        if isinstance(part, list):
            for i, item in enumerate(part):
                yield from _subschemas(item, f"{place}.{key}[{i}]")
        elif part is not None:
            yield from _subschemas(part, f"{place}.{key}")


def _check_keywords(schema: dict[str, Any], place: str) -> None:
    for key, (is_valid, allowed) in _RULES.items():
        if key in schema and not is_valid(schema[key]):
            raise ValueError(f"{place}.{key} must be {allowed}, got {shown(schema[key])}")
    patterns = [("pattern", schema["pattern"])] if "pattern" in schema else []
    patterns += [("patternProperties", pattern) for pattern in schema.get("patternProperties", ())]
    for key, pattern in patterns:
        check_repetitions(pattern, f"{place}.{key}")
    reference = schema.get("$ref", "#")
    if not (reference == "#" or reference.startswith("#/")):
        raise ValueError(
            f"{place}.$ref must be a place in the schema itself, '#/$defs/...', got {shown(reference)}"
        )
    # A name may be written twice, and counts once when it is read.
    least = schema.get("minProperties", 0)
    if least > max(1, len(set(schema.get("required", ())))):
        raise ValueError(
            f"{place}.minProperties is {shown(least)}, which is not supported above 1 and the number of "
            "required properties; name the properties in required"
        )


class _Sizes:
    """What becomes of schemas when all that holds for one value is put together."""

    def __init__(self, root: dict[str, Any], name: str) -> None:
        self._root = root
        self._name = name
        self._known: dict[int, tuple[int, int, int]] = {}

    def check(self, schema: dict[str, Any], place: str) -> None:
        """Raises `ValueError` if that is too much."""
        subschemas, patterns, multiple = self._of(schema)
        for what, size, most in (
            ("subschemas for one value, references followed", subschemas, MAX_SUBSCHEMAS),
            ("patternProperties for one object", patterns, MAX_PATTERNS),
            ("as the least common multiple of multipleOf, zeros at its end left out", multiple, MAX_MULTIPLE),
        ):
            if size > most:
                raise ValueError(f"{place} has {shown(size)} {what}; at most {most:,} are allowed")

    def _of(self, schema: Any, depth: int = 0) -> tuple[int, int, int]:
        """Numbers of subschemas and of patterns, and the digits of the least common multiple."""
        if not isinstance(schema, dict):
            return 1, 0, 1
        if id(schema) not in self._known:
            if depth > MAX_NESTING:
                raise ValueError(f"{self._name} has more than {MAX_NESTING} references in each other")
            self._known[id(schema)] = (1, 0, 1)  # met again inside itself: llguidance says what it thinks
            subschemas, multiple = 1, 1
            patterns = len(_items(schema.get("patternProperties")))
            if _is_number(schema.get("multipleOf")):
                digits = Decimal(str(schema["multipleOf"])).normalize().as_tuple().digits
                multiple = int("".join(map(str, digits)))
            parts = [part for key in ("allOf", "anyOf", "oneOf") for part in _items(schema.get(key))]
            if "$ref" in schema:
                parts.append(self._target(schema["$ref"]))
            for part in parts:
                more, more_patterns, other = self._of(part, depth + 1)
                subschemas += more
                patterns += more_patterns
                multiple = math.lcm(multiple, other)
            # Capped, as references that double each other make a number of as many digits.
            caps = (MAX_SUBSCHEMAS + 1, MAX_PATTERNS + 1, MAX_MULTIPLE + 1)
            sizes = zip((subschemas, patterns, multiple), caps, strict=True)
            self._known[id(schema)] = tuple(min(size, cap) for size, cap in sizes)  # type: ignore[assignment]
        return self._known[id(schema)]

    def _target(self, reference: object) -> object:
        """What a JSON Pointer (RFC 6901) leads to, `None` for nothing."""
        value: Any = self._root
        for step in str(reference).split("/")[1:]:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            elif isinstance(value, dict) and step in value:
                value = value[step]
            else:
                return None
        return value


def _items(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, dict)) else []
