"""Logits of named tokens on the CPU: Keras's own, those of single steps, and in any split of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.contract import LOGITS
from runtime.session import SessionDecoder
from tests.runtime.test_session import append, logits_alone, random_rows
from tests.runtime.toy import CASES, HIDDEN, HIDDEN_STATES, POSITIONS, VOCABULARY

KERAS = 2e-5  # the expected numbers are rounded
STEPS = 1e-5


@pytest.fixture
def decoder(any_decoder: SessionDecoder) -> SessionDecoder:
    """Every test here is for all targets."""
    return any_decoder


def named(decoder: Any, cache: Any, rows: list[list[int]], outputs: Any, **options: Any) -> Any:
    """Appends ragged rows and gives the logits of named tokens."""
    found = append(decoder, cache, rows, outputs=np.asarray(outputs, np.int64), **options)
    assert found.logits.shape == (len(outputs), VOCABULARY)
    assert found.logits.dtype == np.float32
    return found.logits


def step_by_step(decoder: Any, row: list[int], past: int = 0) -> np.ndarray:
    """Logits after each token of a row, appended one by one."""
    cache = decoder.new_cache(1, len(row))
    found = [append(decoder, cache, [[token]])[0] for token in row]
    return np.stack(found[past:])


# === Keras's numbers ===


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['prompt'])} tokens")
def test_logits_within_a_text_are_those_of_keras(decoder: SessionDecoder, case: Any) -> None:
    text = [*case["prompt"], *case["continuation"][:-1]]
    places = [len(text) - 1, len(case["prompt"]) - 1]
    found = named(decoder, decoder.new_cache(1, POSITIONS), [text], places)
    assert np.abs(found[0] - case["logits_at_end"]).max() <= KERAS
    assert np.abs(found[1] - case["logits_after_prompt"]).max() <= KERAS


def test_logits_at_every_position_are_those_of_keras(decoder: SessionDecoder, toy_bundle: Path) -> None:
    """The hidden states of the training forward pass, times the table that begins the weights."""
    prompt = CASES[HIDDEN_STATES["case"]]["prompt"]
    table = np.fromfile(toy_bundle / "weights.bin", np.float32, VOCABULARY * HIDDEN)
    wanted = np.array(HIDDEN_STATES["values"]) @ table.reshape(VOCABULARY, HIDDEN).T
    assert np.abs(wanted[-1] - CASES[HIDDEN_STATES["case"]]["logits_after_prompt"]).max() <= KERAS
    found = named(decoder, decoder.new_cache(1, POSITIONS), [prompt], range(len(prompt)))
    assert np.abs(found - wanted).max() <= KERAS


# === Those of single steps ===


def test_all_positions_equal_single_steps(decoder: SessionDecoder) -> None:
    (row,) = random_rows([20])
    wanted = step_by_step(decoder, row)
    found = named(decoder, decoder.new_cache(1, 20), [row], range(20))
    assert np.abs(found - wanted).max() <= STEPS


def test_ragged_rows_after_a_past_in_any_order(decoder: SessionDecoder) -> None:
    rows, past, width = random_rows([12, 9, 3, 7]), [5, 0, 3, 1], 9
    cache = decoder.new_cache(4, 20)
    append(decoder, cache, [row[:n] for row, n in zip(rows, past, strict=True)])
    new = [row[n:] for row, n in zip(rows, past, strict=True)]
    wanted = {}
    for i, (row, n) in enumerate(zip(rows, past, strict=True)):
        for j, logits in enumerate(step_by_step(decoder, row, n) if len(row) > n else ()):
            wanted[i * width + j] = logits
    outputs = np.random.default_rng(0).permutation([*wanted, *wanted])
    found = named(decoder, cache, new, outputs)
    assert cache.lengths.tolist() == [12, 9, 3, 7]
    assert np.abs(found - np.stack([wanted[i] for i in outputs])).max() <= STEPS


def test_rows_from_another_one_on(decoder: SessionDecoder) -> None:
    rows = random_rows([6, 4])
    cache = decoder.new_cache(4, 10)
    append(decoder, cache, [[1], [2], [3], [4]])
    cache.lengths[1:3] = 0
    found = named(decoder, cache, rows, [9, 1, 3], first_row=1)
    assert cache.lengths.tolist() == [1, 6, 4, 1]
    for logits, tokens in zip(found, (rows[1], rows[0][:2], rows[0][:4]), strict=True):
        assert np.abs(logits - logits_alone(decoder, tokens)).max() <= STEPS


def test_a_step_of_some_rows(decoder: SessionDecoder) -> None:
    rows = random_rows([5, 3, 4])
    cache = decoder.new_cache(3, 10)
    append(decoder, cache, [row[:-1] for row in rows])
    found = named(decoder, cache, [row[-1:] for row in rows], [2, 0])
    for logits, row in zip(found, (rows[2], rows[0]), strict=True):
        assert np.abs(logits - logits_alone(decoder, row)).max() <= STEPS


# === Beside the logits of last tokens ===


@pytest.mark.parametrize(
    ("past", "new"), [([], [5, 5]), ([], [5, 2]), ([3, 1], [1, 1]), ([3, 1], [4, 2]), ([2, 6], [9, 9])]
)
def test_those_of_the_last_tokens_are_the_same_to_the_bit(
    decoder: SessionDecoder, past: list[int], new: list[int]
) -> None:
    found = []
    for outputs in (None, [i * max(new) + n - 1 for i, n in enumerate(new)]):
        cache = decoder.new_cache(2, 20)
        if past:
            append(decoder, cache, random_rows(past))
        rows = random_rows(new, seed=1)
        found.append(
            append(decoder, cache, rows) if outputs is None else named(decoder, cache, rows, outputs)
        )
    assert found[0].tobytes() == found[1].tobytes()


def test_the_logits_of_last_tokens_stay_where_they_were(decoder: SessionDecoder) -> None:
    cache = decoder.new_cache(2, 20)
    before = append(decoder, cache, [[1, 2], [3]])
    buffer = decoder.append(cache, np.zeros((2, 1), np.int64), np.zeros(2, np.int32)).logits
    assert np.array_equal(buffer, before)
    named(decoder, cache, [[4, 5, 6], [7]], [1, 0, 3])
    assert np.array_equal(buffer, before)


def test_hidden_states_beside_named_logits(decoder: SessionDecoder) -> None:
    rows = random_rows([5, 3])
    wanted = append(decoder, decoder.new_cache(2, 9), rows, hidden_states=True)
    output = append(
        decoder, decoder.new_cache(2, 9), rows, hidden_states=True, outputs=np.array([1, 7, 0])
    )
    assert output.logits.shape == (3, VOCABULARY)
    assert output.hidden_states.tobytes() == wanted.hidden_states.tobytes()


def test_padding_has_finite_numbers(decoder: SessionDecoder) -> None:
    for past in ([], [[1], [2, 3], [4]]):
        cache = decoder.new_cache(3, 20)
        if past:
            append(decoder, cache, past)
        assert np.isfinite(named(decoder, cache, [[5, 6, 7], [], [8]], range(9))).all()
    assert np.isfinite(named(decoder, cache, [[], [], []], [2, 0])).all()


def test_no_outputs(decoder: SessionDecoder) -> None:
    cache = decoder.new_cache(2, 20)
    assert named(decoder, cache, [[5, 6, 7, 8], [9]], []).shape == (0, VOCABULARY)
    assert cache.lengths.tolist() == [4, 1]


@pytest.mark.parametrize("outputs", [[-1], [0, 6]])
def test_outputs_beyond_the_new_tokens(decoder: SessionDecoder, outputs: list[int]) -> None:
    cache = decoder.new_cache(2, 20)
    with pytest.raises(
        ValueError, match="outputs must be from 0 to 5, as there are 2 rows of 3 tokens"
    ):
        append(decoder, cache, [[1, 2, 3], [4]], outputs=np.array(outputs))
    assert cache.lengths.tolist() == [0, 0]


# === How many logits a run computes ===


def test_a_run_computes_the_logits_that_are_wanted(
    cpu_decoder: SessionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    bind = SessionDecoder.bind

    def counted(self: SessionDecoder, *args: Any) -> Any:
        binding = bind(self, *args)
        names = [value.name for value in self._sessions[args[0]].get_outputs()]
        shapes = [value.shape() for value in binding.get_outputs()]
        assert LOGITS in names
        counts.append(shapes[0][0])
        return binding

    monkeypatch.setattr("runtime.session.CHUNK_TOKENS", 4)
    monkeypatch.setattr(SessionDecoder, "bind", counted)
    (row,) = random_rows([11])
    append(cpu_decoder, cpu_decoder.new_cache(1, 20), [row])
    assert counts == [1, 1, 1]
    counts.clear()
    named(cpu_decoder, cpu_decoder.new_cache(1, 20), [row], [10, 9, 3])
    assert counts == [1, 1, 2]
    counts.clear()
    named(cpu_decoder, cpu_decoder.new_cache(2, 20), [[1, 2, 3], [4]], [1])
    assert counts == [1]
