"""Greedy and top-k sampling, temperature, and seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Generator
from runtime.engine.search.sampling import row_generators
from runtime.probabilities import draw, softmax
from runtime.samplers import GreedySampler, TopKSampler

ROWS = 8_000
# The chi-square statistic's 99.99 % quantiles by degrees of freedom.
CHI_SQUARE = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51, 5: 25.74}


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return row_generators(seed, [()] * count)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


def test_softmax() -> None:
    found = softmax(np.log(np.array([[1.0, 2.0, 5.0], [3.0, 3.0, 2.0]])))
    assert np.abs(found - [[0.125, 0.25, 0.625], [0.375, 0.375, 0.25]]).max() < 1e-15
    large = softmax(np.array([1e30, 1e30, -1e30], np.float32))
    assert large.tolist() == [0.5, 0.5, 0.0]


def test_draw_is_the_inverse_distribution() -> None:
    class Fixed:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    values = [0.0, 0.249, 0.25, 0.251, 0.749, 0.75, 0.9999999999999999]
    probabilities = np.tile([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], (len(values), 1))
    picks = draw(probabilities, [Fixed(value) for value in values])  # type: ignore[misc]
    assert picks.tolist() == [1, 1, 3, 3, 3, 4, 4]  # never one of no probability
    assert picks.dtype == np.int64


# === Greedy ===


def test_greedy_takes_the_largest_and_the_first_on_a_tie() -> None:
    logits = np.array([[0, 3, 1, 3], [5, 5, 5, 5], [-4, -3, -2, -1], [1, 0, 0, 0]], np.float32)
    assert GreedySampler().sample(logits, generators(4)).tolist() == [1, 0, 3, 0]


def test_greedy_takes_a_temperature_as_in_keras() -> None:
    logits = np.array([[0, 3, 1]], np.float32)
    assert GreedySampler(temperature=0.5).sample(logits, generators(1)).tolist() == [1]


def test_greedy_uses_no_randomness() -> None:
    used, untouched = generators(1)[0], generators(1)[0]
    GreedySampler().sample(np.array([[1, 2]], np.float32), [used])
    assert used.random() == untouched.random()


# === Top-k ===


def test_top_k_draws_among_the_k_largest_by_their_probabilities() -> None:
    logits = np.array([1.0, -3.0, 2.0, 0.5, 0.0, 1.5, -1.0], np.float32)
    picks = TopKSampler(k=4).sample(np.tile(logits, (ROWS, 1)), generators(ROWS))
    counts = np.bincount(picks, minlength=len(logits))
    assert np.flatnonzero(counts).tolist() == [0, 2, 3, 5]
    kept = np.exp(np.array([1.0, 2.0, 0.5, 1.5]))
    assert chi_square(counts[[0, 2, 3, 5]], kept / kept.sum()) < CHI_SQUARE[3]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    logits = np.array([1.0, 0.0, 2.0], np.float32)
    sampler = TopKSampler(k=3, temperature=temperature)
    picks = sampler.sample(np.tile(logits, (ROWS, 1)), generators(ROWS))
    expected = np.exp(logits.astype(float) / temperature)
    others = np.exp(logits.astype(float))
    counts = np.bincount(picks, minlength=3)
    assert chi_square(counts, expected / expected.sum()) < CHI_SQUARE[2]
    assert chi_square(counts, others / others.sum()) > 100


def test_a_temperature_near_zero_is_greedy_and_a_large_one_is_uniform() -> None:
    logits = np.tile(np.array([1.0, 1.01, 0.5, 0.99], np.float32), (ROWS, 1))
    cold = TopKSampler(k=4, temperature=1e-4).sample(logits, generators(ROWS))
    assert set(cold.tolist()) == {1}
    hot = TopKSampler(k=4, temperature=1e9).sample(logits, generators(ROWS))
    assert chi_square(np.bincount(hot, minlength=4), np.full(4, 0.25)) < CHI_SQUARE[3]


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=40, unique=True),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
def test_top_k_never_leaves_its_support(values: list[float], k: int, seed: int) -> None:
    logits = np.array([values], np.float32)
    (pick,) = TopKSampler(k=k).sample(logits, generators(1, seed))
    assert pick in np.argsort(logits[0])[-k:]


def test_top_1_is_greedy() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 300)).astype(np.float32)
    picks = TopKSampler(k=1).sample(logits, generators(50))
    assert picks.tolist() == logits.argmax(axis=1).tolist()


def test_k_may_be_the_whole_vocabulary() -> None:
    logits = np.zeros((ROWS, 6), np.float32)
    picks = TopKSampler(k=6).sample(logits, generators(ROWS))
    assert chi_square(np.bincount(picks, minlength=6), np.full(6, 1 / 6)) < CHI_SQUARE[5]


def test_k_larger_than_the_vocabulary() -> None:
    with pytest.raises(
        ValueError, match="k=7 is larger than the vocabulary of 6 tokens; give k a value from 1 to 6"
    ):
        TopKSampler(k=7).sample(np.zeros((1, 6), np.float32), generators(1))


def test_masked_logits_are_never_drawn() -> None:
    logits = np.tile(np.array([0.0, -np.inf, 0.0, -np.inf], np.float32), (ROWS, 1))
    picks = TopKSampler(k=4).sample(logits, generators(ROWS))
    assert np.flatnonzero(np.bincount(picks, minlength=4)).tolist() == [0, 2]


def test_a_row_draws_the_same_whoever_is_beside_it() -> None:
    logits = np.random.default_rng(1).standard_normal((6, 100)).astype(np.float32)
    together = TopKSampler().sample(logits, generators(6))
    for i, row in enumerate(logits):
        alone = TopKSampler().sample(row[None], generators(6)[i : i + 1])
        assert alone.tolist() == [together[i]]


# === Seeds ===


def test_same_seed_same_draws_and_another_seed_others(generator: Generator) -> None:
    def text(seed: int | None) -> str:
        generator.compile(TopKSampler(seed=seed))
        return generator.generate("The quick", stop_token_ids=None)

    assert text(3) == text(3)
    assert len({text(seed) for seed in range(5)}) == 5
    assert text(None) != text(None)


def test_the_draws_of_a_seed_stay_what_they_are(generator: Generator) -> None:
    """A change of this list changes everyone's seeded text: it belongs in the changelog."""
    generator.compile(TopKSampler(k=5, seed=0))
    (result,) = generator.generate_results("The quick", max_length=12, stop_token_ids=None)
    assert result.token_ids == (275, 186, 198, 62, 114, 140, 11, 215)


def test_row_generators_depend_on_the_seed_and_the_prompt() -> None:
    def first_numbers(seed: int, prompts: list[tuple[int, ...]]) -> list[float]:
        return [generator.random() for generator in row_generators(seed, prompts)]

    a, b = (2, 5), (2, 6)
    alone = first_numbers(0, [a])
    assert first_numbers(0, [b, a, a])[1] == alone[0]
    assert len(set(first_numbers(0, [a, a, a]))) == 3
    assert first_numbers(1, [a]) != alone
