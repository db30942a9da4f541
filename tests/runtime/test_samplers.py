"""Samplers: exact distributions, seeds, and configurations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Generator, samplers
from runtime.generation import row_generators
from runtime.samplers import GreedySampler, Sampler, TopKSampler
from runtime.samplers.sampler import draw, softmax
from tests.runtime.toy import CASES

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
    with pytest.raises(ValueError, match="k=7 is larger than the vocabulary of 6 tokens"):
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


# === Configurations ===


@pytest.mark.parametrize(
    ("sampler", "config"),
    [
        (GreedySampler(), {"class_name": "GreedySampler", "config": {}}),
        (
            TopKSampler(k=7, seed=3, temperature=0.5),
            {"class_name": "TopKSampler", "config": {"k": 7, "temperature": 0.5, "seed": 3}},
        ),
        (
            TopKSampler(),
            {"class_name": "TopKSampler", "config": {"k": 5, "temperature": 1.0, "seed": None}},
        ),
        (
            TopKSampler(k=np.int64(4), seed=np.int64(9), temperature=2),  # type: ignore[arg-type]
            {"class_name": "TopKSampler", "config": {"k": 4, "temperature": 2.0, "seed": 9}},
        ),
    ],
    ids=["greedy", "top_k", "defaults", "numpy"],
)
def test_a_configuration_goes_through_json(sampler: Sampler, config: dict[str, Any]) -> None:
    assert samplers.serialize(sampler) == config
    again = samplers.deserialize(json.loads(json.dumps(samplers.serialize(sampler))))
    assert type(again) is type(sampler)
    assert samplers.serialize(again) == config


def test_get_takes_names_samplers_and_configurations() -> None:
    assert type(samplers.get("greedy")) is GreedySampler
    assert type(samplers.get("Top_K")) is TopKSampler
    sampler = TopKSampler(k=2)
    assert samplers.get(sampler) is sampler
    for name in ("top_k", "TopKSampler"):
        found = samplers.get({"class_name": name, "config": {"k": 9}})
        assert isinstance(found, TopKSampler)
        assert (found.k, found.temperature, found.seed) == (9, 1.0, None)
    assert type(samplers.get({"class_name": "greedy"})) is GreedySampler


@pytest.mark.parametrize("identifier", ["beam", "", "TopKSampler", None, 5, ["greedy"], TopKSampler])
def test_unknown_names(identifier: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown sampler .* choose one of \['greedy', 'top_k'\]"):
        samplers.get(identifier)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"class_name": "Beam", "config": {}},
        {"class_name": None},
        {"class_name": ["greedy"]},
        {"class_name": "top_k", "config": [5]},
        {"class_name": "os.system", "config": {}},
    ],
)
def test_unknown_configurations(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown sampler configuration .* class_name must be one of"):
        samplers.get(config)


@pytest.mark.parametrize("config", [{"kk": 3}, {"k": 3, "beams": 2}])
def test_unknown_values_of_a_configuration(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kk|beams"):
        samplers.get({"class_name": "top_k", "config": config})


@pytest.mark.parametrize("k", [0, -1, 2.0, "5", None, True])
def test_bad_k(k: Any) -> None:
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got"):
        TopKSampler(k=k)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, "1", None, True])
def test_bad_temperature(temperature: Any) -> None:
    with pytest.raises(ValueError, match="temperature must be a number above 0, got"):
        TopKSampler(temperature=temperature)


def test_a_temperature_may_be_any_kind_of_number() -> None:
    for value in (2, np.float32(2), np.float64(2), np.int64(2)):
        assert TopKSampler(temperature=value).temperature == 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_bad_seed(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0 or None, got"):
        TopKSampler(seed=seed)


# === One's own ===


class SecondBest(Sampler):
    """What the documentation of `Sampler` shows: probabilities in, tokens out."""

    def get_next_token(
        self, probabilities: np.ndarray, generators: Sequence[np.random.Generator]
    ) -> np.ndarray:
        assert np.abs(probabilities.sum(axis=-1) - 1).max() < 1e-5
        assert len(generators) == len(probabilities)
        return np.argsort(probabilities, axis=-1)[:, -2]


def test_a_sampler_of_ones_own(generator: Generator) -> None:
    generator.compile(SecondBest())
    (result,) = generator.generate_results("The quick", max_length=5, stop_token_ids=None)
    case = CASES[2]
    assert case["text"] == "The quick"
    assert result.token_ids == (int(np.argsort(case["logits_after_prompt"])[-2]),)


def test_the_base_class_has_probabilities_at_its_temperature() -> None:
    class Recording(Sampler):
        def get_next_token(self, probabilities: Any, generators: Any) -> Any:
            self.seen = probabilities
            return np.zeros(len(probabilities), np.int64)

    sampler = Recording(temperature=0.5)
    sampler.sample(np.log(np.array([[1.0, 2.0]], np.float32)), generators(1))
    assert np.abs(sampler.seen - [[0.2, 0.8]]).max() < 1e-6


def test_a_sampler_without_a_method(generator: Generator) -> None:
    class Nothing(Sampler):
        pass

    generator.compile(Nothing())
    with pytest.raises(TypeError, match="Nothing must override get_next_token or sample"):
        generator.generate("t")
