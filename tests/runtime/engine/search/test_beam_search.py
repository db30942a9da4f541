"""Beam search: the best beams, their scores, rows that do not depend on each other, and the cache."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Listed
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import GenerationOptions, Generator
from runtime.call_limits import CallCut, CallLimits
from runtime.engine.call import Call
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.engine.search.beam import BeamSearch, continuations
from runtime.engine.sequence import Sequence
from runtime.results import CutReason
from runtime.samplers import BeamSampler
from runtime.session import SessionDecoder
from tests.runtime.engine_runs import run_calls, steps
from tests.runtime.fake_decoder import SequenceDecoder
from tests.runtime.toy import CASES, POSITIONS

PROMPTS = [tuple(case["prompt"]) for case in CASES]
Found = list[tuple[tuple[int, ...], float, str]]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    shifted = exact - exact.max()
    return shifted - np.log(np.exp(shifted).sum())


def search(
    decoder: Any,
    requests: Listed[Request],
    num_beams: int,
    temperature: float = 1.0,
    all_beams: bool = True,
) -> list[Sequence]:
    call = Call(requests, BeamSearch(num_beams, temperature, all_beams), CallLimits())
    streamed: list[list[int]] = [[] for _ in requests]
    for found in steps(decoder, call):
        for i, token_ids in found.items():
            streamed[i] += token_ids
    assert streamed == [sequence.token_ids for sequence in call.sequences]
    return call.sequences


def beams(sequence: Sequence) -> Found:
    assert sequence.hypotheses is not None
    return [(beam.token_ids, beam.score, beam.finish_reason) for beam in sequence.hypotheses]


def assert_beams(found: Found, wanted: Found, tolerance: float = 1e-5) -> None:
    assert [(ids, reason) for ids, _, reason in found] == [(ids, r) for ids, _, r in wanted]
    for (_, score, _), (_, expected, _) in zip(found, wanted, strict=True):
        assert abs(score - expected) <= tolerance


def plain_search(
    decoder: SequenceDecoder, request: Request, num_beams: int, temperature: float
) -> Found:
    """The definition, without a cache: score all continuations, keep the best, until none goes on."""
    kept: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    while any(request.finish_reason(tokens) is None for tokens, _ in kept):
        found = []
        for tokens, score in kept:
            if request.finish_reason(tokens) is not None:
                found.append((tokens, score))
                continue
            gains = log_softmax(decoder.logits([*request.prompt, *tokens]) / temperature)
            found += [((*tokens, t), score + float(gain)) for t, gain in enumerate(gains)]
        kept = sorted(found, key=lambda beam: -beam[1])[:num_beams]
    return [(tokens, score, request.finish_reason(tokens) or "") for tokens, score in kept]


# === The best beams ===


@pytest.mark.parametrize("stops", [frozenset(), frozenset({1}), frozenset({0, 4})])
@pytest.mark.parametrize("seed", range(4))
def test_with_enough_beams_it_finds_the_best_of_all_sequences(seed: int, stops: frozenset[int]) -> None:
    vocabulary, depth = 5, 3
    decoder = SequenceDecoder(vocabulary, seed)
    request = Request((3, 1), 2 + depth, stops)
    sequences = {
        next((ids[: i + 1] for i, token in enumerate(ids) if token in stops), ids)
        for ids in itertools.product(range(vocabulary), repeat=depth)
    }
    scored = []
    for ids in sequences:
        score = sum(
            float(log_softmax(decoder.logits([3, 1, *ids[:i]]))[token]) for i, token in enumerate(ids)
        )
        scored.append((ids, score, request.finish_reason(ids) or ""))
    scored.sort(key=lambda beam: -beam[1])
    (row,) = search(decoder, [request], num_beams=vocabulary ** (depth - 1))
    assert_beams(beams(row)[:10], scored[:10])
    assert tuple(row.token_ids) == scored[0][0]
    (alone,) = search(decoder, [request], num_beams=vocabulary ** (depth - 1), all_beams=False)
    assert (tuple(alone.token_ids), alone.finish_reason) == (scored[0][0], scored[0][2])
    assert alone.hypotheses is None


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 12), st.sets(st.integers(0, 7), max_size=2)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_a_ragged_batch_is_what_the_definition_says(
    rows: list[tuple[int, int, set[int]]], num_beams: int, seed: int, temperature: float
) -> None:
    decoder = SequenceDecoder(8, seed)
    requests = [Request((i,) * n, limit, frozenset(s)) for i, (n, limit, s) in enumerate(rows)]
    for row, request in zip(search(decoder, requests, num_beams, temperature), requests, strict=True):
        wanted = plain_search(decoder, request, num_beams, temperature)
        assert_beams(beams(row)[: len(wanted)], wanted)
        assert len(beams(row)) == num_beams
        assert (tuple(row.token_ids), row.finish_reason) == (wanted[0][0], wanted[0][2])
    for row, request in zip(
        search(decoder, requests, num_beams, temperature, all_beams=False), requests, strict=True
    ):
        wanted = plain_search(decoder, request, num_beams, temperature)
        assert (tuple(row.token_ids), row.finish_reason) == (wanted[0][0], wanted[0][2])


def test_one_beam_is_greedy(decoder: SessionDecoder) -> None:
    requests = [Request(prompt, min(POSITIONS, len(prompt) + 20)) for prompt in PROMPTS]
    for row, case in zip(search(decoder, requests, 1), CASES, strict=True):
        shared = min(20, len(case["continuation"]))
        assert row.token_ids[:shared] == case["continuation"][:shared]


def test_continuations_of_several_beams() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]], np.float32))
    found = continuations(logits, [np.log(0.4), np.log(0.6)], 4, 1.0)
    assert [(beam, token) for _, beam, token in found] == [(1, 0), (0, 1), (1, 1), (1, 2)]
    assert np.abs(np.exp([score for score, _, _ in found]) - [0.3, 0.24, 0.15, 0.15]).max() < 1e-6


def test_scores_of_improbable_tokens_are_finite() -> None:
    """A float32 softmax gives the second and third token a probability of 0, so a score of -inf."""
    found = continuations(np.array([[0.0, -200.0, -300.0]], np.float32), [-1.0], 3, 1.0)
    assert found == [(-1.0, 0, 0), (-201.0, 0, 1), (-301.0, 0, 2)]


# === Scores of a real model ===


@pytest.mark.parametrize("stops", [frozenset(), frozenset({11, 27, 198, 30})], ids=["none", "stops"])
def test_scores_are_those_of_whole_passes(decoder: SessionDecoder, stops: frozenset[int]) -> None:
    requests = [Request(prompt, min(POSITIONS, len(prompt) + 8), stops) for prompt in PROMPTS]
    reasons = set()
    for row in search(decoder, requests, 4):
        prompt = row.request.prompt
        found = beams(row)
        assert [score for _, score, _ in found] == sorted((s for _, s, _ in found), reverse=True)
        for token_ids, score, reason in found:
            wanted = sum(
                float(log_softmax(whole_pass(decoder, [*prompt, *token_ids[:i]]))[token])
                for i, token in enumerate(token_ids)
            )
            assert abs(score - wanted) <= 1e-5 * max(1, len(token_ids))
            assert (token_ids[-1] in stops) == (reason == "stop")
            assert not stops & set(token_ids[:-1])
            reasons.add(reason)
    assert reasons == ({"stop", "length"} if stops else {"length"})


def whole_pass(decoder: SessionDecoder, tokens: Listed[int]) -> np.ndarray:
    cache = decoder.new_cache(1, len(tokens))
    return decoder.append(cache, np.array([tokens]), np.array([len(tokens)])).logits[0].copy()


# === Rows ===


@pytest.mark.parametrize("all_beams", [True, False])
@pytest.mark.parametrize("stops", [frozenset(), frozenset({11, 27, 198, 30})], ids=["none", "stops"])
def test_a_row_is_the_same_alone_and_in_any_batch(
    decoder: SessionDecoder, stops: frozenset[int], all_beams: bool
) -> None:
    requests = [
        Request(prompt, min(POSITIONS, len(prompt) + more), stops)
        for prompt, more in zip(PROMPTS, (9, 14, 3, 0, 1, 20, 6), strict=True)
    ]
    alone = [search(decoder, [request], 3, all_beams=all_beams)[0] for request in requests]
    for order in (range(7), range(6, -1, -1), (1, 4), (5, 0, 2)):
        batch = search(decoder, [requests[i] for i in order], 3, all_beams=all_beams)
        for row, i in zip(batch, order, strict=True):
            assert row.token_ids == alone[i].token_ids
            assert row.finish_reason == alone[i].finish_reason
            if all_beams:
                assert_beams(beams(row), beams(alone[i]))


def test_rows_that_have_ended_append_nothing() -> None:
    decoder = SequenceDecoder(6)
    requests = [Request((1,) * 4, 6), Request((2,) * 6, 6), Request((3,), 6)]
    search(decoder, requests, 2)
    assert decoder.appended == [2, 4, 2, 2, 2]  # prompts, then two beams of each that goes on


def test_a_full_prompt_has_empty_beams() -> None:
    decoder = SequenceDecoder(6)
    (row,) = search(decoder, [Request((1, 2), 2)], 3)
    assert beams(row) == [((), 0.0, "length")] * 3
    assert decoder.appended == []


def test_the_search_ends_when_nothing_can_overtake_the_best_beam() -> None:
    """The stop token is nearly certain, so one step is enough; all beams take longer."""
    decoder = SequenceDecoder(4, spread=0.1)
    decoder.logits = lambda tokens: np.array([9, 1, 0, 0], np.float32)  # type: ignore[method-assign]
    request = Request((1,), 5, frozenset({0}))
    search(decoder, [request], 3, all_beams=False)
    assert decoder.appended == [1]
    search(decoder, [request], 3)
    assert len(decoder.appended) > 2


# === The cache ===


def test_prompts_are_read_once_and_copies_are_short() -> None:
    decoder = SequenceDecoder(9, seed=5)
    prompt = (1, 2, 3, 4, 5, 6, 7, 8) * 4
    search(decoder, [Request(prompt, len(prompt) + 10)], 4)
    (cache,) = decoder.caches
    assert (len(cache.lengths), cache.capacity) == (4, len(prompt) + 10)
    assert decoder.appended == [1, *[4] * 9]
    first, *others = cache.copied_slots
    assert first == 3 * len(prompt)
    assert max(others) <= 3 * 9  # never the prompt again


def test_beams_that_stay_are_not_copied() -> None:
    """Each of two beams has one child: token 0 after token 0, and token 1 after token 1."""
    decoder = SequenceDecoder(3)

    def logits(tokens: Listed[int]) -> np.ndarray:
        last = tokens[-1] if len(tokens) > 1 else None
        favoured = {0: [9, 0, 0], 1: [0, 9, 0]}.get(last, [5, 4.9, 0])  # type: ignore[arg-type]
        return np.array(favoured, np.float32)

    decoder.logits = logits  # type: ignore[method-assign]
    (row,) = search(decoder, [Request((2,), 6)], 2)
    assert [ids for ids, _, _ in beams(row)] == [(0,) * 5, (1,) * 5]
    assert decoder.caches[0].copied_slots == [1]  # the prompt's


def test_beams_that_part_late_copy_what_parts_them() -> None:
    """The second beam is always the first one's other child: one slot differs."""
    decoder = SequenceDecoder(3)

    def logits(tokens: Listed[int]) -> np.ndarray:
        return np.log(np.array([1, 1, 1] if tokens[-1] == 1 else [0.5, 0.45, 0.05], np.float32))

    decoder.logits = logits  # type: ignore[method-assign]
    (row,) = search(decoder, [Request((2,), 7)], 2)
    assert [ids for ids, _, _ in beams(row)] == [(0,) * 6, (0, 0, 0, 0, 0, 1)]
    assert decoder.caches[0].copied_slots == [1, 1, 1, 1, 1]


# === Cut in the middle ===


def stopping_search(max_length: int = 9) -> tuple[SequenceDecoder, Call]:
    """Two beams; the better one takes the stop token 0 at once, the other goes on."""
    decoder = SequenceDecoder(3)

    def logits(tokens: Listed[int]) -> np.ndarray:
        shares = [0.8, 0.15, 0.05] if tokens[-1] == 2 else [0.04, 0.9, 0.06]
        return np.log(np.array(shares, np.float32))

    decoder.logits = logits  # type: ignore[method-assign]
    request = Request((2,), max_length, frozenset({0}))
    return decoder, Call([request], BeamSearch(2, 1.0, all_beams=True), CallLimits())


@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
def test_a_cut_search_whose_best_beam_had_stopped(reason: CutReason) -> None:
    decoder, call = stopping_search()
    append, taken = decoder.append, []

    def append_some(*arguments: Any, **options: Any) -> Any:
        taken.append(1)
        if len(taken) > 3:
            raise CallCut(reason)
        return append(*arguments, **options)

    decoder.append = append_some  # type: ignore[method-assign]
    run_calls(Engine(decoder), call)
    assert (call.cut_reason, call.error) == (reason, None)
    (row,) = call.sequences
    assert (row.token_ids, row.finish_reason) == ([0], "stop")
    assert [r for _, _, r in beams(row)] == ["stop", reason]
    assert [len(ids) for ids, _, _ in beams(row)] == [1, 3]


def test_a_search_that_reached_its_length_after_its_best_beam_had_stopped() -> None:
    decoder, call = stopping_search(max_length=5)
    run_calls(Engine(decoder), call)
    (row,) = call.sequences
    assert (row.token_ids, row.finish_reason) == ([0], "stop")
    assert [r for _, _, r in beams(row)] == ["stop", "length"]


# === As a sampler ===


def test_generate_gives_the_best_beam(generator: Generator) -> None:
    generator.compile(BeamSampler(num_beams=4, return_all_beams=True))
    (texts, scores) = generator.generate("the king", max_length=20, stop_token_ids=None)
    assert (len(texts), scores.shape, scores.dtype) == (4, (4,), np.float32)
    generator.compile(BeamSampler(num_beams=4))
    assert generator.generate("the king", max_length=20, stop_token_ids=None) == texts[0]


def test_a_stream_joined_is_the_best_beam(generator: Generator) -> None:
    generator.compile(BeamSampler(num_beams=3))
    for stops in ("auto", None, (11, 27, 198, 30)):
        for text in ("", "the king", "Zoë, café: 😀"):
            pieces = list(generator.stream(text, max_length=30, stop_token_ids=stops))
            assert "".join(pieces) == generator.generate(text, max_length=30, stop_token_ids=stops)


def test_a_stream_gives_tokens_before_the_search_ends() -> None:
    """Tokens come as soon as all beams agree on them."""
    decoder = SequenceDecoder(50, seed=2, spread=6.0)
    call = Call([Request((1,), 40)], BeamSearch(2, 1.0, all_beams=False), CallLimits())
    at = [len(decoder.appended) for found in steps(decoder, call) for _ in found.get(0, ())]
    assert len(at) == 39
    assert at == sorted(at)
    assert at[0] < 20
    assert len(decoder.appended) == 39


def test_more_beams_than_tokens(generator: Generator) -> None:
    generator.compile(BeamSampler(num_beams=301))
    message = "num_beams=301 is larger than the vocabulary of 300 tokens; give num_beams a value from 1"
    for call in (generator.generate, generator.stream):
        with pytest.raises(ValueError, match=message):
            call("t")


@pytest.mark.parametrize("num_beams", [0, -1, 2.0, "5", None, True])
def test_bad_num_beams(num_beams: Any) -> None:
    with pytest.raises(ValueError, match="num_beams must be a whole number of at least 1, got"):
        BeamSampler(num_beams=num_beams)


def test_beams_that_the_options_do_not_allow_are_empty(generator: Generator) -> None:
    generator.compile(BeamSampler(num_beams=3, return_all_beams=True))
    options = [
        GenerationOptions(allowed_token_ids=[5], max_new_tokens=2),
        GenerationOptions(max_new_tokens=2),
    ]
    texts, scores = generator.generate(["t", "the king"], options=options)
    assert [len(row) for row in texts] == [3, 3]
    assert texts[0][1:] == ["", ""]
    assert scores.shape == (2, 3)
    assert np.isneginf(scores).tolist() == [[False, True, True], [False] * 3]
    mask = np.arange(6) < np.array([[2], [3]])
    tokens = generator.generate(
        {"token_ids": np.full((2, 6), 7), "padding_mask": mask}, options=options
    )
    assert tokens["token_ids"].shape == (2, 3, 6)
    assert tokens["padding_mask"][0].sum(axis=1).tolist() == [4, 2, 2]
    (result, _) = generator.generate_results(["t", "the king"], options=options)
    assert len(result.beams) == 1


def test_return_all_beams_is_a_flag() -> None:
    with pytest.raises(ValueError, match="return_all_beams must be True or False, got 3"):
        BeamSampler(return_all_beams=3)  # type: ignore[arg-type]
