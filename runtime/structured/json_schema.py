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
MAX_SUBSCHEMAS = 10_000  # that are put together, references followed
MAX_DEPTH = 300  # of them in each other
MAX_PATTERNS = 16  # of properties of one object, each of which is compared with each
MAX_STRING_PATTERNS = 8  # and formats that one string has to match
MAX_OPTIONAL = 400  # properties that are not required: more are too many ways to go on
MAX_MULTIPLE = 5000  # least common multiple for one value; takes as many states

_TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")
_NO_LIMITS = (*_MAPS[2:], *_LISTS[:3], "$ref", "$schema", "$id", "$anchor", "$comment", "title",
              "description", "default", "examples")  # fmt: skip

_Size = tuple[int, int, int, int]  # subschemas, patternProperties, least common multiple, patterns


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
    """Brackets in each other; not all are counted where they are too many."""
    depth, level = 0, [value]
    while depth <= MAX_NESTING and (level := [v for v in level if isinstance(v, (dict, list))]):
        depth += 1
        level = [inner for outer in level for inner in _items(outer)]
    return depth


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
    optional = len(schema.get("properties", {}).keys() - set(schema.get("required", ())))
    if optional > MAX_OPTIONAL:
        raise ValueError(
            f"{place} has {optional:,} properties that are not required; at most {MAX_OPTIONAL} are "
            "allowed"
        )
    # A name may be written twice, and counts once when it is read.
    least = schema.get("minProperties", 0)
    if least > max(1, len(set(schema.get("required", ())))):
        raise ValueError(
            f"{place}.minProperties is {shown(least)}, which is not supported above 1 and the number "
            "of required properties; name the properties in required"
        )


class _Sizes:
    """What becomes of schemas where llguidance puts several that hold for one value together.

    It does so with all that is in them, references followed, and bounds neither the time for strings'
    patterns nor the states for multiples.
    """

    def __init__(self, root: dict[str, Any], name: str) -> None:
        self._root = root
        self._name = name
        self._known: dict[int, _Size] = {}

    def check(self, schema: dict[str, Any], place: str) -> None:
        """Raises `ValueError` if that is too much."""
        size = self._of(schema) if _is_put_together(schema) else _own_size(schema)
        for what, number, most in (
            ("subschemas to put together, references followed", size[0], MAX_SUBSCHEMAS),
            ("patternProperties to tell apart", size[1], MAX_PATTERNS),
            ("for the least common multiple of its multipleOf", size[2], MAX_MULTIPLE),
            ("patterns and formats for one string", size[3], MAX_STRING_PATTERNS),
        ):
            if number > most:
                raise ValueError(f"{place} has {number:,} or more {what}; at most {most:,} are allowed")

    def _of(self, schema: Any, depth: int = 0) -> _Size:
        """The size of a schema and all in it; once for what is in itself."""
        if not isinstance(schema, dict):
            return 1, 0, 1, 0
        if id(schema) not in self._known:
            if depth > MAX_DEPTH:
                raise ValueError(f"{self._name} has more than {MAX_DEPTH} schemas in each other")
            self._known[id(schema)] = (1, 0, 1, 0)
            subschemas, properties, multiple, here = _own_size(schema)
            below = 0  # patterns for a string in the value
            for key, part in self._parts(schema):
                more, more_properties, other, strings = self._of(part, depth + 1)
                # Capped, as references that double each other make numbers of any length.
                subschemas = min(subschemas + more, MAX_SUBSCHEMAS + 1)
                properties = min(properties + more_properties, MAX_PATTERNS + 1)
                multiple = min(math.lcm(multiple, other), MAX_MULTIPLE + 1)
                if key in ("allOf", "$ref", "patternProperties"):
                    here = min(here + strings, MAX_STRING_PATTERNS + 1)
                else:
                    below = max(below, strings)
            strings = min(here + below, MAX_STRING_PATTERNS + 1)
            self._known[id(schema)] = (subschemas, properties, multiple, strings)
        return self._known[id(schema)]

    def _parts(self, schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """What is put together with a schema, each with its keyword."""
        for key in (*_MAPS[:2], *_LISTS):
            yield from ((key, part) for part in _items(schema.get(key)))
        for key in _SINGLE:
            part = schema.get(key)
            yield from ((key, item) for item in (part if isinstance(part, list) else [part]))
        if "$ref" in schema:
            yield "$ref", self._target(schema["$ref"])

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


def _is_put_together(schema: dict[str, Any]) -> bool:
    """Whether several parts of a schema hold for the same value."""
    parts = len(_items(schema.get("allOf")))
    parts += sum(key in schema for key in ("$ref", "anyOf", "oneOf"))
    parts += "patternProperties" in schema and "properties" in schema
    return parts + any(key not in _NO_LIMITS for key in schema) > 1


def _own_size(schema: dict[str, Any]) -> _Size:
    """Of a schema without what is in it; of `multipleOf` the digits without zeros at their end."""
    multiple = 1
    if _is_number(schema.get("multipleOf")):
        digits = Decimal(str(schema["multipleOf"])).normalize().as_tuple().digits
        multiple = min(int("".join(map(str, digits))), MAX_MULTIPLE + 1)
    properties = min(len(_items(schema.get("patternProperties"))), MAX_PATTERNS + 1)
    return 1, properties, multiple, ("pattern" in schema) + ("format" in schema)


def _items(value: object) -> list[Any]:
    """The parts of a list, of a mapping, or of what is neither."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
