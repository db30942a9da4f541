"""Processors give the logits that transformers' own classes give, number by number.

Where float32 does not tell on which side of a border a token is, torch's result differs from machine to
machine; such cases are recognized in float64 and drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from runtime.engine import processors as ours

pytestmark = pytest.mark.reference

CASES = [100, pytest.param(1000, marks=pytest.mark.slow)]
SHARE_ERROR = 5e-6  # more than float32 errs by in a probability, as a share of it
DISTANCE_ERROR = 3e-5  # and in the distance between a surprise and the entropy

torch: Any = None
theirs: Any = None

Array = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(autouse=True, scope="module")
def references():
    """torch and transformers' classes, which are not imported before a test needs them."""
    global torch, theirs
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.generation.logits_process")


@dataclass
class Row:
    """What a processor sees: token ids, the first of which are the prompt, and logits [vocabulary]."""

    token_ids: list[int]
    prompt_length: int
    logits: Array

    @property
    def vocabulary(self) -> int:
        return len(self.logits)

    @property
    def new_tokens(self) -> Any:
        return torch.tensor(self.token_ids[self.prompt_length :], dtype=torch.int64)


def draw_row(chance: np.random.Generator) -> Row:
    vocabulary = int(chance.integers(50, 2001))
    prompt_length, new = int(chance.integers(1, 41)), int(chance.choice([0, chance.integers(31)]))
    used = int(chance.choice([2, 5, 50]))  # of few, tokens come several times
    token_ids = chance.choice(vocabulary, used)[chance.integers(0, used, prompt_length + new)]
    logits = chance.normal(0, chance.choice([0.5, 1, 3, 10]), vocabulary)
    if chance.random() < 0.3:  # several have the same
        logits = np.round(logits * 4) / 4
    if chance.random() < 0.5:
        logits[chance.random(vocabulary) < chance.choice([0.1, 0.9])] = -np.inf
        logits[chance.integers(vocabulary)] = 1.0
    return Row(token_ids.tolist(), prompt_length, logits.astype(np.float32))


def some_ids(chance: np.random.Generator, row: Row, most: int = 8) -> list[int]:
    """Tokens that are there, and others."""
    ids = [*chance.choice(row.token_ids, 2), *chance.integers(0, row.vocabulary, most - 2)]
    return [int(i) for i in chance.permutation(ids)[: chance.integers(1, most + 1)]]


def some_sequences(chance: np.random.Generator, row: Row) -> list[list[int]]:
    """Ends of the token ids with one more token, and others; no sequence twice."""
    sequences = []
    for _ in range(chance.integers(1, 9)):
        length = int(chance.integers(1, 5))
        before = row.token_ids[len(row.token_ids) - length + 1 :] if length > 1 else []
        if chance.random() < 0.3:
            before = chance.integers(0, row.vocabulary, length - 1).tolist()
        sequences.append((*before, int(chance.choice([7, 11, chance.integers(row.vocabulary)]))))
    return [list(sequence) for sequence in dict.fromkeys(sequences)]


# === Processors: this project's, and the same of transformers or as a formula ===

Pair = tuple[ours.Processor, Callable[[Any, Any], Any]]


def penalty(chance: np.random.Generator) -> float:
    return float(chance.choice([1e-30, 0.1, 1.0, 1.3, 2.0, 1e30, chance.uniform(0.5, 2)]))


def repetition_penalty(chance: np.random.Generator, row: Row) -> Pair:
    value = penalty(chance)
    return ours.RepetitionPenalty(value), theirs.RepetitionPenaltyLogitsProcessor(value)


def presence_penalty(chance: np.random.Generator, row: Row) -> Pair:
    value = float(chance.choice([-2, 0, 2, chance.uniform(-2, 2)]))
    present = torch.bincount(row.new_tokens, minlength=row.vocabulary) > 0
    return ours.PresencePenalty(value), lambda ids, scores: scores - value * present


def frequency_penalty(chance: np.random.Generator, row: Row) -> Pair:
    value = float(chance.choice([-2, 0, 2, chance.uniform(-2, 2)]))
    counts = torch.bincount(row.new_tokens, minlength=row.vocabulary)
    return ours.FrequencyPenalty(value), lambda ids, scores: scores - value * counts


def no_repeat_ngram_size(chance: np.random.Generator, row: Row) -> Pair:
    value = int(chance.integers(1, 6))
    return ours.NoRepeatNgram(value), theirs.NoRepeatNGramLogitsProcessor(value)


def bad_words_ids(chance: np.random.Generator, row: Row) -> Pair:
    words, ends = some_sequences(chance, row), [int(chance.choice([7, 11])), 3]
    words.append([5, 6])  # transformers refuses a list of end tokens only
    processor = ours.BadWords(words, row.vocabulary, ends)
    return processor, theirs.NoBadWordsLogitsProcessor(words, ends)


def sequence_bias(chance: np.random.Generator, row: Row) -> Pair:
    biases = [
        [ids, float(chance.choice([-1e30, 1e30, chance.uniform(-9, 9), chance.uniform(-9, 9)]))]
        for ids in some_sequences(chance, row)
    ]
    return ours.SequenceBias(biases, row.vocabulary), theirs.SequenceBiasLogitsProcessor(biases)


def suppress_tokens(chance: np.random.Generator, row: Row) -> Pair:
    ids = some_ids(chance, row)
    return ours.SuppressTokens(ids, row.vocabulary), theirs.SuppressTokensLogitsProcessor(ids)


def begin_suppress_tokens(chance: np.random.Generator, row: Row) -> Pair:
    ids = some_ids(chance, row)
    reference = theirs.SuppressTokensAtBeginLogitsProcessor(ids, row.prompt_length)
    return ours.BeginSuppressTokens(ids, row.vocabulary), reference


def min_new_tokens(chance: np.random.Generator, row: Row) -> Pair:
    count, ends = int(chance.integers(0, 31)), some_ids(chance, row, 3)
    reference = theirs.MinNewTokensLengthLogitsProcessor(row.prompt_length, count, ends)
    return ours.MinNewTokens(count, ends, row.vocabulary), reference


def logit_bias(chance: np.random.Generator, row: Row) -> Pair:
    biases = {
        i: float(chance.choice([-100, 100, chance.uniform(-5, 5)])) for i in some_ids(chance, row)
    }
    added = torch.zeros(row.vocabulary)
    added[[*biases]] = torch.tensor([*biases.values()])
    return ours.LogitBias(biases, row.vocabulary), lambda ids, scores: scores + added


def allowed_token_ids(chance: np.random.Generator, row: Row) -> Pair:
    allowed = [*some_ids(chance, row), int(row.logits.argmax())]
    reference = theirs.PrefixConstrainedLogitsProcessor(lambda batch, ids: allowed, 1)
    return ours.AllowedTokens(allowed, row.vocabulary), reference


def function(chance: np.random.Generator, row: Row) -> Pair:
    factor = np.float32(chance.uniform(0.5, 2))
    processor = ours.FunctionProcessor(lambda ids, logits: logits * factor - np.float32(len(ids)))
    length = len(row.token_ids)
    return processor, lambda ids, scores: scores * float(factor) - float(length)


def temperature(chance: np.random.Generator, row: Row) -> Pair:
    value = float(chance.choice([1e-30, 1e30, 0.7, chance.uniform(0.1, 3), chance.uniform(0.1, 3)]))
    return ours.Temperature(value), theirs.TemperatureLogitsWarper(value)


def top_k(chance: np.random.Generator, row: Row) -> Pair:
    value = int(chance.choice([1, 2, 50, 5000, chance.integers(1, row.vocabulary)]))
    return ours.TopK(value), theirs.TopKLogitsWarper(value)


def top_p(chance: np.random.Generator, row: Row) -> Pair:
    value = float(chance.choice([0.0001, 0.1, 0.9, 0.95, 0.9999, chance.uniform(0, 1)]))
    return ours.TopP(value), theirs.TopPLogitsWarper(value)


def min_p(chance: np.random.Generator, row: Row) -> Pair:
    value = float(chance.choice([0, 0.001, 0.05, 0.5, chance.uniform(0, 1)]))
    return ours.MinP(value), theirs.MinPLogitsWarper(value)


def typical_p(chance: np.random.Generator, row: Row) -> Pair:
    value = float(chance.choice([0.001, 0.2, 0.9, 0.999, chance.uniform(0.01, 0.99)]))
    return ours.TypicalP(value), theirs.TypicalLogitsWarper(value)


def epsilon_cutoff(chance: np.random.Generator, row: Row) -> Pair:
    value = float(chance.choice([1e-6, 3e-4, 0.01, 0.9, chance.uniform(0, 0.1)]))
    return ours.EpsilonCutoff(value), theirs.EpsilonLogitsWarper(value)


def eta_cutoff(chance: np.random.Generator, row: Row) -> Pair:
    value = float(chance.choice([1e-6, 3e-4, 0.01, 0.9, chance.uniform(0, 0.1)]))
    return ours.EtaCutoff(value), theirs.EtaLogitsWarper(value)


# In the order in which they are applied.
BEFORE = [
    sequence_bias, logit_bias, repetition_penalty, frequency_penalty, presence_penalty,
    no_repeat_ngram_size, bad_words_ids, min_new_tokens, suppress_tokens, begin_suppress_tokens,
    allowed_token_ids, function,
]  # fmt: skip
WARPERS = [temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff]


# === What float32 cannot tell ===


def probabilities(logits: Array) -> Any:
    """In float64, as are the entropy and the distances below."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def is_near(values: Any, border: float, error: float = SHARE_ERROR) -> bool:
    return bool((np.abs(values - border) <= error * border).any())


def is_undecided(warper: Any, logits: Array) -> bool:
    """Whether a token may be on either side of one of transformers' warper's border."""
    p = probabilities(logits)
    if isinstance(warper, theirs.TopPLogitsWarper):
        return is_near(np.sort(p).cumsum(), 1 - warper.top_p)
    if isinstance(warper, theirs.MinPLogitsWarper):
        return warper.min_p > 0 and is_near(p, warper.min_p * p.max())
    if isinstance(warper, theirs.EpsilonLogitsWarper):
        return is_near(p, warper.epsilon)
    surprise = -np.log(p, where=p > 0, out=np.full(len(p), np.inf))
    entropy = (p[p > 0] * surprise[p > 0]).sum()
    if isinstance(warper, theirs.EtaLogitsWarper):
        epsilon = float(warper.epsilon)
        return is_near(p, min(epsilon, math.sqrt(epsilon) * math.exp(-entropy)), DISTANCE_ERROR)
    if not isinstance(warper, theirs.TypicalLogitsWarper):
        return False
    distances = np.abs(surprise - entropy)
    order = distances.argsort(kind="stable")
    sums = p[order].cumsum()
    border = distances[order[min(int((sums < warper.mass).sum()), len(p) - 1)]]
    at_border = np.abs(distances - border) <= DISTANCE_ERROR
    return is_near(sums, warper.mass) or len(np.unique(logits[at_border])) > 1


# === The comparison ===


def largest_difference(found: Array, wanted: Array) -> float:
    """0 where both are the same infinity; NaN is equal to nothing."""
    differing = found != wanted
    return float(np.abs(found[differing].astype(np.float64) - wanted[differing]).max(initial=0))


def compare(
    chance: np.random.Generator, makers: list[Callable[..., Pair]], whole: bool
) -> float | None:
    """The largest difference in one case; `None` where it is undecided, or has nothing to choose.

    `whole` is for the logits as a sampler gets them, of which one at least must be a number, and none
    be infinite.
    """
    row = draw_row(chance)
    pairs = [maker(chance, row) for maker in makers]
    scores = torch.from_numpy(row.logits.copy())[None]
    chain = ours.Chain(processor for processor, _ in pairs)
    for maker, (_, reference) in zip(makers, pairs, strict=True):
        if whole and maker in WARPERS and not math.isfinite(scores.max()):
            return refused(chain, row)
        if is_undecided(reference, scores[0].numpy()):
            return None
        scores = reference(torch.tensor([row.token_ids]), scores)
    if whole and not math.isfinite(scores.max()):
        return refused(chain, row)
    wanted, found = scores[0].numpy(), row.logits.copy()
    with np.errstate(over="ignore"):
        for processor in [chain] if whole else [processor for processor, _ in pairs]:
            processor.process(row.token_ids, row.prompt_length, found)
    if top_p in makers:  # which of several equal logits stay is torch's secret
        found, wanted = np.sort(found), np.sort(wanted)
    return largest_difference(found, wanted)


def refused(chain: ours.Chain, row: Row) -> None:
    """Not compared: transformers draws from NaN here, or fails."""
    with pytest.raises(ValueError, match=r"no token is left|NaN or infinite|NaN or plus infinity"):
        chain.process(row.token_ids, row.prompt_length, row.logits.copy())


def check(
    chance: np.random.Generator,
    choose: Callable[[], list[Callable[..., Pair]]],
    cases: int,
    *,
    whole: bool,
) -> None:
    """Compares as many cases as are wanted; `choose` gives the processors of each."""
    found: list[float] = []
    redrawn = 0
    while len(found) < cases:
        difference = compare(chance, choose(), whole)
        redrawn += difference is None
        if difference is not None:
            found.append(difference)
    print(f"{len(found)} cases, {redrawn} drawn again, largest difference {np.max(found)}")
    assert np.max(found) == 0
    assert redrawn <= cases // 4


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("maker", [*BEFORE, *WARPERS], ids=lambda maker: maker.__name__)
def test_logits_are_those_of_transformers(maker, cases):
    check(np.random.default_rng(17), lambda: [maker], cases, whole=False)


@pytest.mark.parametrize("cases", CASES)
def test_chains_give_the_logits_of_transformers(cases):
    chance = np.random.default_rng(18)

    def choose():
        before = [maker for maker in BEFORE if chance.random() < 0.25]
        return before + [maker for maker in WARPERS if chance.random() < 0.4]

    check(chance, choose, cases, whole=True)
