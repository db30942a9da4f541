"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000 ** (i + 1) for i, letter in enumerate("KMGT")},
    **{letter: 1000 ** (i + 1) for i, letter in enumerate("KMGT")},
    **{f"{letter}IB": 1024 ** (i + 1) for i, letter in enumerate("KMGT")},
}


def parse_bytes(text: str) -> int:
    """Bytes from `"2GB"`, `"1.5 GiB"`, `"500M"` or `"4096"`; GB are 10**9, GiB 2**30.

    Raises:
        ValueError: if it is no size above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    size = 0 if match is None or unit is None else int(float(match[1]) * unit)
    if size < 1:
        raise ValueError(f"a size is a number and a unit, such as 2GB, 1.5GiB or 500MB; got {text!r}")
    return size


def format_bytes(size: float) -> str:
    """`2.15 GB`, `31.5 MB`, `12.3 KB` or `640 bytes`; GB are 10**9."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            return (
                f"{size / scale:.3g} {unit}" if size < 1000 * scale else f"{size / scale:,.0f} {unit}"
            )
    return f"{size:.0f} bytes"
