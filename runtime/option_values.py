"""Values of options as callers give them: lists, NumPy's numbers, a single string, brought to one form.

A reader takes an option's name and what was given, and raises a `ValueError` that names both and says
what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown
from runtime.numbers import is_iterable, read_real, read_whole

LogitsFunction = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]


def whole(
    least: int, most: float = math.inf, *, none: bool = False
) -> Callable[[str, Any], int | None]:
    def read(name: str, value: Any) -> int | None:
        if value is None and none:
            return None
        number = read_whole(value)
        if number is None or not least <= number <= most:
            to = f" to {most}" if most < math.inf else " on"
            raise ValueError(f"{name} must be a whole number from {least}{to}, got {shown(value)}")
        return number

    return read


def real(
    least: float,
    most: float,
    *,
    none: bool = False,
    open_least: bool = False,
    open_most: bool = False,
) -> Callable[[str, Any], float | None]:
    """Reads a finite number of a range, whose ends may not belong to it."""

    def read(name: str, value: Any) -> float | None:
        if value is None and none:
            return None
        number = read_real(value)
        inside = number is not None and math.isfinite(number) and least <= number <= most
        if not inside or (open_least and number == least) or (open_most and number == most):
            low = f"above {least:g}" if open_least else f"of at least {least:g}"
            high = "" if most == math.inf else f" and {'below' if open_most else 'at most'} {most:g}"
            raise ValueError(f"{name} must be a number {low}{high}, got {shown(value)}")
        return number

    return read


def read_flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be true or false, got {shown(value)}")
    return bool(value)


def read_text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text that is not empty, got {shown(value)}")
    return value


def read_texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else _listed(name, value, "strings")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name} must be strings that are not empty, got {shown(text)}")
    return texts


def read_schema(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (Mapping, str)):
        return value
    raise ValueError(f"{name} must be a JSON Schema as a mapping or as text, got {shown(value)}")


def read_ids(name: str, value: Any) -> tuple[int, ...]:
    return tuple(_token_id(name, item) for item in _listed(name, value, "token ids"))


def read_id_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(_id_sequence(name, item) for item in _listed(name, value, "lists of token ids"))


def _id_sequence(name: str, value: Any) -> tuple[int, ...]:
    ids = tuple(_token_id(name, token) for token in _listed(name, value, "lists of token ids"))
    if not ids:
        raise ValueError(f"{name} must be lists of token ids that are not empty, got {shown(value)}")
    return ids


def read_biases(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping of token ids to numbers, got {shown(value)}")
    read = real(-100, 100)
    found = {}
    for key, bias in value.items():
        # JSON has no other keys than strings.
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
        found[_token_id(name, token)] = read(f"{name}[{shown(key)}]", bias)
    return found  # type: ignore[return-value]


def read_sequence_biases(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else _listed(name, value, "pairs")
    found = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"{name} must be pairs of token ids and a number, got {shown(pair)}")
        bias = read_real(pair[1])
        if bias is None or not math.isfinite(bias):
            raise ValueError(f"{name} must have finite numbers, got {shown(pair[1])}")
        found.append((_id_sequence(name, pair[0]), bias))
    return tuple(found)


def read_functions(name: str, value: Any) -> tuple[LogitsFunction, ...]:
    functions = (value,) if callable(value) else _listed(name, value, "functions")
    for function in functions:
        if not callable(function):
            raise ValueError(f"{name} must be functions of token ids and logits, got {shown(function)}")
    return functions


def _listed(name: str, value: Any, of: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not is_iterable(value):
        raise ValueError(f"{name} must be a list of {of}, got {shown(value)}")
    return tuple(value)


def _token_id(name: str, value: Any) -> int:
    token = read_whole(value)
    if token is None or token < 0:
        raise ValueError(f"{name} must be token ids, whole numbers from 0 on; got {shown(value)}")
    return token


def read_top_k(name: str, value: Any) -> int | None:
    number = None if value is None else whole(-1)(name, value)
    return None if number is not None and number < 1 else number
