"""Logits that are no finite numbers are an error in every sampler and search, never a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from runtime import Generator, LogitsError, samplers
from runtime.cache import KVCache
from runtime.decoder import StepOutput
from runtime.engine.engine import Engine
from runtime.engine.logits_check import bad_rows
from runtime.engine.request import Request
from runtime.samplers import GreedySampler, Sampler
from tests.runtime.engine_runs import begin, new_call, run, run_calls
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
    for rows in ([0, 1, 2], [0, 2], [2]):
        assert bad_rows(StepOutput(logits), rows) == {}
    logits[2, position] = bad
    for rows in ([0, 1, 2], [0, 2], [2], [2, 1], [1, 2, 0]):
        assert bad_rows(StepOutput(logits), rows) == {2: 1}
    assert bad_rows(StepOutput(logits), [0, 1]) == {}


def test_both_infinities_at_once() -> None:
    logits = np.array([[np.inf, -np.inf, 0]], np.float32)
    assert bad_rows(StepOutput(logits), [0]) == {0: 2}


def test_rows_without_new_tokens_may_hold_anything() -> None:
    logits = np.array([[np.nan, 1], [2, 3], [np.inf, 0]], np.float32)
    assert bad_rows(StepOutput(logits), [1]) == {}
    assert bad_rows(StepOutput(logits), [0, 1]) == {0: 1}  # also in between those that are looked at
    logits = np.array([[1, 1], [np.nan, 3], [2, 0]], np.float32)
    assert bad_rows(StepOutput(logits), [0, 2]) == {}


def test_large_finite_logits_whose_sum_overflows_are_fine() -> None:
    logits = np.full((1, 64), np.finfo(np.float32).max)
    assert bad_rows(StepOutput(logits), [0]) == {}


def test_a_model_with_damaged_weights(cpu_decoder: Any) -> None:
    class Damaged:
        def __getattr__(self, name: str) -> Any:
            return getattr(cpu_decoder, name)

        def append(self, cache: Any, *arguments: Any, **options: Any) -> Any:
            cache.layers[0][1][:] = np.nan
            return cpu_decoder.append(cache, *arguments, **options)

    generator = Generator(Damaged(), None, "greedy")  # type: ignore[arg-type]
    with pytest.raises(LogitsError, match=r"300 of 300 logits"):
        generator.generate(PROMPTS, stop_token_ids=None)


# === Calls in flight together ===


def test_only_the_call_with_such_a_row_ends() -> None:
    """In the middle of others' texts; its own rows are of no use to it any more."""
    decoder = FaultyDecoder(np.nan, after=5)
    engine = Engine(decoder)
    requests = [[Request((1, 2), 12)], [Request((4,), 12), Request((3, 1), 12)], [Request((5,), 9)]]
    alone = [run(decoder, [request], GreedySampler()) for request in (*requests[0], *requests[2])]
    calls = [new_call(decoder, each, GreedySampler()) for each in requests]
    run_calls(engine, *calls)
    assert [type(call.error) for call in calls] == [type(None), LogitsError, type(None)]
    with pytest.raises(LogitsError, match=r"2 of 9 logits .* in row 1 of 2, after 5 tokens"):
        calls[1].check_complete()
    for call, one in zip(calls[::2], alone, strict=True):
        assert call.sequences[0].token_ids == one.sequences[0].token_ids
        assert call.sequences[0].finish_reason == "length"
    assert engine.memory.bytes_in_use == 0


def test_nothing_is_kept_of_a_prompt_with_such_logits() -> None:
    """Its keys and values may be no numbers either, and later prompts would be given them."""
    decoder = FaultyDecoder(np.nan, after=1)
    decoder.block_tokens = 4
    engine = Engine(decoder, max_prefix_bytes=100)
    assert engine.prefixes is not None
    kept = []
    for first in (3, 4):
        run_calls(engine, new_call(decoder, [Request((first, *range(8)), 12)], GreedySampler()))
        kept.append(engine.prefixes.bytes_in_use)
    assert kept == [0, 8]


@pytest.mark.parametrize("kind", ["cpu_decoder", "decoder", "device_decoder"])
def test_what_is_no_number_is_gone_from_the_cache(kind: str, request: Any) -> None:
    """Masked places are multiplied by zero: of the row's next owner, everything would be NaN."""
    decoder = request.getfixturevalue(kind)
    prompts = [Request((2, 5, 6), 30), Request((2, 7), 30)]
    engine = Engine(decoder)
    wanted = [run(decoder, [one], GreedySampler()).sequences[0].token_ids for one in prompts]
    first, second = (new_call(decoder, [one], GreedySampler()) for one in prompts)
    begin(engine, first)
    begin(engine, second)
    engine.step()
    (slots,) = engine._slots.values()
    row = first.sequences[0].rows[0]
    poison(decoder, slots.cache, row)
    engine.step()
    assert isinstance(first.error, LogitsError)
    third = new_call(decoder, prompts[:1], GreedySampler())
    begin(engine, third)
    engine.step()
    assert third.sequences[0].rows == [row]
    while not (second.ended and third.ended):
        engine.step()
    assert [call.sequences[0].token_ids for call in (third, second)] == wanted


def poison(decoder: Any, cache: Any, row: int) -> None:
    """Fills a row with NaN."""
    if isinstance(cache, KVCache):
        for pair in cache.layers:
            for buffer in pair:
                buffer[row] = np.nan
        return
    shape = cache.buffers.shape
    for tensor in range(shape.tensors):
        not_a_number = np.full(shape.row_bytes, 0xFF, np.uint8)  # in float16
        decoder._memory.write(cache.buffers.tensor(tensor, row), not_a_number)
