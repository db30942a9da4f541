"""Protobuf's wire format, as far as ONNX uses it."""

from __future__ import annotations

import pytest

from runtime.graph_check.wire_format import (
    GraphFileError,
    integers,
    name_of,
    names_of,
    number,
    read_message,
    text,
)

NAMES = {1: "a", 2: "b", 300: "c"}


def test_fields_by_name() -> None:
    data = b"\x08\x96\x01\x12\x02hi\x08\x05\xe2\x12\x01x\x15\x00\x00\x80\x3f"
    assert read_message(data, NAMES) == {"a": [150, 5], "b": [b"hi", 1.0], "c": [b"x"]}
    assert read_message(b"", NAMES) == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x18\x01", "holds what no exported graph does: field 3 of a message"),
        (b"\x08", "it ends within a field"),
        (b"\x12\x05abc", "it ends within a field"),
        (b"\x15\x00", "it ends within a field"),
        (b"\x08" + b"\xff" * 11, "a number has more than 64 bits"),
        (b"\x08" + b"\x81" * 9 + b"\x02", "a number has more than 64 bits"),
        (b"\x08" + b"\x80" * 9 + b"\x02", "a number has more than 64 bits"),
        (b"\x0b", "a field has the wire type 3"),
        (b"\x09" + bytes(8), "a field has the wire type 1"),
    ],
)
def test_damaged_messages(data: bytes, message: str) -> None:
    with pytest.raises(GraphFileError, match=message):
        read_message(data, NAMES)


def test_the_largest_number() -> None:
    assert read_message(b"\x08" + b"\xff" * 9 + b"\x01", NAMES) == {"a": [2**64 - 1]}


def test_values_of_fields() -> None:
    message = {"name": [b"x", "é".encode()], "count": [7], "bad": [b"\xff"], "float": [1.5]}
    assert text(message, "name") == "é"  # the last one counts
    assert (text(message, "missing"), number(message, "missing")) == ("", 0)
    assert number(message, "count") == 7
    assert integers([5, 2**64 - 1, b"\x01\xac\x02"]) == [5, -1, 1, 300]
    assert (name_of({"name": [b"x", b"\xff"]}), name_of({})) == (b"\xff", b"")
    assert (names_of({"name": [b"x", b"\xff"]}, "name"), names_of({}, "name")) == ([b"x", b"\xff"], [])
    for wrong in (
        lambda: text(message, "count"),
        lambda: text(message, "bad"),
        lambda: number(message, "name"),
        lambda: number(message, "float"),
        lambda: names_of(message, "count"),
        lambda: integers([1.5]),
        lambda: integers([b"\xff"]),
    ):
        with pytest.raises(GraphFileError, match="is damaged"):
            wrong()
