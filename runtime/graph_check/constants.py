"""The constants that a graph file holds or points to."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from math import prod
from typing import Any

from runtime.graph_check.limits import MAX_INLINE_BYTES, GraphLimits
from runtime.graph_check.messages import BYTES, DTYPES, ENTRY, EXTERNAL, TENSOR
from runtime.graph_check.sizes import LARGEST_NUMBER
from runtime.graph_check.spans import UNKNOWN, Span, hull, only
from runtime.graph_check.values import MAX_TOLD, MOST_SPANS, Value
from runtime.graph_check.wire_format import (
    GraphFileError,
    Message,
    integers,
    name_of,
    number,
    parts,
    text,
)

# How `struct` reads the dtypes whose numbers shapes may follow from.
_FORMATS = {"int32": "i", "int64": "q", "float32": "f"}
# The field that has numbers where they are no raw bytes, by dtype; int32_data has all the others'.
_FIELDS = {"float32": "float_data", "int64": "int64_data"}


def read_constants(graph: Message, limits: GraphLimits) -> Iterator[tuple[bytes, Value]]:
    """The constants of a graph by name.

    Raises:
        GraphFileError: if one of them is not as long as its shape says, or points elsewhere than into
            the weights file.
    """
    inline = outside = 0
    for tensor in parts(graph, "initializer", TENSOR):
        name = name_of(tensor)
        told = name[:MAX_TOLD].decode(errors="replace")
        dtype = DTYPES.get(kind := number(tensor, "data_type"))
        if dtype is None:
            raise GraphFileError(f"has the tensor {told!r} of a dtype that bundles do not have: {kind}")
        shape = tuple(integers(tensor.get("dims", [])))
        if len(shape) > 3 or any(size < 1 for size in shape):
            raise GraphFileError(f"has the tensor {told!r} of shape {list(shape[:9])}")
        needed = prod(shape) * BYTES[dtype]
        spans: tuple[Span, ...] = (UNKNOWN,)
        if number(tensor, "data_location") == EXTERNAL:
            _check_external(told, tensor, needed, limits)
            outside += needed
        else:
            size, values = _inline(told, tensor, dtype)
            if size != needed:
                raise GraphFileError(
                    f"has {size} bytes of the tensor {told!r} of shape {list(shape)}, not {needed}"
                )
            inline += size
            spans = _spans(values, shape)
        yield name, Value(dtype, shape, spans, constant=True)
    if inline > MAX_INLINE_BYTES:
        raise GraphFileError(f"holds {inline} bytes of tensors, at most {MAX_INLINE_BYTES} are allowed")
    if outside > limits.most_weight_bytes:
        raise GraphFileError(
            f"reads {outside} bytes of {limits.weights_name}, which has {limits.weights_size}, each of "
            "them several times"
        )


def _inline(told: str, tensor: Message, dtype: str) -> tuple[int, list[Any]]:
    """Bytes of a tensor in the graph file, and its values if shapes may follow from them."""
    kinds = [name for name in ("raw_data", "float_data", "int32_data", "int64_data") if name in tensor]
    if "external_data" in tensor or len(kinds) > 1 or len(tensor.get("raw_data", ())) > 1:
        raise GraphFileError(f"has the tensor {told!r} in several places")
    size, form = BYTES[dtype], _FORMATS.get(dtype)
    if kinds in ([], ["raw_data"]):
        (raw,) = tensor.get("raw_data", [b""])
        if not isinstance(raw, bytes):
            raise GraphFileError(f"is damaged: {told!r} has no bytes")
        if form is None or len(raw) % size:
            return len(raw), []
        return len(raw), list(struct.unpack(f"<{len(raw) // size}{form}", raw))
    if kinds != [_FIELDS.get(dtype, "int32_data")]:
        raise GraphFileError(f"is damaged: {told!r} has numbers of another dtype than its own")
    if dtype == "float32":
        values: list[Any] = []
        for each in tensor["float_data"]:
            packed = each if isinstance(each, bytes) else struct.pack("<f", each)
            if len(packed) % size:
                raise GraphFileError("is damaged: it ends within a number")
            values += struct.unpack(f"<{len(packed) // size}f", packed)
        return size * len(values), values
    values = integers(tensor[kinds[0]])
    if kinds == ["int32_data"] and not all(-(2**31) <= value < 2**31 for value in values):
        raise GraphFileError(f"is damaged: {told!r} has numbers of more than 32 bits")
    return size * len(values), values if form is not None else []


def _spans(values: list[Any], shape: tuple[int, ...]) -> tuple[Span, ...]:
    """What is known of numbers: each of a short list, or what they lie between."""
    whole = [_whole(value) for value in values[: MOST_SPANS + 1]]
    if 0 < len(values) <= MOST_SPANS:
        spans = [UNKNOWN if value is None else only(value) for value in whole]
        return tuple(spans) if len(shape) == 1 else (hull(spans),)
    if values and isinstance(values[0], int) and max(map(abs, values)) <= LARGEST_NUMBER:
        return (Span(min(values), max(values)),)
    return (UNKNOWN,)


def _whole(value: float) -> int | None:
    """A number that is whole and that 32 bits hold, as such."""
    fits = math.isfinite(value) and abs(value) <= LARGEST_NUMBER
    return int(value) if fits and value == int(value) else None


def _check_external(told: str, tensor: Message, needed: int, limits: GraphLimits) -> None:
    if any(name in tensor for name in ("raw_data", "float_data", "int32_data", "int64_data")):
        raise GraphFileError(f"has the tensor {told!r} in several places")
    entries = list(parts(tensor, "external_data", ENTRY))
    place = {text(entry, "key"): text(entry, "value") for entry in entries}
    if len(place) != len(entries) or set(place) != {"location", "offset", "length"}:
        raise GraphFileError(
            f"has the weight {told!r} at {place}; a location, offset and length are known"
        )
    if place["location"] != limits.weights_name:
        raise GraphFileError(
            f"has the weight {told!r} in {place['location']!r}, and only {limits.weights_name!r} "
            "may be read"
        )
    numbers = [place["offset"], place["length"]]
    if not all(digits.isascii() and digits.isdigit() and len(digits) < 19 for digits in numbers):
        raise GraphFileError(f"has the weight {told!r} at {place}, which are no numbers")
    offset, length = map(int, numbers)
    if length != needed:
        raise GraphFileError(f"has {length} bytes of the weight {told!r}, not {needed}")
    if offset + length > limits.weights_size:
        raise GraphFileError(
            f"has the weight {told!r} up to byte {offset + length} of {limits.weights_name}, which has "
            f"{limits.weights_size}"
        )
