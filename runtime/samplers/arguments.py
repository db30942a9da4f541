"""Checks of what samplers are given."""

from __future__ import annotations

import math
import numbers

import numpy as np


def positive_number(name: str, value: object) -> float:
    """A finite number above 0.

    Raises:
        ValueError: if it is not.
    """
    if not _is_number(value) or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a number above 0, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def share(name: str, value: object, *, zero: bool) -> float:
    """A number from 0 to 1, where `zero` says whether 0 itself is allowed.

    Raises:
        ValueError: if it is not.
    """
    number = float(value) if _is_number(value) else math.nan  # type: ignore[arg-type]
    if not 0 <= number <= 1 or (number == 0 and not zero):
        allowed = "from 0 to 1" if zero else "above 0 and at most 1"
        raise ValueError(f"{name} must be a number {allowed}, got {value!r}")
    return number


def whole_number(name: str, value: object, least: int, *, or_none: bool = False) -> int:
    """A whole number of at least `least`.

    Raises:
        ValueError: if it is not; `or_none` says in the message that the caller takes `None` too.
    """
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < least:  # type: ignore[operator]
        none = " or None" if or_none else ""
        raise ValueError(f"{name} must be a whole number of at least {least}{none}, got {value!r}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def within_vocabulary(name: str, value: int, size: int) -> None:
    """Raises `ValueError` if a number of tokens is larger than the vocabulary."""
    if value > size:
        raise ValueError(
            f"{name}={value} is larger than the vocabulary of {size} tokens; "
            f"give {name} a value from 1 to {size}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
