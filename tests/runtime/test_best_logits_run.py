"""Runs over a model that tells its best logits: the same tokens, and all logits only where needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from runtime import Generator, LogitsError
from runtime.decoder import LazyStepOutput, StepOutput, TemperedCache
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.samplers import (
    BeamSampler,
    ContrastiveSampler,
    GreedySampler,
    Sampler,
    TopKSampler,
    TopPSampler,
)
from tests.runtime import engine_runs
from tests.runtime.fake_decoder import BestDecoder, SequenceDecoder, best_logits
from tests.runtime.test_best_logits import SAMPLERS, choose, describe, listed


def run(decoder: SequenceDecoder, requests: list[Request], sampler: Sampler) -> list[list[int]]:
    call = engine_runs.run(decoder, requests, sampler)
    return [sequence.token_ids for sequence in call.sequences]


class Plain(BestDecoder):
    """The same model without best logits."""

    def append(self, cache: Any, *arguments: Any, **options: Any) -> StepOutput:
        output = super().append(cache, *arguments, **options)
        return StepOutput(output.logits, output.hidden_states)


REQUESTS = [
    Request((5, 6), 14),
    Request((50,), 9, frozenset(range(20))),
    Request((9, 9, 9), 20, frozenset(range(3))),
    Request((5, 6), 7),
    Request((4, 3, 2, 1), 4),
]


@pytest.mark.parametrize("spread", [0.3, 1.5, 5.0])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=describe)
def test_runs_give_the_same_tokens_with_and_without(sampler: Sampler, spread: float) -> None:
    config = sampler.get_config()
    seeded = type(sampler)(**config | ({"seed": 3} if "seed" in config else {}))
    for requests in (REQUESTS, REQUESTS[:1]):
        plain, best = Plain(300, 64, spread=spread), BestDecoder(300, 64, spread=spread)
        assert run(best, requests, seeded) == run(plain, requests, seeded)
        assert len(plain.reads) == plain.steps == best.steps
        assert best.reads == sorted(set(best.reads))
        if isinstance(sampler, GreedySampler) or (spread == 5 and isinstance(sampler, TopKSampler)):
            assert best.reads == []
        if isinstance(sampler, TopPSampler) and spread == 0.3 and sampler.k is None and sampler.p > 0.4:
            assert len(best.reads) == best.steps  # a nucleus of more than 64


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("sampler", [GreedySampler(), TopPSampler(p=0.4, seed=3)], ids=describe)
def test_rows_that_others_have_left(sampler: Sampler, slots: int) -> None:
    """Whoever comes later takes them: a call's rows are in any order then."""
    requests = [Request((i,) * (1 + 4 * (i % 3)), 16) for i in range(1, 12)]  # of one cache
    best = BestDecoder(300, 64, spread=3.0)
    call = engine_runs.new_call(best, requests, sampler)
    engine_runs.run_calls(Engine(best, max_slots=slots), call)
    found = [sequence.token_ids for sequence in call.sequences]
    assert found == run(Plain(300, 64, spread=3.0), requests, sampler)


class Recording(TopPSampler):
    """Notes how many rows are chosen from all logits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rows_from_all: list[int] = []

    def sample(self, logits: Any, generators: Any) -> Any:
        self.rows_from_all.append(len(logits))
        return super().sample(logits, generators)

    def sample_best(self, best: Any, generators: Any) -> Any:
        return super().sample_best(best, generators)


def test_only_undecided_rows_of_a_batch_are_chosen_from_all_logits() -> None:
    sampler = Recording(p=0.7, seed=8)
    decoder = BestDecoder(300, 16, spread=3.0)
    requests = [Request((i,), 20) for i in range(6)]
    found = run(decoder, requests, sampler)
    assert found == run(Plain(300, 16, spread=3.0), requests, TopPSampler(p=0.7, seed=8))
    rows = sampler.rows_from_all
    assert len(rows) == len(decoder.reads)
    assert min(rows) == 1
    assert 1 < max(rows) < 6
    assert len(rows) < decoder.steps


def test_the_temperature_is_told_before_the_prompt_is_read() -> None:
    class Watching(BestDecoder):
        seen: list[float]

        def append(self, cache: Any, *arguments: Any, **options: Any) -> StepOutput:
            self.seen = [*getattr(self, "seen", []), *cache.temperatures.tolist()]
            return super().append(cache, *arguments, **options)

    for given, told in ((0.5, 0.5), (1.0, 1.0), (1e-40, float(np.float32(1e-30))), (1e300, 1e30)):
        decoder = Watching(90, 8)
        run(decoder, [Request((1,), 3), Request((2,), 3)], TopKSampler(temperature=given))
        assert decoder.seen == pytest.approx([told] * 4, rel=1e-6)
    assert isinstance(decoder.caches[0], TemperedCache)
    assert not isinstance(SequenceDecoder(9).new_cache(1, 1), TemperedCache)


@pytest.mark.parametrize("sampler", [BeamSampler(), ContrastiveSampler()], ids=describe)
def test_searches_read_all_logits(sampler: Sampler) -> None:
    results = []
    for decoder in (BestDecoder(90, 8), Plain(90, 8)):
        results.append(run(decoder, REQUESTS, sampler))
    assert results[0] == results[1]


# === Samplers of one's own ===


class NeverZero(TopKSampler):
    """Overrides `sample` alone: a ban that `TopKSampler.sample_best` knows nothing of."""

    def sample(self, logits: Any, generators: Any) -> Any:
        logits[:, 0] = -100
        return super().sample(logits, generators)


class Banning:
    """A class to mix in that does the same."""

    sample = NeverZero.sample


def test_who_overrides_sample_alone_is_asked_with_all_logits() -> None:
    mixed = type("Mixed", (Banning, NeverZero), {})
    further = type("Further", (NeverZero,), {})
    for sampler in (NeverZero(k=1), mixed(k=1), further(k=1)):
        assert choose(sampler, listed([3, 2, 1, 0], count=3)) is None
        decoder = BestDecoder(90, best=8)
        (tokens,) = run(decoder, [Request((1, 2), 12)], sampler)
        assert len(decoder.reads) == decoder.steps == len(tokens) == 10
    same = type("Same", (TopKSampler,), {"get_config": lambda self: {}})
    assert choose(same(k=1), listed([3, 2, 1, 0], count=3)) == [0]


# === The output of a step ===


def test_all_logits_are_read_once_and_only_when_asked_for() -> None:
    reads = []
    logits = np.zeros((2, 5), np.float32)

    def read() -> Any:
        reads.append(len(reads))
        return logits

    best = best_logits(logits, 3)
    output: StepOutput = LazyStepOutput(best, read)
    assert (output.best, output.hidden_states, reads) == (best, None, [])
    assert output.logits is logits
    assert output.logits is logits
    assert reads == [0]
    states = np.ones((2, 1, 4), np.float32)
    assert LazyStepOutput(best, read, states).hidden_states is states
    assert StepOutput(logits).best is None


def test_some_rows_of_the_best() -> None:
    best = listed([1, 2, 3], [4, 5, 6], [9, 8, 7], count=2)
    assert (best.complete, listed([1, 2], count=2).complete) == (False, True)
    some = best.rows([2, 0])
    assert some.logits.tolist() == [[9, 8], [3, 2]]
    assert some.token_ids.tolist() == [[0, 1], [2, 1]]
    assert some.totals.tolist() == best.totals[[2, 0]].tolist()
    assert (some.vocabulary, some.complete) == (3, False)


# === Logits that are not finite ===

PROMPTS = {
    "token_ids": np.array([[1, 2, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]]),
    "padding_mask": np.array([[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]),
}


class Faulty(BestDecoder):
    """Gives some bad logits for the second prompt once it has three tokens."""

    def __init__(self, bad: float, places: list[int]) -> None:
        super().__init__(50, 8)
        self._bad, self._places = bad, places

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        values = super().logits(tokens)
        if tokens[0] == 3 and len(tokens) >= 3:
            values[self._places] = self._bad
        return values


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf], ids=str)
@pytest.mark.parametrize("sampler", ["greedy", "top_k", "top_p", "random", "beam"])
def test_bad_logits_end_a_call_with_their_number(sampler: str, bad: float) -> None:
    decoder = Faulty(bad, [2, 7, 40])
    generator = Generator(decoder, None, sampler)
    message = r"3 of 50 logits that are not finite numbers \(NaN or infinity\) in row 1 of 2, after 3"
    if sampler == "beam":
        message = r"3 of 50 logits that are not finite numbers"
    with pytest.raises(LogitsError, match=message):
        generator.generate(PROMPTS, stop_token_ids=None)
    if sampler in ("greedy", "top_k"):
        assert decoder.reads == [decoder.steps]


def test_minus_infinity_is_seen_only_among_the_best() -> None:
    """Elsewhere its weight is 0, so that it changes neither the totals nor any choice."""
    few, many = Faulty(-np.inf, [2, 7]), Faulty(-np.inf, list(range(45)))
    assert Generator(few, None, "greedy").generate(PROMPTS, stop_token_ids=None)
    assert few.reads == []
    with pytest.raises(LogitsError, match=r"45 of 50 logits"):
        Generator(many, None, "greedy").generate(PROMPTS, stop_token_ids=None)


@pytest.mark.parametrize("field", ["logits", "totals"])
def test_rows_without_new_tokens_may_hold_anything(field: str) -> None:
    class Ragged(BestDecoder):
        def append(
            self, cache: Any, token_ids: Any, new_lengths: Any, *, first_row: int = 0, **options: Any
        ) -> StepOutput:
            options["first_row"] = first_row
            output = super().append(cache, token_ids, new_lengths, **options)
            assert output.best is not None
            idle = np.ones(len(cache.lengths), bool)
            idle[first_row : first_row + len(new_lengths)] = new_lengths == 0
            getattr(output.best, field)[idle] = np.nan
            return output

    decoder = Ragged(50, 8)
    lengths = {"token_ids": np.ones((2, 9), int), "padding_mask": np.tri(2, 9, 2, int)}
    lengths["padding_mask"][1] = 1
    lengths["padding_mask"][1, -2:] = 0
    generator = Generator(decoder, None, "greedy")
    generator.generate(lengths, stop_token_ids=None)
    assert decoder.appended[-1] < 2
    assert decoder.reads == []


def test_totals_that_are_wrong_where_the_logits_are_fine() -> None:
    class Wrong(BestDecoder):
        def append(self, cache: Any, *arguments: Any, **options: Any) -> StepOutput:
            output = super().append(cache, *arguments, **options)
            assert output.best is not None
            output.best.totals[:] = np.nan
            return output

    decoder = Wrong(50, 8)
    sampler = TopPSampler(p=0.3, seed=1)
    found = Generator(decoder, None, sampler).generate(PROMPTS, stop_token_ids=None)
    wanted = Generator(Plain(50, 8), None, sampler).generate(PROMPTS, stop_token_ids=None)
    assert found["token_ids"].tolist() == wanted["token_ids"].tolist()
    assert decoder.reads == list(range(1, decoder.steps + 1))
