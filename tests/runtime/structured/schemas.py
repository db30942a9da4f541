"""JSON Schemas of all kinds that are supported: from keywords, and from how they are put together."""

from __future__ import annotations

import itertools
from typing import Any

Schema = dict[str, Any]

TEXTS: list[Schema] = [
    {"type": "string", **rest}
    for rest in (
        {"maxLength": 0},
        {"maxLength": 7},
        {"minLength": 2, "maxLength": 3},
        {"minLength": 5, "maxLength": 5},
        {"pattern": "^[a-c]{2,4}$"},
        {"pattern": r"^\d{3}-\d{4}$"},
        {"pattern": "^(ja|nein|vielleicht)$"},
        {"pattern": r"^[^aeiou\s]{1,6}$"},
        {"pattern": "^[α-ω]{1,5}$"},
        {"pattern": "^x?y{0,2}z$", "minLength": 2},
        {"pattern": r"^#[0-9a-fA-F]{6}$"},
        {"pattern": r"^\\\"\/$"},
        {"format": "date"},
        {"format": "time"},
        {"format": "date-time"},
        {"format": "ipv4"},
        {"format": "ipv6"},
        {"format": "uuid"},
        {"format": "email", "maxLength": 30},
        {"format": "hostname", "maxLength": 20},
        {"enum": ["Straße", "naïve", "日本", "😀", 'tab\tquote"back\\slash', ""]},
        {"const": "\u0001 control \u007f"},
    )
]
NUMBERS: list[Schema] = [
    {"type": kind, **rest}
    for kind, rest in (
        ("integer", {"minimum": 0, "maximum": 9}),
        ("integer", {"minimum": -5, "maximum": 5}),
        ("integer", {"minimum": 98, "maximum": 1203}),
        ("integer", {"exclusiveMinimum": 0, "exclusiveMaximum": 3}),
        ("integer", {"maximum": -10, "minimum": -1000}),
        ("integer", {"multipleOf": 7, "minimum": 0, "maximum": 1000}),
        ("integer", {"enum": [1, 22, 333]}),
        ("integer", {"const": 0}),
        ("number", {"minimum": 0, "maximum": 1}),
        ("number", {"minimum": -0.5, "exclusiveMaximum": 0.25}),
        ("number", {"exclusiveMinimum": 1.5, "maximum": 1.75}),
        ("number", {"minimum": 1e3, "maximum": 1e6}),
        ("number", {"multipleOf": 0.5, "minimum": 0, "maximum": 20}),
        ("number", {"const": -2.5}),
        ("number", {"minimum": 10, "multipleOf": 25}),
    )
]
SMALL: list[Schema] = [
    {"type": "null"},
    {"type": "boolean"},
    {"const": True},
    {"enum": [None, False, 3, "three", [1, 2], {"k": []}]},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
    {"type": ["string", "boolean"], "maxLength": 3},
]
LEAVES = TEXTS + NUMBERS + SMALL


def _lists(item: Schema, other: Schema) -> list[Schema]:
    return [
        {"type": "array", "items": item, "maxItems": 3},
        {"type": "array", "items": item, "minItems": 2, "maxItems": 2},
        {"type": "array", "prefixItems": [item, other], "items": False, "minItems": 1},
        {"type": "array", "prefixItems": [other], "items": item, "minItems": 2, "maxItems": 4},
    ]


def _objects(one: Schema, two: Schema) -> list[Schema]:
    return [
        {
            "type": "object",
            "properties": {"one": one, "two": two},
            "required": ["one"],
            "additionalProperties": False,
        },
        {"type": "object", "properties": {"größe": one}, "required": ["größe", "b"],
         "additionalProperties": two},
        {"type": "object", "additionalProperties": one, "maxProperties": 2},
        {"type": "object", "additionalProperties": two, "minProperties": 1, "maxProperties": 1},
        {
            "type": "object",
            "patternProperties": {"^x-[a-z]{1,3}$": one, "^y$": two},
            "additionalProperties": False,
            "maxProperties": 2,
        },
        {"type": "object", "properties": {"in": {"type": "object", "properties": {"deep": one},
         "required": ["deep"], "additionalProperties": False}}, "required": ["in"],
         "additionalProperties": False},
    ]  # fmt: skip


def _combined(one: Schema, two: Schema) -> list[Schema]:
    pair = {"type": "object", "required": ["kind"], "additionalProperties": False}
    return [
        {"anyOf": [one, {"type": "array", "items": two, "maxItems": 2}]},
        {"oneOf": [
            {**pair, "properties": {"kind": {"const": "one"}, "value": one}},
            {**pair, "properties": {"kind": {"const": "two"}, "value": two}},
        ]},
        {"allOf": [
            {"type": "object", "properties": {"a": one}, "required": ["a"], "maxProperties": 2},
            {"properties": {"b": two}, "required": ["b"]},
        ]},
        {"$defs": {"x": one, "a/b~c": {"type": "array", "items": {"$ref": "#/$defs/x"}, "maxItems": 2}},
         "type": "object", "properties": {"p": {"$ref": "#/$defs/a~1b~0c"}, "q": {"$ref": "#/$defs/x"}},
         "required": ["q"], "additionalProperties": False},
    ]  # fmt: skip


TREE: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "a tree",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 4},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def all_schemas(count: int) -> list[Schema]:
    """The first `count` of them, every kind among them."""
    pairs = list(zip(LEAVES, [*LEAVES[19:], *LEAVES[:19]], strict=True))
    kinds = [lambda a, b, i=i: _lists(a, b)[i] for i in range(4)]
    kinds += [lambda a, b, i=i: _objects(a, b)[i] for i in range(6)]
    kinds += [lambda a, b, i=i: _combined(a, b)[i] for i in range(4)]
    pairs_and_kinds = zip(itertools.cycle(pairs), itertools.cycle(kinds), strict=False)
    first = [*LEAVES, TREE, {"type": "object", "maxProperties": 3}]
    rest = itertools.islice(pairs_and_kinds, count - len(first))
    return [*first, *(kind(*pair) for pair, kind in rest)]
