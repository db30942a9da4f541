"""Samplers draw by the distribution that a few lines of float64 NumPy give."""

from __future__ import annotations

from typing import cast

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime.engine.search.sampling import row_generators
from runtime.probabilities import softmax
from runtime.samplers import GreedySampler, RandomSampler, Sampler, TopKSampler, TopPSampler
from tests.runtime.fake_decoder import best_logits

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=80)
TEMPERATURE = st.floats(0.05, 20)
PLACE = st.floats(0, 1, exclude_max=True)
CLOSE = 1e-4  # float32 sums of up to 80 weights


class FixedPlace:
    """A random generator whose every number is the same."""

    def __init__(self, place: float) -> None:
        self._place = place

    def random(self) -> float:
        """The number."""
        return self._place


def pick(sampler: Sampler, logits: list[float], place: float) -> int:
    generator = cast(np.random.Generator, FixedPlace(place))
    return int(sampler.sample(np.array([logits], np.float32), [generator])[0])


def probabilities(logits: list[float], temperature: float) -> np.ndarray:
    scaled = np.array(logits, np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def check_pick(found: int, kept: np.ndarray, place: float) -> None:
    """Whether the index is where the place lies in the sums of what is kept, up to rounding."""
    assert kept[found] > 0
    sums = np.concatenate([[0.0], np.cumsum(kept / kept.sum())])
    assert sums[found] - CLOSE <= place <= sums[found + 1] + CLOSE


@given(LOGITS, TEMPERATURE)
def test_probabilities_sum_to_one_and_are_those_of_the_reference(
    logits: list[float], temperature: float
) -> None:
    found = softmax(np.array([logits], np.float32), temperature)[0]
    assert abs(found.sum() - 1) < 1e-5
    np.testing.assert_allclose(found, probabilities(logits, temperature), atol=1e-5)


@given(LOGITS, TEMPERATURE, PLACE)
def test_random_draws_from_the_whole_distribution(
    logits: list[float], temperature: float, place: float
) -> None:
    found = pick(RandomSampler(temperature=temperature), logits, place)
    check_pick(found, probabilities(logits, temperature), place)


@given(LOGITS, TEMPERATURE, PLACE, st.integers(1, 80))
def test_top_k_keeps_the_k_largest_and_their_proportions(
    logits: list[float], temperature: float, place: float, k: int
) -> None:
    k = min(k, len(logits))
    found = pick(TopKSampler(k=k, temperature=temperature), logits, place)
    kept = np.zeros(len(logits))
    top = np.argsort(-np.array(logits, np.float32), kind="stable")[:k]
    kept[top] = probabilities(logits, temperature)[top]
    check_pick(found, kept, place)


@given(LOGITS, TEMPERATURE, PLACE, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_exceed_p(
    logits: list[float], temperature: float, place: float, p: float
) -> None:
    everything = probabilities(logits, temperature)
    order = np.argsort(-everything, kind="stable")
    sums = np.cumsum(everything[order])
    assume(np.abs(sums - p).min() > CLOSE)  # on the edge rounding decides
    edge = everything[order[int(np.argmax(sums > p))]]
    assume(np.count_nonzero(np.abs(everything - edge) < 1e-6) == 1)  # so does the order of equals
    kept = np.where(everything >= edge, everything, 0)
    check_pick(pick(TopPSampler(p=p, temperature=temperature), logits, place), kept, place)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=40, unique=True), PLACE)
def test_low_temperatures_are_greedy(values: list[int], place: float) -> None:
    logits = [float(value) for value in values]
    greedy = pick(GreedySampler(), logits, place)
    assert greedy == int(np.argmax(values))
    for sampler in (RandomSampler, TopKSampler, TopPSampler):
        options = {"k": 2} if sampler is TopKSampler else {}
        assert pick(sampler(temperature=0.001, **options), logits, place) == greedy


@given(LOGITS, PLACE)
def test_high_temperatures_make_all_tokens_alike(logits: list[float], place: float) -> None:
    found = pick(RandomSampler(temperature=1e9), logits, place)
    check_pick(found, np.ones(len(logits)), place)


@given(LOGITS, st.integers(0, 2**63), st.integers(1, 6))
def test_a_seed_gives_a_row_its_tokens_whoever_is_beside_it(
    logits: list[float], seed: int, rows: int
) -> None:
    sampler = RandomSampler()
    batch = np.array([logits] * rows, np.float32)
    keys = [(row,) for row in range(rows)]
    together = sampler.sample(batch.copy(), row_generators(seed, keys)).tolist()
    again = sampler.sample(batch.copy(), row_generators(seed, keys)).tolist()
    alone = [int(sampler.sample(batch[:1].copy(), row_generators(seed, [key]))[0]) for key in keys]
    assert together == again == alone


# === From the best logits alone ===

SOME_SAMPLERS = st.one_of(
    st.builds(GreedySampler),
    st.builds(TopKSampler, k=st.integers(1, 70), temperature=TEMPERATURE),
    st.builds(
        TopPSampler,
        p=st.floats(0.01, 1),
        k=st.none() | st.integers(1, 70),
        temperature=TEMPERATURE,
    ),
)


@st.composite
def rows_of_logits(draw: st.DrawFn) -> np.ndarray:
    """Steep, flat or tied logits [rows, vocabulary], as of float32 or of float16."""
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(40, 5_000)))
    logits = source.standard_normal(shape) * draw(st.sampled_from([0.0, 0.01, 1.0, 5.0, 30.0]))
    step = draw(st.sampled_from([0.0, 0.25, 3.0]))
    logits = np.round(logits / step) * step if step else logits
    return logits.astype(draw(st.sampled_from([np.float16, np.float32]))).astype(np.float32)


@settings(max_examples=300)
@given(SOME_SAMPLERS, rows_of_logits(), st.integers(1, 64), st.integers(0, 2**32))
def test_the_best_logits_give_the_token_of_all_or_none(
    sampler: Sampler, logits: np.ndarray, count: int, seed: int
) -> None:
    assume(getattr(sampler, "k", None) is None or sampler.k <= logits.shape[1])  # type: ignore[attr-defined]
    count = min(count, logits.shape[1])
    best = best_logits(logits, count, sampler.temperature, seed)
    keys = [(row,) for row in range(len(logits))]
    ours, theirs = row_generators(seed, keys), row_generators(seed, keys)
    found = sampler.sample_best(best, ours)
    if found is not None:
        assert found.tolist() == sampler.sample(logits, theirs).tolist()
    states = [[g.bit_generator.state for g in generators] for generators in (ours, theirs)]
    assert states[0] == states[1]
