"""What may be asked for, and what is refused before it is compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.structured.description import StructuredOutput
from runtime.structured.repetitions import most_repetitions


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"json_schema": {"type": "string"}}, "json_schema"),
        ({"json_schema": '{"type": "string"}'}, "json_schema"),
        ({"regex": "a+"}, "regex"),
        ({"choice": ["a", "b"]}, "choice"),
        ({"grammar": 'start: "a"'}, "grammar"),
        ({"grammar": 'start: "' + "&" * 50 + '" /~&/ "' + "~" * 50 + '"'}, "grammar"),
        ({"json_object": True, "regex": None}, "json_object"),
    ],
)
def test_a_description_is_one_of_five_and_the_same_after_json(
    values: dict[str, Any], kind: str
) -> None:
    description = StructuredOutput(**values)
    assert description.kind == kind
    again = StructuredOutput(**json.loads(json.dumps(description.get_config())))
    assert again == description
    assert hash(again) == hash(description)


def test_a_schema_is_the_same_as_a_mapping_and_as_text() -> None:
    schema = {"type": "object", "properties": {"b": {"const": "ü"}, "a": {}}}
    assert StructuredOutput(json_schema=schema) == StructuredOutput(
        json_schema=json.dumps(schema, indent=1)
    )


def nested(levels: int) -> Any:
    return {"items": nested(levels - 1)} if levels else {}


def doubling(part: Any) -> Any:
    definitions = {f"a{i}": part({"$ref": f"#/$defs/a{i + 1}"}) for i in range(30)}
    return {"$ref": "#/$defs/a0", "$defs": definitions | {"a30": {"type": "string", "pattern": "a+"}}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "is one of json_schema, regex, choice, grammar, json_object, got none of them"),
        ({"json_object": False}, "got none of them"),
        ({"regex": "a", "choice": ["a"]}, "got regex and choice"),
        ({"json_object": 1}, "json_object must be true or left out, got 1"),
        ({"regex": ""}, "regex must be a text that is not empty, got ''"),
        ({"regex": 5}, "regex must be a text that is not empty, got 5"),
        ({"regex": "\ud800"}, "regex holds half a character"),
        ({"regex": "a" * 65_537}, "regex has 65,537 bytes; at most 65,536 are allowed"),
        ({"regex": "(a{1,1000}){1,1000}"}, "regex repeats a part of it 1,000,000 times"),
        ({"choice": []}, "choice must have at least one string, got none"),
        ({"choice": "ab"}, "choice must be a list of strings, got 'ab'"),
        ({"choice": ["a", 1]}, "choice must be a list of strings"),
        ({"choice": ["a"] * 5001}, "choice has 5,001 strings; at most 5,000"),
        ({"grammar": "start: %json a"}, "grammar has a %json that no JSON follows"),
        ({"grammar": 'start: %json {"type": 5}'}, "grammar's %json.type must be one or several of"),
        (
            {"grammar": "start: T\nT: " + " & ".join(f"/.*{i}.*/" for i in range(30))},
            "grammar has 29 operators",
        ),
        ({"json_schema": 5}, "json_schema must be a mapping or JSON text, got 5"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": '{"a": 1, "a": 2}'}, "it gives the name 'a' twice"),
        ({"json_schema": "[]"}, r"json_schema must be a JSON Schema that is an object, got \[\]"),
        ({"json_schema": {"enum": [{1}]}}, "json_schema must hold what JSON has"),
        ({"json_schema": {"const": float("nan")}}, "json_schema must hold what JSON has"),
    ],
)
def test_what_is_no_description_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StructuredOutput(**values)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strnig"}, "json_schema.type must be one or several of null, .*got 'strnig'"),
        ({"properties": {"a": {"minLength": "x"}}}, r"properties\['a'\].minLength must be a whole"),
        ({"properties": 5}, "json_schema.properties must be an object of schemas, got 5"),
        ({"items": {"anyOf": {}}}, "json_schema.items.anyOf must be a list of schemas"),
        ({"anyOf": [{}, 5]}, r"json_schema.anyOf\[1\] must be a schema, .*, got 5"),
        ({"required": "a"}, "json_schema.required must be a list of strings, got 'a'"),
        ({"enum": []}, "json_schema.enum must be a list of at least one value"),
        ({"exclusiveMinimum": True}, "json_schema.exclusiveMinimum must be a number, got True"),
        ({"multipleOf": 0}, "json_schema.multipleOf must be a number above 0, got 0"),
        ({"$ref": "http://example.org/schema"}, "must be a place in the schema itself"),
        ({"minProperties": 2}, "minProperties is 2, which is not supported above 1"),
        (nested(101), "has more than 100 brackets in each other"),
        ({"pattern": "(a{100}b){200}"}, "json_schema.pattern repeats a part of it 20,000 times"),
        ({"multipleOf": 7919}, "least common multiple .* at most 5,000"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "least common multiple"),
        ({"patternProperties": {f"^{i}": {} for i in range(17)}}, "17 or more patternProperties"),
        ({"properties": {f"{i}": {} for i in range(401)}}, "401 properties that are not required"),
        ({"allOf": [{"pattern": "a" * i} for i in range(1, 31)]}, "9 or more patterns and formats"),
        (doubling(lambda ref: {"allOf": [ref, ref]}), "10,001 or more subschemas"),
        (doubling(lambda ref: {"properties": {"x": {"allOf": [ref, ref]}}}), "10,001 or more"),
        (doubling(lambda ref: {"properties": {k: {"type": "object", **ref} for k in "xy"}}), "10,001"),
        (doubling(lambda ref: {"properties": {"ab": ref}, "patternProperties": {"^a": ref}}), "10,001"),
    ],
)  # fmt: skip
def test_what_is_no_schema_or_explodes_is_refused_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StructuredOutput(json_schema=schema)


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        ("abc*d+", 1),
        ("a{3}b{2}", 3),
        ("(a{2,4}b){5}", 20),
        ("(a{2,})", 2),
        ("((a|b{3}){2}c){,4}", 24),
        (r"\{5}[{]{6}\p{Greek}{7}", 7),
        (r"[]a{9}]{2}", 2),
        (r"\(a{3}\){5}", 5),
        ("(a{1,1000}){1,1000}", 10**6),
        ("a{99999999999999}", 10**9),
    ],
)
def test_repetitions_in_each_other_are_counted(pattern: str, most: int) -> None:
    assert most_repetitions(pattern) == most
