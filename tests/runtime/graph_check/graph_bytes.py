"""Graph files as bytes, put together and changed without ONNX."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOY = Path(__file__).parents[2] / "data" / "toy_bundle"
DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10}
FORMATS = {"float32": "f", "int32": "i", "int64": "q", "uint8": "B", "int8": "b"}
# Fields of a model and of a graph.
GRAPH, OPSET, NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO = 7, 8, 1, 5, 11, 12, 13

Field = tuple[int, bytes | int | float]


def varint(number: int) -> bytes:
    number %= 2**64
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def field(number: int, value: bytes | str | int | float) -> bytes:
    """A field of a message."""
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def message(*fields: Field | tuple[int, str]) -> bytes:
    return b"".join(field(number, value) for number, value in fields)


def attribute(name: str, value: int | float | list[int], kind: int | None = None) -> bytes:
    """An attribute, of the kind of its value unless another is given."""
    if isinstance(value, list):
        return message((1, name), *[(8, each) for each in value], (20, kind or 7))
    place, number = (2, 1) if isinstance(value, float) else (3, 2)
    return message((1, name), (place, value), (20, kind or number))


def node(
    kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
) -> bytes:
    return message(
        *[(1, name) for name in inputs],
        *[(2, name) for name in outputs],
        (4, kind),
        *[(5, attribute(name, value)) for name, value in attributes.items()],
        (7, domain),
    )


def tensor(name: str, dtype: str, dims: list[int], values: list[Any] | bytes) -> bytes:
    """A constant of the file; `values` are raw bytes where they are bytes."""
    if not isinstance(values, bytes):
        values = struct.pack(f"<{len(values)}{FORMATS[dtype]}", *values)
    return message(*[(1, size) for size in dims], (2, DTYPES[dtype]), (8, name), (9, values))


def weight(name: str, dtype: str, dims: list[int], offset: int, length: int) -> bytes:
    """A constant of the weights file."""
    place = {"location": "weights.bin", "offset": str(offset), "length": str(length)}
    entries = [(13, message((1, key), (2, value))) for key, value in place.items()]
    return message(*[(1, size) for size in dims], (2, DTYPES[dtype]), (8, name), *entries, (14, 1))


def told(name: str, dtype: str, dims: list[int | str]) -> bytes:
    """What a file tells of a value."""
    sizes = [(1, message((1, dim) if isinstance(dim, int) else (2, dim))) for dim in dims]
    return message((1, name), (2, message((1, message((1, DTYPES[dtype]), (2, message(*sizes)))))))


def fields(data: bytes) -> list[Field]:
    """The fields of a message in their order."""
    found: list[Field] = []
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(data):
        tag = number()
        if tag & 7 == 0:
            found.append((tag >> 3, number()))
        else:
            size = number() if tag & 7 == 2 else 4
            part = data[position : position + size]
            position += size
            found.append((tag >> 3, part if tag & 7 == 2 else struct.unpack("<f", part)[0]))
    return found


def changed(data: bytes, change: Callable[[list[Field]], object]) -> bytes:
    """A model whose graph has other fields."""
    model = fields(data)
    place = next(i for i, (number, _) in enumerate(model) if number == GRAPH)
    graph = fields(bytes(model[place][1]))  # type: ignore[arg-type]
    change(graph)
    model[place] = (GRAPH, message(*graph))
    return message(*model)


def with_fields(data: bytes, *more: tuple[int, bytes], first: bool = False) -> bytes:
    """A model whose graph has more fields, nodes before or after its own."""

    def add(graph: list[Field]) -> None:
        graph[:] = [*more, *graph] if first else [*graph, *more]

    return changed(data, add)


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    """A model with some bytes of its graph's fields changed."""

    def change(graph: list[Field]) -> None:
        found = [i for i, (_, value) in enumerate(graph) if isinstance(value, bytes) and old in value]
        assert found
        for i in found:
            number, value = graph[i]
            assert isinstance(value, bytes)
            graph[i] = (number, value.replace(old, new))

    return changed(data, change)
