"""Logits that are no finite numbers are an error in every sampler and search, never a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from runtime import Generator, LogitsError, samplers
from runtime.call_decoder import check_logits
from runtime.samplers import Sampler
from tests.runtime.fake_decoder import SequenceDecoder

BAD = [np.nan, -np.nan, np.inf, -np.inf]
PROMPTS = {
    "token_ids": np.array([[1, 2, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0]]),
    "padding_mask": np.array([[1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]),
}


class FaultyDecoder(SequenceDecoder):
    """Gives bad logits for the second prompt once it has some tokens."""

    def __init__(self, bad: float, after: int) -> None:
        super().__init__(9)
        self._bad, self._after = bad, after

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        values = super().logits(tokens)
        if tokens[0] == 3 and len(tokens) >= self._after:
            values[[2, 5]] = self._bad
        return values


class Own(Sampler):
    """A user's sampler."""

    def get_next_token(self, probabilities: Any, generators: Any) -> Any:
        return probabilities.argmax(axis=-1)


def generate(decoder: SequenceDecoder, sampler: Any) -> Any:
    generator = Generator(decoder, None, sampler)
    try:
        return generator.generate(PROMPTS, stop_token_ids=None)
    finally:
        generator.compile("greedy")


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("sampler", [*samplers.NAMES, Own()], ids=lambda s: getattr(s, "upper", Own)())
def test_every_sampler_stops(sampler: Any, bad: float) -> None:
    with pytest.raises(LogitsError, match=r"2 of 9 logits that are not finite numbers"):
        generate(FaultyDecoder(bad, after=4), sampler)


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_also_after_the_prompt(sampler: str) -> None:
    with pytest.raises(LogitsError, match=r"in row 1 of 2, after 1 tokens"):
        generate(FaultyDecoder(np.nan, after=1), sampler)


def test_the_error_says_where_and_what_to_do() -> None:
    with pytest.raises(LogitsError) as raised:
        generate(FaultyDecoder(np.nan, after=3), "greedy")
    text = str(raised.value)
    assert text.startswith(
        "the model gave 2 of 9 logits that are not finite numbers (NaN or infinity) in row 1 of 2, "
        "after 3 tokens: "
    )
    assert "opt-export --check" in text
    assert "fp32" in text


@pytest.mark.parametrize("position", [0, 1, 31, 299])
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_one_among_many_is_found(bad: float, position: int) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    ones = np.ones(3, np.int32)
    check_logits(logits, ones, ones)
    logits[2, position] = bad
    with pytest.raises(LogitsError, match=r"1 of 300 logits .* in row 2 of 3"):
        check_logits(logits, ones, ones)


def test_both_infinities_at_once() -> None:
    logits = np.array([[np.inf, -np.inf, 0]], np.float32)
    with pytest.raises(LogitsError, match=r"2 of 3 logits"):
        check_logits(logits, np.array([1]), np.array([5], np.int32))


def test_rows_without_new_tokens_may_hold_anything() -> None:
    logits = np.array([[np.nan, 1], [2, 3], [np.inf, 0]], np.float32)
    check_logits(logits, np.array([0, 1, 0]), np.array([4, 5, 6], np.int32))


def test_large_finite_logits_whose_sum_overflows_are_fine() -> None:
    logits = np.full((1, 64), np.finfo(np.float32).max)
    check_logits(logits, np.array([1]), np.array([5], np.int32))


def test_a_model_with_damaged_weights(cpu_decoder: Any) -> None:
    class Damaged:
        config, cache_dtype = cpu_decoder.config, cpu_decoder.cache_dtype
        new_cache = cpu_decoder.new_cache

        def append(self, cache: Any, *arguments: Any, **options: Any) -> Any:
            cache.layers[0][1][:] = np.nan
            return cpu_decoder.append(cache, *arguments, **options)

    generator = Generator(Damaged(), None, "greedy")  # type: ignore[arg-type]
    with pytest.raises(LogitsError, match=r"300 of 300 logits"):
        generator.generate(PROMPTS, stop_token_ids=None)
