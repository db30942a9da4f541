"""Numbers that callers give, read in one way everywhere: Python's, NumPy's and those in 0-d arrays."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

from graphs.shown import shown


def read_whole(value: object) -> int | None:
    """A whole number as Python's; `None` for anything else, true and false among it."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def read_real(value: object) -> float | None:
    """A real number as Python's, infinite if it is too large for that; `None` for anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether a value can be gone through; 0-d arrays, which are numbers, cannot."""
    return isinstance(value, Iterable) and not (isinstance(value, np.ndarray) and value.ndim == 0)


def whole_number(name: str, value: object, least: int = 1, *, none: str | None = None) -> int:
    """A whole number of at least `least`.

    Args:
        name: the argument's, for the error.
        value: what was given.
        least: the least that is allowed.
        none: what `None` is for where the caller takes that too, for the error; may be empty.

    Raises:
        ValueError: if it is not.
    """
    number = read_whole(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}{_got(value, none)}")
    return number


def positive_number(name: str, value: object, *, unit: str = "", none: str | None = None) -> float:
    """A finite number above 0.

    Args:
        name: the argument's, for the error.
        value: what was given.
        unit: what it is a number of, for the error.
        none: what `None` is for where the caller takes that too, for the error; may be empty.

    Raises:
        ValueError: if it is not.
    """
    number = read_real(value)
    if number is None or not 0 < number < math.inf:
        of = f" of {unit}" if unit else ""
        raise ValueError(f"{name} must be a number{of} above 0{_got(value, none)}")
    return number


def share(name: str, value: object, *, zero: bool) -> float:
    """A number from 0 to 1, where `zero` says whether 0 itself is allowed.

    Raises:
        ValueError: if it is not.
    """
    number = read_real(value)
    if number is None or not 0 <= number <= 1 or (number == 0 and not zero):
        allowed = "from 0 to 1" if zero else "above 0 and at most 1"
        raise ValueError(f"{name} must be a number {allowed}, got {shown(value)}")
    return number


def _got(value: object, none: str | None) -> str:
    if none:
        return f", or None for {none}; got {shown(value)}"
    return f"{'' if none is None else ' or None'}, got {shown(value)}"
