"""Texts under 200 schemas, checked by an implementation that is not llguidance."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import uuid
from typing import Any

import numpy as np
import pytest

from runtime.structured.constraint import GrammarConstraint
from tests.runtime.structured.sampling import END, allowed, closing, compiled, draw, tiny_tokenizer
from tests.runtime.structured.schemas import all_schemas

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

SCHEMAS = all_schemas(200)
TEXTS = 4  # under each schema
MOST = 150  # tokens


def rfc3339(text: str) -> str:
    """As Python's datetime reads it, without a year 0, leap seconds and parts of seconds."""
    return re.sub(r"^0000", "2000", re.sub(r":60", ":59", re.sub(r"\.\d+", "", text.upper())))


FORMATS = {
    "date": lambda text: datetime.date.fromisoformat(rfc3339(text)),
    "time": lambda text: datetime.time.fromisoformat(rfc3339(text)),
    "date-time": lambda text: datetime.datetime.fromisoformat(rfc3339(text)),
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
    "email": re.compile(r"[^@]+@[^@]+").fullmatch,
    "hostname": re.compile(r"(?!-)[a-zA-Z0-9.-]+(?<!-)").fullmatch,
}


def format_checker() -> Any:
    checker = jsonschema.FormatChecker(formats=())
    for name, check in FORMATS.items():
        checker.checks(name, raises=ValueError)(
            lambda text, c=check: not isinstance(text, str) or bool(c(text))
        )
    return checker


def validator(schema: Any) -> Any:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=format_checker())


def test_the_schemas_are_two_hundred_different_ones() -> None:
    assert len({json.dumps(schema) for schema in SCHEMAS}) == 200


@pytest.mark.parametrize(
    "first",
    [
        0,
        120,
        *(pytest.param(n, marks=pytest.mark.slow) for n in range(0, 200, 20) if n not in (0, 120)),
    ],
)
def test_complete_texts_are_valid_and_cut_ones_are_beginnings(first: int) -> None:
    """Of all texts, most end by themselves."""
    tokenizer = tiny_tokenizer()
    complete = 0
    for number in range(first, first + 20):
        schema = SCHEMAS[number]
        grammar = compiled(json_schema=schema)
        check = validator(schema)
        for text in range(TEXTS):
            generator = np.random.default_rng([number, text])
            constraint = GrammarConstraint(grammar, {END})
            new = draw(constraint, generator, MOST, bias=closing(tokenizer))
            again = GrammarConstraint(grammar, {END})
            if new[-1] == END:
                complete += 1
                assert again.accepting(new)
                check.validate(json.loads(tokenizer.decode(new[:-1])))
            else:
                assert allowed(again, new)  # raises where the text is no beginning
    assert complete >= 0.8 * 20 * TEXTS


def test_what_does_not_follow_a_schema_is_no_text_of_it() -> None:
    tokenizer = tiny_tokenizer()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    constraint = GrammarConstraint(compiled(json_schema=schema), {END})
    assert constraint.accepting(tokenizer.encode('{"a": 5}'))
    assert not constraint.accepting(tokenizer.encode('{"a": 5'))
    with pytest.raises(RuntimeError, match="cannot be followed through"):
        constraint.accepting(tokenizer.encode('{"a": "5"}'))


def test_properties_come_in_the_order_of_the_schema_given_as_a_mapping_or_text() -> None:
    tokenizer = tiny_tokenizer()
    schema = {
        "type": "object",
        "properties": {"z": {"const": 1}, "a": {"const": 2}},
        "required": ["a", "z"],
        "additionalProperties": False,
    }
    for given in (schema, json.dumps(schema, indent=2)):
        constraint = GrammarConstraint(compiled(json_schema=given), {END})
        new = draw(constraint, np.random.default_rng(0), MOST, bias=closing(tokenizer))
        assert list(json.loads(tokenizer.decode(new[:-1]))) == ["z", "a"]


def test_any_object() -> None:
    tokenizer = tiny_tokenizer()
    grammar = compiled(json_object=True)
    for seed in range(10):
        constraint = GrammarConstraint(grammar, {END})
        new = draw(constraint, np.random.default_rng(seed), MOST, bias=closing(tokenizer))
        if new[-1] == END:
            assert isinstance(json.loads(tokenizer.decode(new[:-1])), dict)
