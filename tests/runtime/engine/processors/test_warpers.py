"""Processors that keep the most probable tokens, or the most typical."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from runtime.engine import processors
from runtime.engine.processors import Processor

OUT = -np.inf
# Logarithms of these are exact enough: no border lies on one of them.
HALVES = [0.5, 0.25, 0.125, 0.0625, 0.0625]
KINDS: dict[str, Callable[[], Processor]] = {
    "top_p": lambda: processors.TopP(0.9),
    "min_p": lambda: processors.MinP(0.1),
    "typical_p": lambda: processors.TypicalP(0.9),
    "epsilon_cutoff": lambda: processors.EpsilonCutoff(0.1),
    "eta_cutoff": lambda: processors.EtaCutoff(0.1),
}


def kept(processor: Processor, probabilities: Sequence[float]) -> list[int]:
    """Which tokens stay; their logits stay as they are."""
    with np.errstate(divide="ignore"):
        before = np.log(np.array(probabilities, np.float32)) + np.float32(3)
    after = before.copy()
    processor.process([2], 1, after)
    places = (after > OUT).nonzero()[0]
    assert after[places].tolist() == before[places].tolist()
    return [int(place) for place in places]


def test_a_temperature_divides() -> None:
    logits = np.array([3, -1, OUT], np.float32)
    processors.Temperature(2).process([2], 1, logits)
    assert logits.tolist() == [1.5, -0.5, OUT]


def test_top_k_keeps_all_that_are_as_probable_as_the_last() -> None:
    assert kept(processors.TopK(1), HALVES) == [0]
    assert kept(processors.TopK(3), HALVES) == [0, 1, 2]
    assert kept(processors.TopK(4), HALVES) == [0, 1, 2, 3, 4]
    assert kept(processors.TopK(99), HALVES) == [0, 1, 2, 3, 4]
    assert kept(processors.TopK(3), [0, 1, 0, 0]) == [1]


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    for p, count in ((0, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.88, 4), (0.95, 5), (1, 5)):
        assert kept(processors.TopP(p), HALVES) == list(range(count)), p
    assert kept(processors.TopP(0.76), HALVES[::-1]) == [2, 3, 4]


def test_of_equal_tokens_at_the_edge_top_p_keeps_the_lower_ids() -> None:
    equal = [0.25] * 4
    assert kept(processors.TopP(0.5), equal) == [0, 1]
    assert kept(processors.TopP(0.51), equal) == [0, 1, 2]
    assert kept(processors.TopP(0), equal) == [0]
    assert kept(processors.TopP(0.5), [0.1, 0.2, 0.2, 0.3, 0.2]) == [1, 3]


def test_min_p_is_a_share_of_the_largest_probability() -> None:
    for share, count in ((0, 5), (0.12, 5), (0.13, 3), (0.49, 2), (0.51, 1), (1, 1)):
        assert kept(processors.MinP(share), HALVES) == list(range(count)), share
    assert kept(processors.MinP(1), [0.4, 0.2, 0.4]) == [0, 2]


def test_typical_tokens_are_as_surprising_as_the_entropy() -> None:
    """The entropy is 1.3 nats: of the surprises 0.7, 1.4, 2.1, 2.8, 2.8 the second is the nearest."""
    assert -sum(p * math.log(p) for p in HALVES) == pytest.approx(1.3, abs=0.01)
    for mass, ids in ((0.1, [1]), (0.24, [1]), (0.26, [0, 1]), (0.76, [0, 1, 2]), (0.9, range(5))):
        assert kept(processors.TypicalP(mass), HALVES) == list(ids), mass


def test_epsilon_is_a_probability() -> None:
    for epsilon, count in ((0.05, 5), (0.1, 3), (0.3, 1), (0.99, 1)):
        assert kept(processors.EpsilonCutoff(epsilon), HALVES) == list(range(count)), epsilon
    assert kept(processors.EpsilonCutoff(0.9), [0.2, 0.3, 0.3, 0.2]) == [1, 2]


def test_eta_depends_on_the_entropy() -> None:
    """exp(-1.3) is 0.27: epsilon is the smaller one below 0.27 squared."""
    for epsilon, count in ((0.05, 5), (0.07, 3), (0.2, 3), (0.25, 2), (0.9, 1)):
        assert kept(processors.EtaCutoff(epsilon), HALVES) == list(range(count)), epsilon


@pytest.mark.parametrize("name", KINDS)
def test_excluded_tokens_stay_excluded(name: str) -> None:
    assert kept(KINDS[name](), [0, 1, 0]) == [1]
    assert kept(KINDS[name](), [0, 0.5, 0.5, 0]) == [1, 2]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scale", [0.1, 3, 30])
def test_borders_hold_in_a_large_vocabulary(name: str, scale: float) -> None:
    """Against float64, without the shortcuts."""
    logits = np.random.default_rng(3).normal(0, scale, 50272).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    p = weights / weights.sum()
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
    falling = np.sort(p)[::-1]
    if name == "typical_p":
        order = np.abs(logits - (p * logits).sum()).argsort()
        wanted = order[: int((p[order].cumsum() < 0.9).sum()) + 1]
    else:
        least = {
            "top_p": falling[int((falling.cumsum() < 0.9).sum())],
            "min_p": 0.1 * p.max(),
            "epsilon_cutoff": min(0.1, p.max()),
            "eta_cutoff": min(0.1, math.sqrt(0.1) * math.exp(-entropy), p.max()),
        }[name]
        wanted = (p >= least).nonzero()[0]
    KINDS[name]().process([2], 1, logits)
    found = set((logits > OUT).nonzero()[0].tolist())
    assert len(found ^ set(wanted.tolist())) <= 2  # float32 may err at the edge


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("bad", "told"), [(OUT, "no token is left to choose"), (np.nan, "NaN or"), (np.inf, "NaN or")]
)
def test_rows_without_a_choice_are_refused(name: str, bad: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        KINDS[name]().process([2], 1, np.full(5, bad, np.float32))
