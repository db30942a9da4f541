"""What a shared library says that it needs, read from its ELF header; see `man elf`."""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct(
    "<4sBB26xQ14xHH"
)  # magic, class, byte order; program headers: offset, size, count
_SEGMENT = struct.Struct("<I4xQQ8xQ16x")  # type, offset in the file, address, bytes in the file
_ENTRY = struct.Struct("<qQ")  # tag, value
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS = 1, 5


def needed_libraries(path: Path) -> list[str]:
    """Names of the libraries that the system loads before this one, in that order.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no library for 64-bit little-endian machines.
    """
    with path.open("rb") as file:
        magic, bits, order, start, size, count = _HEADER.unpack(file.read(_HEADER.size))
        if (magic, bits, order, size) != (b"\x7fELF", 2, 1, _SEGMENT.size):
            raise ValueError(f"{path} is no library for 64-bit little-endian machines")
        file.seek(start)
        segments = list(_SEGMENT.iter_unpack(file.read(size * count)))
        entries: list[tuple[int, int]] = []
        for kind, offset, _, length in segments:
            if kind == _DYNAMIC:
                file.seek(offset)
                entries = list(_ENTRY.iter_unpack(file.read(length)))
        names = []
        for position in (value for tag, value in entries if tag == _NEEDED):
            file.seek(_strings_offset(segments, entries) + position)
            names.append(file.read(256).partition(b"\0")[0].decode())
        return names


def _strings_offset(segments: list[tuple[int, ...]], entries: list[tuple[int, int]]) -> int:
    """Where the names are in the file: the header has their address in memory."""
    address = dict(entries)[_STRINGS]
    return next(
        address - start + offset
        for kind, offset, start, length in segments
        if kind == _LOAD and start <= address < start + length
    )
