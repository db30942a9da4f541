"""Tokens from the best logits alone are those from all logits, or none is given."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from runtime.decoder import BestLogits
from runtime.engine.search.sampling import row_generators
from runtime.samplers import (
    BeamSampler,
    ContrastiveSampler,
    GreedySampler,
    RandomSampler,
    Sampler,
    TopKSampler,
    TopPSampler,
)
from tests.runtime.fake_decoder import best_logits

VOCABULARY = 1_000
SAMPLERS: list[Sampler] = [
    GreedySampler(),
    GreedySampler(temperature=0.3),
    TopKSampler(k=1),
    TopKSampler(),
    TopKSampler(k=40, temperature=0.7),
    TopPSampler(),
    TopPSampler(p=0.5, temperature=1.7),
    TopPSampler(p=0.95, temperature=0.3),
    TopPSampler(p=0.9, k=10),
    TopPSampler(p=1, k=30),
    TopPSampler(p=0.4, k=200),
]


def describe(sampler: Any) -> str:
    """A test's name for a sampler."""
    if not isinstance(sampler, Sampler):
        return str(sampler)
    values = [f"{key}={value:g}" for key, value in sampler.get_config().items() if value is not None]
    return " ".join([type(sampler).__name__, *values])


def listed(*rows: Sequence[float], count: int, temperature: float = 1.0) -> BestLogits:
    return best_logits(np.array(rows, np.float32), count, temperature)


class Untouched:
    """A generator that must not be used."""

    def random(self) -> float:
        raise AssertionError("a number was drawn")


UNTOUCHED = cast(np.random.Generator, Untouched())


def choose(sampler: Sampler, best: BestLogits) -> list[int] | None:
    """What a sampler chooses from the best logits, without a number for rows it does not decide."""
    generators = row_generators(0, [(i,) for i in range(len(best.logits))])
    found = sampler.sample_best(best, generators)
    if found is None:
        assert sampler.sample_best(best, [UNTOUCHED] * len(generators)) is None
        return None
    assert found.dtype == np.int64
    result: list[int] = found.tolist()
    return result


# === The same tokens ===


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 6.0, 40.0])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=describe)
def test_many_draws_are_those_from_all_logits(sampler: Sampler, spread: float) -> None:
    source = np.random.default_rng(5)
    decided = 0
    for seed in range(40):
        logits = (source.standard_normal((3, VOCABULARY)) * spread).astype(np.float16)
        rows = logits.astype(np.float32)
        one, other = (row_generators(seed, [()] * 3) for _ in range(2))
        found = sampler.sample_best(best_logits(rows, 64, sampler.temperature, seed), one)
        if found is not None:
            decided += 1
            assert found.tolist() == sampler.sample(rows, other).tolist()
        assert [g.bit_generator.state for g in one] == [g.bit_generator.state for g in other]
    if spread == 0:  # all tie
        assert decided == 0
    elif spread >= 6 or not isinstance(sampler, TopPSampler):
        assert decided >= 38


@pytest.mark.parametrize(
    ("sampler", "least"),
    [
        (GreedySampler(), 1.0),
        (TopKSampler(), 1.0),
        (TopKSampler(k=50), 0.98),
        (TopPSampler(), 0.98),
        (TopPSampler(p=0.5), 0.95),
        (TopPSampler(p=0.9, k=50), 0.95),
    ],
    ids=describe,
)
def test_logits_as_on_text_are_nearly_always_decided(sampler: Sampler, least: float) -> None:
    """Of 50,272 with a standard deviation of 5, the likeliest has about a third; see step_overhead."""
    source = np.random.default_rng(9)
    decided = 0
    for _ in range(60):
        logits = (source.standard_normal((1, 50_272)) * 5).astype(np.float16).astype(np.float32)
        top = np.argpartition(-logits[0], 200)[:200]  # the others are too small to be among the best
        few = best_logits(logits[:, top], 64)
        total = np.exp(logits - logits.max()).sum(axis=1)
        found = choose(sampler, BestLogits(few.logits, top[few.token_ids], total, 50_272))
        decided += found is not None
        if found is not None:
            assert found == sampler.sample(logits, row_generators(0, [(0,)])).tolist()
    assert decided >= least * 60


@pytest.mark.parametrize(
    "sampler", [RandomSampler(), BeamSampler(), ContrastiveSampler()], ids=describe
)
def test_who_needs_all_logits_says_so(sampler: Sampler) -> None:
    assert choose(sampler, listed([3, 2, 1, 0], count=2)) is None


# === What is decided and what is not ===


@pytest.mark.parametrize(
    ("row", "count", "token"),
    [
        ([1, 3, 2, 0], 2, 1),
        ([1, 3, 3, 0], 3, 1),
        ([0, 0, 5, 1, 5, 5, 5], 5, 2),
        ([1, 3, 3, 0], 2, None),  # a third that ties may have a lower id
        ([1, 3, 2, 0], 1, None),
        ([3, 3, 3], 3, 0),  # there is no other
        ([-0.0, 0.0, -1.0], 3, 0),
        ([7], 1, 0),
    ],
)
def test_greedy(row: list[float], count: int, token: int | None) -> None:
    assert choose(GreedySampler(), listed(row, count=count)) == (None if token is None else [token])


def drawn(sampler: Sampler, best: BestLogits, times: int = 150) -> set[int] | None:
    """Every token that a sampler may draw in the first row."""
    generators = row_generators(0, [()])
    found = [sampler.sample_best(best, generators) for _ in range(times)]
    if found[0] is None:
        assert all(each is None for each in found)
        return None
    return {int(each[0]) for each in found if each is not None}


@pytest.mark.parametrize(
    ("row", "count", "k", "kept"),
    [
        ([0, 1, 2, 1.5, -9], 4, 2, {2, 3}),
        ([0, 1, 2, 1.5, -9], 4, 3, {1, 2, 3}),
        ([0, 1, 2, 1.5, -9], 4, 4, None),  # the fifth may be as large as the fourth
        ([0, 1, 2, 1.5, -9], 4, 5, None),
        ([0, 1, 2, 1.5, -1], 5, 5, {0, 1, 2, 3, 4}),
        ([1, 1, 2, 1, 0, 0], 5, 2, {2, 0}),
        ([1, 1, 2, 1, 0, 0], 5, 3, {2, 0, 1}),
        ([1, 1, 2, 1, 0, 0], 4, 3, None),
        ([1, 1, 2, 1, 0, 0], 4, 1, {2}),
        ([1, 1, 1, 1], 4, 2, {0, 1}),
        ([1, 1, 1, 1], 3, 2, None),
    ],
)
def test_top_k(row: list[float], count: int, k: int, kept: set[int] | None) -> None:
    assert drawn(TopKSampler(k=k), listed(row, count=count)) == kept


LOGS = np.log([0.3, 0.1, 0.4, 0.15, 0.05]).tolist()


@pytest.mark.parametrize(
    ("count", "p", "k", "kept"),
    [
        (3, 0.1, None, {2}),
        (3, 0.39, None, {2}),
        (3, 0.41, None, {2, 0}),
        (3, 0.71, None, None),  # the fourth may be as large as the third
        (4, 0.71, None, {2, 0, 3}),
        (4, 0.96, None, None),
        (5, 0.96, None, {0, 1, 2, 3, 4}),
        (3, 0.96, 2, {2, 0}),
        (4, 0.41, 4, {2, 0}),
        (4, 0.41, 5, {2, 0}),
        (4, 0.96, 4, None),
        (5, 0.96, 4, {0, 1, 2, 3}),
        (3, 1.0, 2, {2, 0}),
        (3, 1.0, None, None),
        (3, 0.4 - 1e-6, None, None),  # the device's sum may be a little off
        (3, 0.4 + 1e-6, None, None),
        (3, 0.4 - 1e-4, None, {2}),
        (3, 0.4 + 1e-4, None, {2, 0}),
        (3, 0.7 - 1e-6, 2, None),
    ],
)
def test_top_p(count: int, p: float, k: int | None, kept: set[int] | None) -> None:
    assert drawn(TopPSampler(p=p, k=k), listed(LOGS, count=count)) == kept


@pytest.mark.parametrize(
    ("row", "count", "p", "k", "kept"),
    [
        ([1, 1, 2, 1, 0, 0], 5, 0.45, None, {2, 0}),
        ([1, 1, 2, 1, 0, 0], 5, 0.60, None, {2, 0, 1}),
        ([1, 1, 2, 1, 0, 0], 4, 0.45, None, None),
        ([1, 1, 2, 1, 0, 0], 4, 0.05, None, {2}),
        ([1, 1, 2, 1, 0, 0], 4, 0.9, 2, None),  # the second one may be a token that is not listed
        ([1, 1, 2, 1, 0, 0], 4, 0.05, 2, {2}),
        ([1, 1, 2, 1, 0, 0], 5, 0.9, 2, {2, 0}),
    ],
)
def test_top_p_on_ties(
    row: list[float], count: int, p: float, k: int | None, kept: set[int] | None
) -> None:
    assert drawn(TopPSampler(p=p, k=k), listed(row, count=count)) == kept


def test_top_p_is_a_share_of_the_whole_vocabulary_at_its_temperature() -> None:
    row = np.log([0.5, *[0.5 / 99] * 99]).tolist()
    for temperature, p in ((1.0, 0.5), (2.0, 0.5**0.5 / (0.5**0.5 + 99 * (0.5 / 99) ** 0.5))):
        sampler = TopPSampler(p=p - 1e-4, temperature=temperature)
        assert drawn(sampler, listed(row, count=2, temperature=temperature)) == {0}
        sampler = TopPSampler(p=p + 1e-4, temperature=temperature)
        assert drawn(sampler, listed(row, count=2, temperature=temperature)) is None


@pytest.mark.parametrize("k", [None, 6])
def test_top_p_where_the_sum_of_some_tokens_is_p_or_nearly(k: int | None) -> None:
    """On one side of p there is a token more; a device's total, a little off, must not decide."""
    source = np.random.default_rng(2)
    undecided = 0
    for seed in range(400):
        logits = (source.standard_normal((1, 200)) * 4).astype(np.float32)
        weights = -np.sort(-np.exp(logits[0] - logits.max()))
        off = source.uniform(-1, 1) * 10.0 ** -source.integers(3, 9)
        p = float(weights[: source.integers(1, 6)].sum() / weights.sum()) * (1 + off)
        best = best_logits(logits, 40)
        best.totals[:] *= 1 + source.uniform(-1e-5, 1e-5)
        sampler = TopPSampler(p=min(p, 1.0), k=k)
        found = choose(sampler, best)
        undecided += found is None
        if found is not None:
            generators = row_generators(seed, [()])
            for _ in range(20):
                copies = copy.deepcopy(generators)
                tokens = sampler.sample_best(best, generators)
                assert tokens is not None
                assert tokens.tolist() == sampler.sample(logits.copy(), copies).tolist()
    assert 150 < undecided < 350


@pytest.mark.parametrize("total", [np.nan, np.inf])
def test_top_p_does_not_trust_a_total_that_is_no_number(total: float) -> None:
    best = listed([3, 2, 1, 0], count=3)
    best.totals[:] = total
    assert choose(TopPSampler(p=0.2), best) is None
    assert choose(TopPSampler(p=0.2, k=2), best) is None


@pytest.mark.parametrize("sampler", [TopKSampler(k=6), TopPSampler(k=6)], ids=describe)
def test_k_beyond_the_vocabulary(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match=r"k=6 is larger than the vocabulary of 5 tokens"):
        sampler.sample_best(listed(LOGS, count=3), [UNTOUCHED])


@pytest.mark.parametrize(
    "sampler", [GreedySampler(), TopKSampler(k=2), TopPSampler(p=0.5)], ids=describe
)
def test_one_undecided_row_leaves_all_generators_as_they_are(sampler: Sampler) -> None:
    best = listed([9, 5, 1, 0], [1, 1, 1, 1], [9, 5, 1, 0], count=3)
    assert sampler.sample_best(best, [UNTOUCHED] * 3) is None
    found = choose(sampler, best.rows([0, 2]))
    assert found is not None
    assert found[0] == 0
