"""Numbers that callers give: NumPy's are taken everywhere, what is none is refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from runtime import samplers
from runtime.arguments import check_length
from runtime.call_limits import CallLimits
from runtime.engine.memory import CacheMemory
from runtime.numbers import positive_number, read_real, read_whole, share, whole_number
from runtime.samplers import BeamSampler, ContrastiveSampler, RandomSampler, TopKSampler, TopPSampler
from runtime.session import SessionDecoder
from runtime.session_opener import check_threads
from tests.runtime.fake_decoder import SequenceDecoder

WHOLE = [3, np.int32(3), np.uint8(3), np.int64(3), np.array(3)]
NO_WHOLE = [
    True, np.True_, 3.0, np.float32(3), "3", b"3", None, [3], np.array([3, 3]), np.array(3.0),
    float("nan"), float("inf"), 3j, object(), {}, "x" * 10**6, list(range(10**6)),
]  # fmt: skip
REAL = [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), np.array(0.5), Fraction(1, 2)]
NO_REAL = [
    True, np.False_, "0.5", None, [0.5], np.array([0.5]), 0.5j, float("nan"), np.float32("nan"),
    object(), np.array("0.5"), np.array(True),
]  # fmt: skip


def _kind(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers(value: Any) -> None:
    assert type(read_whole(value)) is int
    assert whole_number("n", value) == 3


@pytest.mark.parametrize("value", NO_WHOLE, ids=_kind)
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^n must be a whole number of at least 1, got ") as raised:
        whole_number("n", value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("value", REAL, ids=repr)
def test_real_numbers(value: Any) -> None:
    assert type(read_real(value)) is float
    assert positive_number("x", value) == share("x", value, zero=False) == 0.5


@pytest.mark.parametrize("value", NO_REAL, ids=_kind)
def test_what_is_no_real_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^x must be a number above 0, got "):
        positive_number("x", value)
    with pytest.raises(ValueError, match=r"^x must be a number from 0 to 1, got "):
        share("x", value, zero=True)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), 10**5000, 0, -1, -0.0], ids=_kind)
def test_numbers_out_of_range(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^x must be a number of seconds above 0, or None for no limit"
    ):
        positive_number("x", value, unit="seconds", none="no limit")


def test_none_is_named_where_it_is_taken() -> None:
    for none, text in ((None, ", got 0"), ("", " or None, got 0"), ("all", ", or None for all; got 0")):
        with pytest.raises(ValueError, match=f"at least 1{text}$"):
            whole_number("n", 0, none=none)


# === Every argument that is a number ===

WHOLE_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "threads": check_threads,
    "max_cache_bytes": lambda value: CacheMemory(SequenceDecoder(5), value),
    "k": lambda value: TopKSampler(k=value).k,
    "k of top_p": lambda value: TopPSampler(k=value).k,
    "k of contrastive": lambda value: ContrastiveSampler(k=value).k,
    "num_beams": lambda value: BeamSampler(num_beams=value).num_beams,
    "seed": lambda value: RandomSampler(seed=value).seed,
}
REAL_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "timeout": CallLimits,
    "temperature": lambda value: RandomSampler(temperature=value).temperature,
    "p": lambda value: TopPSampler(p=value).p,
    "alpha": lambda value: ContrastiveSampler(alpha=value).alpha,
}


@pytest.mark.parametrize("name", WHOLE_ARGUMENTS)
def test_arguments_that_are_whole_numbers(name: str) -> None:
    read = WHOLE_ARGUMENTS[name]
    for value in WHOLE:
        assert read(value) == 3 or name == "max_cache_bytes"
    for value in (value for value in NO_WHOLE if value is not None):
        with pytest.raises(ValueError, match=r"must be a whole number of at least [01]"):
            read(value)


@pytest.mark.parametrize("name", REAL_ARGUMENTS)
def test_arguments_that_are_real_numbers(name: str) -> None:
    read = REAL_ARGUMENTS[name]
    for value in REAL:
        assert read(value) == 0.5 or name == "timeout"
    for value in (value for value in (*NO_REAL, 10**400) if value is not None):
        with pytest.raises(ValueError, match=r"must be a number"):
            read(value)


def test_max_length(decoder: SessionDecoder) -> None:
    for value in WHOLE:
        assert check_length(value, "max_length", decoder.config) == 3
    for value in NO_WHOLE:
        with pytest.raises(ValueError, match="max_length must be a whole number of at least 1, got"):
            check_length(value, "max_length", decoder.config)
    with pytest.raises(ValueError, match="max_length is a whole number of 16610 bits, more than the"):
        check_length(10**5000, "max_length", decoder.config)


def test_configurations_hold_plain_numbers() -> None:
    sampler = TopPSampler(np.float32(0.5), np.int64(4), np.int64(7), np.float64(2))
    config = samplers.serialize(sampler)["config"]
    assert config == {"p": 0.5, "k": 4, "seed": 7, "temperature": 2.0}
    assert {type(value) for value in config.values()} == {int, float}  # type: ignore[attr-defined]


def test_more_threads_than_any_machine_has() -> None:
    with pytest.raises(ValueError, match="threads is 100000, more than 4096"):
        check_threads(100_000)


def test_k_of_many_digits() -> None:
    with pytest.raises(
        ValueError, match="k=a whole number of 16610 bits is larger than the vocabulary"
    ):
        TopKSampler(k=10**5000).check_vocabulary(300)
