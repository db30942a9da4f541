"""Protobuf's wire format, as far as ONNX uses it: https://protobuf.dev/programming-guides/encoding"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

# Values by the names of their fields: numbers, or bytes of text and of messages.
Message = dict[str, list[Any]]


class GraphFileError(ValueError):
    """A graph file is damaged, or holds what no export of this project does."""


def read_message(data: bytes, names: dict[int, str]) -> Message:
    """Splits a message into its fields: numbers and bytes by name.

    Raises:
        GraphFileError: if it is damaged, or has a field that is not named.
    """
    found: Message = {}
    position, end = 0, len(data)
    try:
        while position < end:
            # Most numbers have one byte: a call for each would take twice as long.
            tag = data[position]
            position += 1
            if tag > 127:
                tag, position = _varint(data, position - 1)
            name, kind = names[tag >> 3], tag & 7
            value: Any
            if kind == 2:
                size = data[position]
                position += 1
                if size > 127:
                    size, position = _varint(data, position - 1)
                value = data[position : position + size]
                position += size
            elif kind == 0:
                value, position = _varint(data, position)
            elif kind == 5:
                (value,) = struct.unpack_from("<f", data, position)
                position += 4
            else:
                raise GraphFileError(f"is damaged: a field has the wire type {kind}")
            if name in found:
                found[name].append(value)
            else:
                found[name] = [value]
    except KeyError as error:
        raise GraphFileError(f"holds what no exported graph does: field {error} of a message") from None
    except (IndexError, struct.error):
        raise GraphFileError("is damaged: it ends within a field") from None
    if position != end:
        raise GraphFileError("is damaged: it ends within a field")
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 128:
        return byte, position + 1
    value, shift = byte & 127, 7
    while byte >= 128:
        position += 1
        if shift > 63:
            raise GraphFileError("is damaged: a number has more than 64 bits")
        byte = data[position]
        value |= (byte & 127) << shift
        shift += 7
    if value >= 2**64:  # of which others take the lower 64
        raise GraphFileError("is damaged: a number has more than 64 bits")
    return value, position + 1


def text(message: Message, name: str) -> str:
    """The last value of a field of text, as protobuf reads it."""
    value = message.get(name, [b""])[-1]
    if not isinstance(value, bytes):
        raise GraphFileError(f"is damaged: {name} is no text")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise GraphFileError(f"is damaged: {name} is not UTF-8 text") from None


def name_of(message: Message) -> bytes:
    """A name as it is in the file: ONNX Runtime does not decode it either."""
    return names_of(message, "name")[-1] if "name" in message else b""


def names_of(message: Message, field: str) -> list[bytes]:
    """All names of a field."""
    found = message.get(field, [])
    for name in found:
        if not isinstance(name, bytes):
            raise GraphFileError(f"is damaged: {field} is no text")
    return found


def number(message: Message, name: str) -> int:
    value = message.get(name, [0])[-1]
    if not isinstance(value, int):
        raise GraphFileError(f"is damaged: {name} is no number")
    return value


def parts(message: Message, name: str, names: dict[int, str]) -> Iterator[Message]:
    for part in message.get(name, ()):
        if not isinstance(part, bytes):
            raise GraphFileError(f"is damaged: {name} is no message")
        yield read_message(part, names)


def only(message: Message, name: str, names: dict[int, str]) -> Message:
    """A message that is there once: protobuf would merge several into one."""
    found = list(parts(message, name, names))
    if len(found) != 1:
        raise GraphFileError(f"is damaged: it has {len(found)} of {name}, not 1")
    return found[0]


def integers(values: list[Any]) -> list[int]:
    """Signed 64-bit numbers of a repeated field, packed together or not."""
    found = []
    for value in values:
        packed = value if isinstance(value, bytes) else None
        position = 0
        while packed is not None and position < len(packed):
            try:
                value, position = _varint(packed, position)
            except IndexError:
                raise GraphFileError("is damaged: it ends within a number") from None
            found.append(value)
        if packed is None:
            found.append(value)
    if not all(isinstance(each, int) for each in found):
        raise GraphFileError("is damaged: a whole number is none")
    return [each - 2**64 if each >= 2**63 else each for each in found]
