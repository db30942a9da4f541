"""Checks of what processors are given."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphs.shown import shown
from runtime.numbers import is_iterable, positive_number, read_real, read_whole

_LEAST, _GREATEST = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)


def check_token_ids(name: str, ids: object, vocabulary: int, *, empty: bool = True) -> tuple[int, ...]:
    """Token ids of a vocabulary, as plain numbers in the order given.

    Args:
        name: the argument's, for the error.
        ids: a list, tuple, set or array of them.
        vocabulary: tokens of the model.
        empty: whether there may be none.

    Raises:
        ValueError: if they are not whole numbers from 0 to `vocabulary - 1`, or are missing.
    """
    wanted = f"whole numbers from 0 to {vocabulary - 1}"
    if not is_iterable(ids) or isinstance(ids, (str, bytes, Mapping)):
        raise ValueError(f"{name} must be a list of {wanted}, got {shown(ids)}")
    found = []
    for value in ids:
        number = read_whole(value)
        if number is None or not 0 <= number < vocabulary:
            raise ValueError(f"{name} must be a list of {wanted}, got one with {shown(value)}")
        found.append(number)
    if not (found or empty):
        raise ValueError(f"{name} must be a list of at least one of the {wanted}, got {shown(ids)}")
    return tuple(found)


def check_factor(name: str, value: object) -> np.float32:
    """A number above 0 that logits can be multiplied with or divided by, in float32.

    Raises:
        ValueError: if it is not above 0, or float32 would make it 0 or infinite.
    """
    number = positive_number(name, value)
    if not _LEAST <= number <= _GREATEST:
        raise ValueError(
            f"{name} must be a number from {_LEAST:.2g} to {_GREATEST:.2g}, which float32 holds, "
            f"got {shown(value)}"
        )
    return np.float32(number)


def check_bias(name: str, value: object, most: float = _GREATEST) -> np.float32:
    """A number that is added to logits, from `-most` to `most`.

    Raises:
        ValueError: if it is not.
    """
    number = read_real(value)
    if number is None or not -most <= number <= most:
        raise ValueError(f"{name} must be a number from -{most:g} to {most:g}, got {shown(value)}")
    return np.float32(number)


def check_inner_share(name: str, value: object) -> float:
    """A number above 0 and below 1.

    Raises:
        ValueError: if it is not.
    """
    number = read_real(value)
    if number is None or not 0 < number < 1:
        raise ValueError(f"{name} must be a number above 0 and below 1, got {shown(value)}")
    return number
