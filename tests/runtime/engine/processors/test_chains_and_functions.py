"""Several processors as one, and functions of one's own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from runtime.engine.processors import (
    AllowedTokens,
    Chain,
    FunctionProcessor,
    RepetitionPenalty,
    SuppressTokens,
    Temperature,
    TopK,
    TopP,
)

SIZE = 6
OUT = -np.inf


def ramp() -> Any:
    return np.arange(SIZE, dtype=np.float32)


def test_processors_are_applied_in_order() -> None:
    logits = ramp()
    Chain([SuppressTokens([5], SIZE), TopK(2), Temperature(2)]).process([2], 1, logits)
    assert logits.tolist() == [OUT, OUT, OUT, 1.5, 2, OUT]
    logits = ramp()
    Chain([TopK(2), SuppressTokens([5], SIZE)]).process([2], 1, logits)
    assert logits.tolist() == [OUT, OUT, OUT, OUT, 4, OUT]


def test_a_processor_keeps_nothing_between_calls() -> None:
    chain = Chain([RepetitionPenalty(2), TopP(0.99)])
    found = []
    for token_ids in ([5, 4], [1], [5, 4]):
        logits = ramp()
        chain.process(token_ids, 1, logits)
        found.append(logits.tolist())
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("more", [[], [TopP(0.9)], [TopK(1)]])
def test_no_token_left(more: list[Any]) -> None:
    chain = Chain([AllowedTokens([1, 2], SIZE), SuppressTokens([1, 2], SIZE), *more])
    with pytest.raises(ValueError, match=r"^no token is left to choose: the options of the request"):
        chain.process([2], 1, ramp())


def test_infinite_logits_are_refused_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="NaN or infinite: give less extreme numbers"):
            Chain([Temperature(1e-44)]).process([2], 1, ramp())


# === Functions ===


def test_a_function_sees_token_ids_and_logits() -> None:
    seen: list[Any] = []

    def note(token_ids: Any, logits: Any) -> Any:
        seen.append((token_ids, logits.tolist()))
        return logits

    for token_ids in ([2, 3], (2, 3), np.array([2, 3])):
        Chain([FunctionProcessor(note)]).process(token_ids, 1, ramp())
    assert seen == [((2, 3), ramp().tolist())] * 3
    assert {type(i) for token_ids, _ in seen for i in token_ids} == {int}


@pytest.mark.parametrize("reversed_view", [True, False])
def test_what_a_function_returns_is_taken(reversed_view: bool) -> None:
    logits = ramp()
    processor = FunctionProcessor(lambda ids, x: x[::-1] if reversed_view else x[::-1].copy())
    processor.process([2], 1, logits)
    assert logits.tolist() == ramp()[::-1].tolist()


def test_what_a_function_changes_in_place_is_taken() -> None:
    def exclude(token_ids: Any, logits: Any) -> Any:
        logits[:3] = OUT
        return logits

    logits = ramp()
    FunctionProcessor(exclude).process([2], 1, logits)
    assert logits.tolist() == [OUT, OUT, OUT, 3, 4, 5]


class Named:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, token_ids: Any, logits: Any) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "got None"),
        ([0.0] * SIZE, "got [0.0, "),
        (np.zeros(SIZE), "got float64 of shape (6,)"),
        (np.zeros(SIZE, np.float16), "got float16 of shape (6,)"),
        (np.zeros(SIZE - 1, np.float32), "got float32 of shape (5,)"),
        (np.zeros((1, SIZE), np.float32), "got float32 of shape (1, 6)"),
        (np.array([0, 1, 2, np.nan, 4, 5], np.float32), "got 1 of 6 logits that are NaN or plus"),
        (
            np.array([OUT, 1, np.inf, np.nan, 4, 5], np.float32),
            "got 2 of 6 logits that are NaN or plus",
        ),
    ],
)
def test_what_a_function_must_not_return(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=r"^the logits processor Named must return ") as raised:
        FunctionProcessor(Named(value)).process([2], 1, ramp())
    assert told in str(raised.value)


def test_a_function_is_named() -> None:
    def my_rule(token_ids: Any, logits: Any) -> Any:
        return None

    with pytest.raises(ValueError, match="the logits processor my_rule must return float32"):
        FunctionProcessor(my_rule).process([2], 1, ramp())
    no_function: Any = 3
    with pytest.raises(ValueError, match=r"must be a function .* got 3"):
        FunctionProcessor(no_function)


def test_what_a_function_raises_is_raised() -> None:
    def broken(token_ids: Any, logits: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Chain([FunctionProcessor(broken)]).process([2], 1, ramp())
