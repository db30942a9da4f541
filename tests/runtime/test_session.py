"""Sessions and the cache: Keras's own numbers, and every way to append tokens gives the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import BundleError
from runtime.bundle import Bundle, load_bundle
from runtime.session import BoundCache, SessionDecoder
from tests.runtime.toy import (
    CASES,
    HIDDEN,
    HIDDEN_STATES,
    POSITIONS,
    VOCABULARY,
    approve,
    edit_manifest,
    flip_byte,
    ragged_pieces,
)

# Logits of the toy model have a standard deviation of about 2; float32 rounds at about 1e-6.
TOLERANCE = 2e-5


@pytest.fixture
def decoder(any_decoder: SessionDecoder) -> SessionDecoder:
    """Every test here is for all targets."""
    return any_decoder


def append(
    decoder: SessionDecoder, cache: BoundCache, rows: Sequence[Sequence[int]], **options: Any
) -> Any:
    """Appends ragged rows, padded with a token that is not 0; copies the logits."""
    token_ids = np.full((len(rows), max(1, *map(len, rows), 0)), 7, np.int64)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
    lengths = np.array([len(row) for row in rows], np.int32)
    output = decoder.append(cache, token_ids, lengths, **options)
    return output.logits.copy() if not options else output


def logits_alone(decoder: SessionDecoder, tokens: Sequence[int]) -> np.ndarray:
    """Logits after a whole prompt, in one pass over a cache of its own."""
    return append(decoder, decoder.new_cache(1, max(1, len(tokens))), [tokens])[0]


def check_some_rows(decoder: Any, close: Any, hidden_states: bool) -> None:
    """Checks that some rows of a cache take tokens and the others keep what they have.

    Args:
        decoder: of any kind.
        close: compares logits.
        hidden_states: whether to ask for those.
    """
    rows, cache = random_rows([9, 4, 6, 3, 8]), decoder.new_cache(5, POSITIONS)

    def take(new: list[list[int]], first_row: int) -> None:
        for row, tokens in enumerate(new, start=first_row):
            rows[row] += tokens
        output = append(decoder, cache, new, first_row=first_row, hidden_states=hidden_states)
        logits, states = output.logits.copy(), output.hidden_states
        assert states is None or len(states) == len(new)
        assert len(logits) == 5
        for row, tokens in enumerate(new, start=first_row):
            if tokens:
                close(logits[row], logits_alone(decoder, rows[row]))

    prompts, rows = rows, [[], [], [], [], []]
    take(prompts[2:], 2)
    assert cache.lengths.tolist() == [0, 0, 6, 3, 8]
    take(prompts[:2], 0)
    take([[7], [], [8]], 0)
    take([[9]], 3)
    take([[4], [4, 5, 6]], 1)
    assert cache.lengths.tolist() == [10, 5, 10, 4, 8]
    take([[5]] * 5, 0)
    with pytest.raises(ValueError, match=r"a cache of 5 rows got 2 rows from 4 on"):
        append(decoder, cache, [[1], [1]], first_row=4)


def random_rows(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCABULARY, n).tolist() for n in lengths]


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance


# === Keras's numbers ===


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['prompt'])} tokens")
def test_one_row_gives_the_tokens_and_logits_of_keras(decoder: SessionDecoder, case: Any) -> None:
    prompt, continuation = case["prompt"], case["continuation"]
    cache = decoder.new_cache(1, len(prompt) + len(continuation))
    logits = append(decoder, cache, [prompt])
    assert_close(logits[0], np.array(case["logits_after_prompt"]))
    found = [int(logits[0].argmax())]
    while len(found) < len(continuation):
        logits = append(decoder, cache, [found[-1:]])
        found.append(int(logits[0].argmax()))
    assert found == continuation
    assert_close(logits[0], np.array(case["logits_at_end"]))
    assert cache.lengths.tolist() == [len(prompt) + len(continuation) - 1]


def test_a_ragged_batch_gives_the_tokens_and_logits_of_keras(decoder: SessionDecoder) -> None:
    cases = CASES[:5]
    steps = len(cases[0]["continuation"])
    cache = decoder.new_cache(len(cases), max(len(case["prompt"]) for case in cases) + steps)
    logits = append(decoder, cache, [case["prompt"] for case in cases])
    assert_close(logits, np.array([case["logits_after_prompt"] for case in cases]))
    found = [logits.argmax(axis=1)]
    while len(found) < steps:
        logits = append(decoder, cache, found[-1][:, None].tolist())
        found.append(logits.argmax(axis=1))
    assert np.stack(found, axis=1).tolist() == [case["continuation"] for case in cases]
    assert_close(logits, np.array([case["logits_at_end"] for case in cases]))


def test_hidden_states_are_those_of_keras(decoder: SessionDecoder) -> None:
    prompt, wanted = CASES[HIDDEN_STATES["case"]]["prompt"], np.array(HIDDEN_STATES["values"])
    cache = decoder.new_cache(1, POSITIONS)
    output = append(decoder, cache, [prompt], hidden_states=True)
    assert output.hidden_states.shape == (1, len(prompt), HIDDEN)
    assert output.hidden_states.dtype == np.float32
    assert_close(output.hidden_states[0], wanted)


def test_hidden_states_of_single_tokens_are_those_of_keras(decoder: SessionDecoder) -> None:
    prompt, wanted = CASES[HIDDEN_STATES["case"]]["prompt"], np.array(HIDDEN_STATES["values"])
    cache = decoder.new_cache(1, POSITIONS)
    for token, states in zip(prompt, wanted, strict=True):
        output = append(decoder, cache, [[token]], hidden_states=True)
        assert output.hidden_states.shape == (1, 1, HIDDEN)
        assert_close(output.hidden_states[0, 0], states)


def test_hidden_states_are_left_out_unless_asked_for(decoder: SessionDecoder) -> None:
    cache = decoder.new_cache(1, 8)
    ones = np.ones(1, np.int32)
    assert decoder.append(cache, np.array([[2, 5]]), 2 * ones).hidden_states is None
    assert decoder.append(cache, np.array([[2]]), ones).hidden_states is None


# === Several tokens after a past ===


@pytest.mark.parametrize("pieces", [[19, 1], [1, 19], [7, 6, 7], [1] * 20, [2, 1, 10, 1, 6]])
def test_a_prompt_in_pieces_equals_a_whole_one(decoder: SessionDecoder, pieces: list[int]) -> None:
    (prompt,) = random_rows([20])
    cache = decoder.new_cache(1, 24)
    done = 0
    for piece in pieces:
        logits = append(decoder, cache, [prompt[done : done + piece]])
        done += piece
    assert_close(logits[0], logits_alone(decoder, prompt))
    assert cache.lengths.tolist() == [20]


def test_hidden_states_in_pieces_equal_those_of_a_whole_prompt(decoder: SessionDecoder) -> None:
    (prompt,) = random_rows([12])
    whole = append(decoder, decoder.new_cache(1, 12), [prompt], hidden_states=True).hidden_states
    cache = decoder.new_cache(1, 12)
    first = append(decoder, cache, [prompt[:5]], hidden_states=True).hidden_states
    second = append(decoder, cache, [prompt[5:]], hidden_states=True).hidden_states
    assert_close(np.concatenate([first, second], axis=1), whole)


# Rows of different pasts get different numbers of new tokens, none at all among them. The last rows
# of the table fill the cache to its end while others still have padding beyond theirs.
RAGGED = [
    ([3, 9, 1, 5], [[4, 2, 6, 1], [1, 7, 0, 3], [0, 1, 5, 2]], 40),
    ([10, 2], [[2, 8]], 12),
    ([10, 2], [[1, 8]], 12),
    ([11, 3], [[0, 8]], 12),
    ([6, 6, 2], [[6, 1, 9], [0, 5, 1]], 12),
]


@pytest.mark.parametrize(("prompts", "pieces", "capacity"), RAGGED)
def test_ragged_pieces_equal_whole_rows(
    decoder: SessionDecoder, prompts: list[int], pieces: list[list[int]], capacity: int
) -> None:
    rows = random_rows([n + sum(piece[i] for piece in pieces) for i, n in enumerate(prompts)])
    cache = decoder.new_cache(len(rows), capacity)
    for new, done in ragged_pieces(rows, [prompts, *pieces]):
        logits = append(decoder, cache, new)
        assert cache.lengths.tolist() == done
        for i, row in enumerate(new):
            if row:
                assert_close(logits[i], logits_alone(decoder, rows[i][: done[i]]))


def test_a_row_that_waits_goes_on_where_it_was(decoder: SessionDecoder) -> None:
    waiting, going = random_rows([9, 16])
    cache = decoder.new_cache(2, 16)
    append(decoder, cache, [waiting[:8], going[:8]])
    for token in going[8:]:
        append(decoder, cache, [[], [token]])
    assert cache.lengths.tolist() == [8, 16]
    logits = append(decoder, cache, [waiting[8:], []])
    assert_close(logits[0], logits_alone(decoder, waiting))


def test_a_full_row_may_wait(decoder: SessionDecoder) -> None:
    full, going = random_rows([6, 6])
    cache = decoder.new_cache(2, 6)
    append(decoder, cache, [full, going[:4]])
    append(decoder, cache, [[], going[4:5]])
    logits = append(decoder, cache, [[], going[5:]])
    assert_close(logits[1], logits_alone(decoder, going))


# === The cache itself ===


def test_cache_sizes(decoder: SessionDecoder) -> None:
    cache = decoder.new_cache(3, 10)
    assert (cache.batch, cache.capacity) == (3, 10)
    assert len(cache.layers) == 2
    for buffer in (part for pair in cache.layers for part in pair):
        batch, heads, slots, head_dim = buffer.shape
        assert (batch, heads, head_dim) == (3, 4, 8)
        assert slots >= 10
        assert buffer.dtype == np.float32
    assert cache.nbytes == sum(part.nbytes for pair in cache.layers for part in pair)
    assert cache.lengths.tolist() == [0, 0, 0]


def test_the_cache_is_written_in_place(decoder: SessionDecoder) -> None:
    cache = decoder.new_cache(1, 6)
    buffers = [part for pair in cache.layers for part in pair]
    append(decoder, cache, [[5, 6, 7]])
    for buffer in buffers:
        assert np.all(np.abs(buffer[0, :, :3]).sum(axis=-1) > 0)
        assert not buffer[0, :, 3:].any()
    before = [buffer[0, :, :3].copy() for buffer in buffers]
    append(decoder, cache, [[8]])
    for buffer, old in zip(buffers, before, strict=True):
        assert np.array_equal(buffer[0, :, :3], old)
        assert np.all(np.abs(buffer[0, :, 3]).sum(axis=-1) > 0)


def test_what_lies_beyond_a_row_has_no_influence(decoder: SessionDecoder) -> None:
    (row,) = random_rows([9])
    cache = decoder.new_cache(1, 16)
    append(decoder, cache, [row[:5]])
    for pair in cache.layers:
        for buffer in pair:
            buffer[:, :, 5:] = 1e6
    assert_close(append(decoder, cache, [row[5:]])[0], logits_alone(decoder, row))


def test_two_caches_of_one_decoder_do_not_meet(decoder: SessionDecoder) -> None:
    rows = random_rows([6, 6])
    caches = [decoder.new_cache(1, 6) for _ in rows]
    for i in range(6):
        logits = [
            append(decoder, cache, [row[i : i + 1]]) for cache, row in zip(caches, rows, strict=True)
        ]
    for found, row in zip(logits, rows, strict=True):
        assert_close(found[0], logits_alone(decoder, row))


# === Errors ===


def test_capacity_is_checked(decoder: SessionDecoder) -> None:
    cache = decoder.new_cache(2, 4)
    with pytest.raises(ValueError, match="a row of 5 tokens has no room in a cache of 4"):
        append(decoder, cache, [[1, 2, 3, 4, 5], [1]])
    append(decoder, cache, [[1, 2, 3, 4], [1]])
    with pytest.raises(ValueError, match="a row of 5 tokens has no room in a cache of 4"):
        append(decoder, cache, [[1], [1]])
    assert cache.lengths.tolist() == [4, 1]


@pytest.mark.parametrize(("rows", "lengths"), [(3, 3), (2, 1), (2, 3)], ids=lambda value: f"{value}")
def test_rows_must_be_those_of_the_cache(decoder: SessionDecoder, rows: int, lengths: int) -> None:
    cache = decoder.new_cache(2, 4)
    message = rf"a cache of 2 rows got {rows} rows from 0 on and \({lengths},\) lengths"
    with pytest.raises(ValueError, match=message):
        decoder.append(cache, np.ones((rows, 1), np.int64), np.ones(lengths, np.int32))
    assert cache.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("lengths", [[3, 1], [1, -1]])
def test_lengths_must_be_within_the_new_tokens(decoder: SessionDecoder, lengths: list[int]) -> None:
    cache = decoder.new_cache(2, 8)
    append(decoder, cache, [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="new_lengths"):
        decoder.append(cache, np.ones((2, 2), np.int64), np.array(lengths, np.int32))
    assert cache.lengths.tolist() == [2, 2]


@pytest.mark.parametrize("threads", [0, -1, 1.0, True, "2"])
def test_bad_thread_counts(bundle: Bundle, threads: Any) -> None:
    message = "threads must be a whole number of at least 1 or None, got"
    with pytest.raises(ValueError, match=message):
        SessionDecoder(bundle, threads=threads)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads_change_no_tokens(bundle: Bundle, threads: int | None) -> None:
    decoder = SessionDecoder(bundle, threads=threads)
    found = logits_alone(decoder, CASES[3]["prompt"])
    assert_close(found, np.array(CASES[3]["logits_after_prompt"]))


def test_a_graph_that_cannot_be_loaded(toy_bundle_copy: Path) -> None:
    graph = toy_bundle_copy / "decode.onnx"
    graph.write_bytes(b"not a graph")
    approve(toy_bundle_copy, graph.name)
    with pytest.raises(BundleError, match=r"decode\.onnx holds what no exported graph does"):
        SessionDecoder(load_bundle(toy_bundle_copy))


def test_both_graphs_read_the_weights_file_of_the_bundle(toy_bundle_copy: Path) -> None:
    """Another weight changes what both graphs say, so neither has weights of its own."""
    (row,) = random_rows([3])
    before = logits_alone(SessionDecoder(load_bundle(toy_bundle_copy), threads=1), row)
    weights = toy_bundle_copy / "weights.bin"
    flip_byte(weights, 4 * HIDDEN * row[0] + 3)  # the sign and exponent of an embedding
    decoder = SessionDecoder(load_bundle(toy_bundle_copy), threads=1)
    assert np.abs(logits_alone(decoder, row) - before).max() > 1e-2
    cache = decoder.new_cache(1, 3)
    for token in row:
        logits = append(decoder, cache, [[token]])
    assert np.abs(logits[0] - before).max() > 1e-2


def test_another_cache_dtype_is_refused(toy_bundle_copy: Path) -> None:
    edit_manifest(toy_bundle_copy, lambda values: values.update(cache_dtype="float16"))
    with pytest.raises(
        BundleError, match="cache_dtype of target 'portable' must be float32, got 'float16'"
    ):
        load_bundle(toy_bundle_copy)
