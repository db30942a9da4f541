"""Checks of what samplers are given."""

from __future__ import annotations

from graphs.shown import shown


def within_vocabulary(name: str, value: int, size: int) -> None:
    """Raises `ValueError` if a number of tokens is larger than the vocabulary."""
    if value > size:
        raise ValueError(
            f"{name}={shown(value)} is larger than the vocabulary of {size} tokens; "
            f"give {name} a value from 1 to {size}"
        )
