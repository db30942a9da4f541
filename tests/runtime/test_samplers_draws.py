"""Random, top-p and top-k against the exact distribution, and the arithmetic that they share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.search.sampling import row_generators
from runtime.probabilities import (
    draw_few,
    draw_one,
    exponentials,
    largest,
    largest_by_id,
    log_probabilities,
    softmax,
)
from runtime.samplers import RandomSampler, Sampler, TopKSampler, TopPSampler
from runtime.samplers.top_p import nucleus

DRAWS = 20_000
# A fixed distribution over 700 tokens, uneven as a language model's.
LOGITS = (np.random.default_rng(3).standard_normal(700) * 2.5).astype(np.float32)
# 99.99 % quantile of the chi-square distribution with 30 degrees of freedom.
CRITICAL = 67.63
CELLS = 31


def exact(temperature: float = 1.0) -> np.ndarray:
    scaled = LOGITS.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def keep_largest(probabilities: np.ndarray, count: int) -> np.ndarray:
    kept = np.zeros_like(probabilities)
    top = np.argsort(-probabilities, kind="stable")[:count]
    kept[top] = probabilities[top] / probabilities[top].sum()
    return kept


def keep_mass(probabilities: np.ndarray, p: float, most: int | None = None) -> np.ndarray:
    """Keras's rule: all tokens up to the first at which the sum is more than p."""
    order = np.argsort(-probabilities, kind="stable")[:most]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    return keep_largest(probabilities, int((before <= p).sum()))


def chi_square(picks: np.ndarray, probabilities: np.ndarray) -> float:
    """The statistic over 31 cells: the 30 most probable tokens, and all others together."""
    order = np.argsort(-probabilities, kind="stable")
    counts = np.bincount(picks, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    top, rest = order[: CELLS - 1], order[CELLS - 1 :]
    found = np.append(counts[top], counts[rest].sum())
    expected = len(picks) * np.append(probabilities[top], probabilities[rest].sum())
    assert expected.min() > 5
    return float(((found - expected) ** 2 / expected).sum())


def draws(sampler: Sampler, seed: int = 7) -> np.ndarray:
    """20,000 draws by one generator, a row at a time as a run makes them."""
    (generator,) = row_generators(seed, [()])
    logits = LOGITS[None]
    # A sampler may write into the logits.
    return np.array([sampler.sample(logits.copy(), [generator])[0] for _ in range(DRAWS)])


@pytest.mark.parametrize(
    ("sampler", "distribution"),
    [
        (RandomSampler(), exact()),
        (RandomSampler(temperature=0.7), exact(0.7)),
        (TopKSampler(k=60), keep_largest(exact(), 60)),
        (TopKSampler(k=40, temperature=1.5), keep_largest(exact(1.5), 40)),
        (TopPSampler(p=0.9), keep_mass(exact(), 0.9)),
        (TopPSampler(p=0.6, temperature=1.3), keep_mass(exact(1.3), 0.6)),
        (TopPSampler(p=0.9, k=50), keep_mass(exact(), 0.9, most=50)),
    ],
    ids=["random", "random 0.7", "top_k", "top_k 1.5", "top_p", "top_p 1.3", "top_p k"],
)
def test_draws_have_the_exact_distribution(sampler: Sampler, distribution: np.ndarray) -> None:
    picks = draws(sampler)
    assert chi_square(picks, distribution) < CRITICAL
    kept = np.flatnonzero(distribution)
    if DRAWS * distribution[kept].min() > 20:  # then each of them is met, and none outside
        assert np.unique(picks).tolist() == kept.tolist()


def test_the_statistic_can_tell_a_distribution_that_is_a_little_off() -> None:
    picks = draws(RandomSampler(temperature=1.05))
    assert chi_square(picks, exact(1.05)) < CRITICAL
    assert chi_square(picks, exact()) > CRITICAL


# === Which tokens stay ===


def assert_nucleus(weights: np.ndarray, p: float) -> None:
    total = float(weights.sum(dtype=np.float64))
    mass = p * total
    kept = nucleus(weights, mass, total)
    order = np.argsort(-weights, kind="stable")
    sums = np.append(0, np.cumsum(weights[order], dtype=np.float64))
    assert kept.tolist() == sorted(order[: len(kept)].tolist())
    assert len(kept) == 1 or sums[len(kept) - 1] <= mass * (1 + 1e-12)
    assert len(kept) == len(weights) or sums[len(kept)] > mass * (1 - 1e-12)


@given(st.lists(st.floats(-30, 5, width=32), min_size=1, max_size=60), st.floats(0.001, 1))
def test_the_nucleus_is_the_fewest_that_exceed_p(values: list[float], p: float) -> None:
    assert_nucleus(exponentials(np.array(values, np.float32)), p)


@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.95, 0.9999, 1.0])
def test_the_nucleus_of_a_whole_vocabulary(spread: float, p: float) -> None:
    generator = np.random.default_rng(8)
    logits = generator.standard_normal(50_272).astype(np.float32) * np.float32(spread)
    assert_nucleus(exponentials(logits), p)
    assert_nucleus(exponentials(np.round(logits * 4) / 4), p)  # with many ties


def test_the_nucleus_on_a_tie_has_the_lower_ids() -> None:
    assert nucleus(np.full(8, 1, np.float32), 3.0, 8.0).tolist() == [0, 1, 2, 3]
    assert nucleus(np.array([0.5, 1, 0.5, 0.5, 0.25], np.float32), 1.2, 2.75).tolist() == [0, 1]
    assert nucleus(np.array([0.1, 1, 0.1], np.float32), 0.0, 1.2).tolist() == [1]


def test_the_nucleus_where_the_mass_is_not_exceeded_is_all_that_has_weight() -> None:
    weights = np.array([0.5, 0, 1, 1e-10], np.float32)
    assert nucleus(weights, 2.0, float(weights.sum(dtype=np.float64))).tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("p", "k", "kept"),
    [
        (0.1, None, {2}),
        (0.39, None, {2}),
        (0.41, None, {2, 0}),
        (0.71, None, {2, 0, 3}),
        (1.0, None, {0, 1, 2, 3}),
        (1.0, 2, {2, 0}),
        (0.71, 2, {2, 0}),
        (0.41, 3, {2, 0}),
        (0.001, 4, {2}),
    ],
)
def test_tokens_of_top_p(p: float, k: int | None, kept: set[int]) -> None:
    """As in Keras, p is a share of the whole distribution also where k cuts it first."""
    logits = np.log(np.array([[0.3, 0.1, 0.4, 0.2]], np.float32))
    sampler = TopPSampler(p=p, k=k)
    generators = row_generators(0, [()])
    assert {int(sampler.sample(logits.copy(), generators)[0]) for _ in range(300)} == kept


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=400), st.integers(1, 400))
def test_largest_are_the_largest_and_the_lower_ids_on_a_tie(values: list[int], count: int) -> None:
    row = np.array(values, np.float32)
    count = min(count, len(row))
    assert largest(row, count).tolist() == np.argsort(-row, kind="stable")[:count].tolist()


@pytest.mark.parametrize("size", [1, 15, 16, 17, 5_000, 50_272])
def test_largest_of_any_size(size: int) -> None:
    row = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    for count in (1, 5, 300, size):
        if count <= size:
            wanted = np.argsort(-row, kind="stable")[:count]
            assert np.array_equal(largest(row, count), wanted)
            assert np.array_equal(largest_by_id(row, count), np.sort(wanted))
    row[-1] = 100  # beyond the last whole block
    assert largest(row, 1).tolist() == [size - 1]


# === Draws ===


class Fixed:
    """A generator that gives one number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize("size", [3, 2_048, 2_049, 5_000])
def test_a_draw_over_blocks_is_the_inverse_distribution(size: int) -> None:
    weights = np.random.default_rng(size).integers(0, 4, size).astype(np.float32)
    weights[[0, -1]] = 0  # neither end can be drawn
    weights[1] = 2
    cumulative = np.cumsum(weights, dtype=np.float64)
    for value in np.random.default_rng(1).random(500).tolist():
        found = draw_one(weights, Fixed(value))  # type: ignore[arg-type]
        assert found == np.searchsorted(cumulative, value * cumulative[-1], side="right")
    last = np.flatnonzero(weights)[-1]
    assert draw_one(weights, Fixed(0.9999999999999999)) == last  # type: ignore[arg-type]
    assert draw_one(weights, Fixed(1.0)) == last  # type: ignore[arg-type]
    assert draw_one(weights, Fixed(0.0)) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_a_draw_among_few_is_the_draw_by_their_weights(size: int, temperature: float) -> None:
    logits = np.random.default_rng(size).standard_normal(size).astype(np.float32).astype(np.float64)
    weights = exponentials(logits, temperature)
    for value in [*np.random.default_rng(1).random(300).tolist(), 0.0, 1.0]:
        fixed: Any = Fixed(value)
        assert draw_few(logits.tolist(), temperature, fixed) == draw_one(weights, fixed)


def test_a_draw_among_few_never_gives_one_of_no_weight() -> None:
    logits = [-np.inf, 2.0, -np.inf, 1.0, -np.inf]
    found = {draw_few(logits, 1.0, Fixed(v)) for v in (0.0, 0.9, 1.0)}  # type: ignore[arg-type]
    assert found == {1, 3}


def test_logits_give_their_place_where_they_can_be_written_to() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    kept = logits.copy()
    kept.flags.writeable = False
    expected = np.exp(np.array([-2.0, 0.0, -1.0], np.float32))
    assert np.array_equal(exponentials(kept, in_place=True), expected)
    assert np.array_equal(exponentials(logits), expected)
    assert np.array_equal(logits, kept)
    assert exponentials(logits, in_place=True) is logits
    assert np.array_equal(logits, expected)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [np.nan, 1.0]])
def test_weights_that_cannot_be_drawn_by(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot draw by probabilities that sum to"):
        draw_one(np.array(weights), Fixed(0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [TopKSampler(k=3), RandomSampler(), TopPSampler(0.5)])
def test_logits_that_are_not_numbers(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match=r"cannot choose by logits that are not"):
        sampler.sample(np.full((1, 300), np.nan, np.float32), row_generators(0, [()]))


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-4, 1e40, 1e300])
def test_extreme_temperatures(temperature: float) -> None:
    logits = np.array([[1.0, 3.0, -np.inf, 2.0]], np.float32)
    cold = temperature < 1
    found = softmax(logits, temperature)[0]
    assert np.abs(found - ([0, 1, 0, 0] if cold else [1 / 3, 1 / 3, 0, 1 / 3])).max() < 1e-6
    for make in (RandomSampler, TopKSampler, TopPSampler):
        more: dict[str, Any] = {"k": 3} if make is TopKSampler else {}
        more |= {"p": 1.0} if make is TopPSampler else {}
        sampler = make(temperature=temperature, **more)
        picks = {int(sampler.sample(logits.copy(), [g])[0]) for g in row_generators(0, [()] * 60)}
        assert picks == ({1} if cold else {0, 1, 3})


def test_log_probabilities_where_float32_has_none() -> None:
    logits = np.array([0.0, 1.0, -500.0], np.float32)
    found = log_probabilities(logits, np.array([1, 2]))
    total = np.log(1 + np.exp(1.0))
    assert np.abs(found - [1 - total, -500 - total]).max() < 1e-6


# === Rows ===

SAMPLERS = [
    RandomSampler(),
    TopKSampler(k=7),
    TopKSampler(k=900),
    TopPSampler(p=0.95),
    TopPSampler(p=0.5, k=9),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{type(s).__name__} {s.get_config()}")
def test_a_row_draws_the_same_whoever_is_beside_it(sampler: Sampler) -> None:
    logits = np.random.default_rng(1).standard_normal((6, 1_000)).astype(np.float32) * 3
    generators = [row_generators(seed, [()] * 6) for seed in itertools.repeat(0, 7)]
    together = sampler.sample(logits.copy(), generators[-1]).tolist()
    for i, row in enumerate(logits):
        assert sampler.sample(row[None].copy(), generators[i][i : i + 1]).tolist() == [together[i]]
    assert len(set(together)) > 3


@pytest.mark.parametrize("p", [0, -0.1, 1.01, float("nan"), "0.5", None, True])
def test_bad_p(p: Any) -> None:
    with pytest.raises(ValueError, match="p must be a number above 0 and at most 1, got"):
        TopPSampler(p=p)


@pytest.mark.parametrize("k", [0, 2.5, "3", False])
def test_bad_k_of_top_p(k: Any) -> None:
    with pytest.raises(ValueError, match="k must be a whole number of at least 1 or None, got"):
        TopPSampler(k=k)


def test_k_of_top_p_larger_than_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="k=7 is larger than the vocabulary of 6 tokens; give k a"):
        TopPSampler(k=7).sample(np.zeros((1, 6), np.float32), row_generators(0, [()]))
