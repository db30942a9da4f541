"""Sizes in bytes, read and written."""

from __future__ import annotations

import pytest

from runtime.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("1 B", 1),
        ("2GB", 2 * 10**9),
        ("2gb", 2 * 10**9),
        ("500M", 500 * 10**6),
        ("1.5GiB", 3 * 2**29),
        (" 3 KiB ", 3072),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "0.1", "2XB", "1e9", "nan", "2 G B", "٣GB1"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"a size is a number and a unit, such as 2GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (21504, "21.5 KB"),
        (31_500_000, "31.5 MB"),
        (2_147_483_648, "2.15 GB"),
        (10**16, "10,000 TB"),
    ],
)
def test_sizes_are_written(size: int, text: str) -> None:
    assert format_bytes(size) == text
