"""Mutations that keep enough of a format for its reader to go on."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from tests.exporter.torch_files import whole, write_archive

SEPARATOR = b"\xff\xfe\xff"  # between the files of one input: never in UTF-8
Mutate = Callable[[bytes, random.Random], bytes]

_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 64, 65, 2**31, 2**32, 2**62, 2**63, 10**30, 0.5, -0.0, 1e308,
    "", ".", "..", "../x", "/x", "a\0b", "\ud800", "BPE", "ByteLevel", "Replace", "Sequence",
    "x" * 300, [], {}, [[]], [0], [-1, 1], {"a": {}}, {"type": "ByteLevel"}, {"String": ""},
)  # fmt: skip


def mutate_bytes(data: bytes, source: random.Random) -> bytes:
    """A few bytes changed, put in, taken out or repeated."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 8))):
        at = source.randrange(len(changed) + 1)
        match source.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << source.randrange(8)
            case 1 if at < len(changed):
                changed[at] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
            case 2:
                changed[at:at] = source.randbytes(source.choice((1, 2, 4, 8)))
            case 3:
                del changed[at : at + source.choice((1, 2, 4, 16, 64))]
            case _:
                size, value = source.choice((("<H", 16), ("<I", 32), ("<Q", 64)))
                number = source.choice(
                    (0, 1, 2**value - 1, 2 ** (value - 1), source.getrandbits(value))
                )
                packed = struct.pack(size, number)
                changed[at : at + len(packed)] = packed
    return bytes(changed)


def mutate_json_value(value: Any, source: random.Random) -> Any:
    """One place of a JSON value changed; the value itself stays as it is."""
    places = list(_places(value))
    if not places:
        return source.choice(_VALUES)
    copy = json.loads(json.dumps(value))
    path = source.choice(places)
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    match source.randrange(5):
        case 0:
            del parent[path[-1]]
        case 1:
            parent[path[-1]] = _at(value, source.choice(places))
        case 2 if isinstance(parent, list):
            parent.insert(path[-1], source.choice(_VALUES))
        case 2:
            parent[source.choice(("type", "config", "x", "", "vocab", "0"))] = source.choice(_VALUES)
        case 3 if type(parent[path[-1]]) is int:
            parent[path[-1]] += source.choice((-1, 1, 2**16))
        case _:
            parent[path[-1]] = source.choice(_VALUES)
    return copy


def mutate_json(data: bytes, source: random.Random) -> bytes:
    """JSON text with a value changed; other bytes by the byte."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, source)
    if source.random() < 0.2:
        return mutate_bytes(data, source)
    return json.dumps(mutate_json_value(value, source)).encode()


def mutate_parts(data: bytes, source: random.Random) -> bytes:
    """One of several files changed."""
    parts = data.split(SEPARATOR)
    i = source.randrange(len(parts))
    parts[i] = mutate_json(parts[i], source)
    return SEPARATOR.join(parts)


def mutate_safetensors(data: bytes, source: random.Random) -> bytes:
    """The header changed, with the right length before it."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8 or source.random() < 0.1:
        return mutate_bytes(data, source)
    header = mutate_json(data[8 : 8 + size], source)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def mutate_torch(data: bytes, source: random.Random) -> bytes:
    """The pickle, a record or a record's name changed, in a zip file that is right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
        pickled = records.pop("archive/data.pkl")
    except Exception:  # zipfile's are of many kinds
        return mutate_bytes(data, source)
    if source.random() < 0.15:
        return mutate_bytes(data, source)
    names = {name.removeprefix("archive/"): value for name, value in records.items()}
    if names and source.random() < 0.2:
        name = source.choice(sorted(names))
        names[source.choice((name, "byteorder", "../0", "data/9", ""))] = mutate_bytes(
            names.pop(name), source
        )
    else:
        pickled = _mutate_pickle(pickled, source)
    file = io.BytesIO()
    write_archive(file, pickled, names)
    return file.getvalue()


_INSTRUCTIONS = (
    b")", b"}", b"]", b"(", b"t", b"u", b"s", b"R", b"Q", b"b", b"N", b"\x88", b"\x85", b"\x86",
    b"\x87", b"\x93", b"\x94", b"h\0", b"q\0", b"a", b"e", b".", b"cos\nsystem\n", b"X\1\0\0\0a",
    b"r\xff\xff\xff\x7f", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n)R",
    whole(0), whole(-1), whole(2**31), whole(2**70),
)  # fmt: skip


def _mutate_pickle(data: bytes, source: random.Random) -> bytes:
    if source.random() < 0.5:
        return mutate_bytes(data, source)
    at = source.randrange(2, len(data)) if len(data) > 2 else 0
    taken = source.choice((0, 0, 1, 2))
    return data[:at] + source.choice(_INSTRUCTIONS) + data[at + taken :]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values within a value are; long lists and objects only in part."""
    found: list[tuple[Any, ...]] = []
    waiting = [(path, value)]
    while waiting and len(found) < 2000:
        path, value = waiting.pop()
        if path:
            found.append(path)
        if isinstance(value, (dict, list)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*path, key), item) for key, item in list(items)[:50]]
    return found


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
