"""Contrastive search: the scores of the paper, rows that do not depend on each other, the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import GenerationOptions, Generator
from runtime.call_limits import CallLimits
from runtime.engine.call import Call
from runtime.engine.request import Request
from runtime.engine.search.contrastive import ContrastiveSearch, History, candidates, choose
from runtime.samplers import ContrastiveSampler
from runtime.session import SessionDecoder
from tests.runtime.engine_runs import steps
from tests.runtime.fake_decoder import SequenceDecoder
from tests.runtime.toy import CASES, POSITIONS

PROMPTS = [tuple(case["prompt"]) for case in CASES]
STOPS = frozenset({3, 11, 26, 27, 62, 198})
Found = list[tuple[list[int], str | None]]


def search(
    decoder: Any,
    requests: Sequence[Request],
    k: int = 5,
    alpha: float = 0.6,
    temperature: float = 1.0,
) -> Found:
    call = Call(requests, ContrastiveSearch(k, alpha, temperature), CallLimits())
    streamed: list[list[int]] = [[] for _ in requests]
    for found in steps(decoder, call):
        for i, token_ids in found.items():
            streamed[i] += token_ids
    assert streamed == [sequence.token_ids for sequence in call.sequences]
    return [(sequence.token_ids, sequence.finish_reason) for sequence in call.sequences]


def plain_search(
    logits_and_states: Any, request: Request, k: int, alpha: float, temperature: float
) -> tuple[list[int], str | None]:
    """The definition, by whole passes: `logits_and_states(tokens)` for the last and for all tokens."""
    new: list[int] = []
    while request.finish_reason(new) is None:
        tokens = [*request.prompt, *new]
        logits, states = logits_and_states(tokens)
        exponentials = np.exp((logits.astype(float) - logits.max()) / temperature)
        probabilities = exponentials / exponentials.sum()
        scores = {}
        for token in np.argsort(-probabilities, kind="stable")[:k].tolist():
            state = logits_and_states([*tokens, token])[1][-1].astype(float)
            cosines = [
                float(state @ old / np.linalg.norm(state) / np.linalg.norm(old))
                for old in states.astype(float)
            ]
            scores[token] = (1 - alpha) * probabilities[token] - alpha * max(cosines)
        new.append(max(scores, key=lambda token: scores[token]))
    return new, request.finish_reason(new)


def of_fake(decoder: SequenceDecoder) -> Any:
    def logits_and_states(tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        states = [decoder.state(tokens[: i + 1]) for i in range(len(tokens))]
        return decoder.logits(tokens), np.stack(states)

    return logits_and_states


def of_session(decoder: SessionDecoder) -> Any:
    def logits_and_states(tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        cache, lengths = decoder.new_cache(1, len(tokens)), np.array([len(tokens)], np.int32)
        output = decoder.append(cache, np.array([tokens]), lengths, hidden_states=True)
        assert output.hidden_states is not None
        return output.logits[0].copy(), output.hidden_states[0]

    return logits_and_states


# === The scores ===


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 12), st.sets(st.integers(0, 7), max_size=2)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 8),
    st.integers(0, 1000),
    st.sampled_from([(0.6, 1.0), (0.0, 1.0), (1.0, 1.0), (0.3, 0.5), (0.3, 3.0)]),
)
def test_a_ragged_batch_is_what_the_definition_says(
    rows: list[tuple[int, int, set[int]]], k: int, seed: int, weights: tuple[float, float]
) -> None:
    decoder = SequenceDecoder(8, seed)
    requests = [Request((i,) * n, limit, frozenset(s)) for i, (n, limit, s) in enumerate(rows)]
    wanted = [plain_search(of_fake(decoder), request, k, *weights) for request in requests]
    assert search(decoder, requests, k, *weights) == wanted


@pytest.mark.parametrize(("k", "alpha", "temperature"), [(5, 0.6, 1.0), (3, 0.9, 0.7)])
def test_a_model_in_whole_passes(
    decoder: SessionDecoder, k: int, alpha: float, temperature: float
) -> None:
    requests = [Request(p, min(POSITIONS, len(p) + 7), STOPS) for p in PROMPTS]
    wanted = [plain_search(of_session(decoder), r, k, alpha, temperature) for r in requests]
    assert {reason for _, reason in wanted} == {"stop", "length"}
    assert search(decoder, requests, k, alpha, temperature) == wanted


def test_candidates_have_the_probability_of_the_whole_softmax() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    token_ids, probabilities = candidates(logits, 2, 1.0)
    assert token_ids.tolist() == [1, 3]
    assert np.abs(probabilities - [0.4, 0.3]).max() < 1e-7
    _, flatter = candidates(logits, 2, 2.0)
    roots = np.sqrt([0.1, 0.4, 0.2, 0.3])
    assert np.abs(flatter - [roots[1] / roots.sum(), roots[3] / roots.sum()]).max() < 1e-7


def test_tokens_that_are_ruled_out_are_no_candidates() -> None:
    logits = np.array([1.0, -np.inf, 2.0, -np.inf], np.float32)
    token_ids, probabilities = candidates(logits, 4, 1.0)
    assert token_ids.tolist() == [2, 0, 2, 2]
    assert choose(probabilities, np.array([0.9, 1, -1, -1]), 0.9) in (0, 2, 3)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_only_allowed_tokens_are_chosen_however_unlike_others_are(
    generator: Generator, alpha: float
) -> None:
    generator.compile(ContrastiveSampler(k=5, alpha=alpha))
    options = GenerationOptions(allowed_token_ids=[5, 6], max_new_tokens=10)
    (result,) = generator.generate_results("Return", options=options)
    assert len(result.token_ids) == 10
    assert {*result.token_ids} <= {5, 6}


def test_similarity_is_the_largest_cosine() -> None:
    history = History(3, 2)
    history.append(np.array([[2, 0], [0, -5]], np.float32))
    found = history.similarities(np.array([[3, 0], [1, 1], [-7, 0], [0, 0]], np.float32))
    assert np.abs(found - [1, np.sqrt(0.5), 0, 0]).max() < 1e-6
    history.append(np.array([[-1, 0]], np.float32))
    assert np.abs(history.similarities(np.array([[-7, 0]], np.float32)) - 1).max() < 1e-6


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_similarity_to_histories_of_any_length(count: int) -> None:
    generator = np.random.default_rng(count)
    states = generator.standard_normal((count, 4)).astype(np.float32) - 2
    others = generator.standard_normal((3, 4)).astype(np.float32) + 2  # cosines are negative
    history = History(40, 4)
    history.append(states)
    norms = np.linalg.norm(states, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    wanted = (states @ others.T / norms).max(axis=0)
    assert np.abs(history.similarities(others) - wanted).max() < 1e-6


def test_a_tie_goes_to_the_more_probable() -> None:
    assert choose(np.array([0.5, 0.3]), np.array([0.2, 0.2]), 1.0) == 0
    assert choose(np.array([0.5, 0.3]), np.array([0.9, 0.2]), 1.0) == 1
    assert choose(np.array([0.5, 0.3]), np.array([0.9, 0.2]), 0.0) == 0


@pytest.mark.parametrize(("k", "alpha"), [(1, 0.6), (4, 0.0)])
def test_one_candidate_or_no_weight_is_greedy(decoder: SessionDecoder, k: int, alpha: float) -> None:
    requests = [Request(prompt, min(POSITIONS, len(prompt) + 20)) for prompt in PROMPTS]
    for (found, _), case in zip(search(decoder, requests, k, alpha), CASES, strict=True):
        shared = min(20, len(case["continuation"]))
        assert found[:shared] == case["continuation"][:shared]


# === Rows and cache ===


@pytest.mark.parametrize("stops", [frozenset(), STOPS], ids=["none", "stops"])
def test_a_row_is_the_same_alone_and_in_any_batch(
    decoder: SessionDecoder, stops: frozenset[int]
) -> None:
    requests = [
        Request(prompt, min(POSITIONS, len(prompt) + more), stops)
        for prompt, more in zip(PROMPTS, (9, 14, 3, 0, 1, 20, 6), strict=True)
    ]
    alone = [search(decoder, [request])[0] for request in requests]
    assert len({str(found) for found in alone}) >= 6
    for order in (range(7), range(6, -1, -1), (1, 4), (5, 0, 2)):
        assert search(decoder, [requests[i] for i in order]) == [alone[i] for i in order]


def test_rows_that_have_ended_append_nothing() -> None:
    decoder = SequenceDecoder(6)
    search(decoder, [Request((1,) * 4, 6), Request((2,) * 6, 6), Request((3,), 6)], k=2)
    assert decoder.appended == [2, 4, 4, 2, 2, 2]  # prompts, then two candidates of each that goes on


def test_only_the_new_slot_is_copied() -> None:
    decoder = SequenceDecoder(6)
    prompt = (1, 2, 3, 4, 5)
    search(decoder, [Request(prompt, 9)], k=4)
    (cache,) = decoder.caches
    assert (len(cache.lengths), cache.capacity) == (4, 9)
    assert cache.copied_slots == [3 * 5, 3, 3, 3]  # the last token's is not needed any more


def test_a_full_prompt_gets_nothing() -> None:
    decoder = SequenceDecoder(6)
    assert search(decoder, [Request((1, 2), 2)]) == [([], "length")]
    assert decoder.appended == []


# === As a sampler ===


def test_generate_and_stream(generator: Generator) -> None:
    generator.compile("contrastive")
    for text in ("", "the king"):
        whole = generator.generate(text, max_length=20)
        assert "".join(generator.stream(text, max_length=20)) == whole
        generator.compile("greedy")
        assert generator.generate(text, max_length=20) != whole
        generator.compile("contrastive")


def test_k_larger_than_the_vocabulary(generator: Generator) -> None:
    generator.compile(ContrastiveSampler(k=301))
    message = "k=301 is larger than the vocabulary of 300 tokens; give k a value from 1 to 300"
    for call in (generator.generate, generator.stream):
        with pytest.raises(ValueError, match=message):
            call("t")


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan"), "1", None, True])
def test_bad_alpha(alpha: Any) -> None:
    with pytest.raises(ValueError, match="alpha must be a number from 0 to 1, got"):
        ContrastiveSampler(alpha=alpha)


@pytest.mark.parametrize("k", [0, 2.0, None, True])
def test_bad_k(k: Any) -> None:
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got"):
        ContrastiveSampler(k=k)
