"""The logits that a caller names, put together from runs of parts of the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.wanted_outputs import WantedOutputs, last_tokens

VOCABULARY = 3
COLUMNS = slice(0, 4)


def wanted(outputs: Any, batch: int = 3, sequence: int = 4) -> WantedOutputs:
    return WantedOutputs(np.asarray(outputs, np.int32), batch, sequence, VOCABULARY)


def logits_of(tokens: Any) -> np.ndarray:
    """Numbers that tell which token they are of."""
    return np.asarray(tokens, np.float32)[:, None] + np.arange(VOCABULARY, dtype=np.float32) / 10


def run(found: WantedOutputs, rows: slice, columns: slice, sequence: int = 4) -> int:
    """What a decoder does with a part of the tokens; how many logits it computes."""
    places, positions = found.places(rows, columns)
    buffer = found.buffer(places)
    assert buffer.shape == (len(positions), VOCABULARY)
    assert buffer.flags.c_contiguous
    row, column = np.divmod(positions, columns.stop - columns.start)
    buffer[:] = logits_of((row + rows.start) * sequence + column + columns.start)
    found.put(places, buffer)
    return len(positions)


def test_the_last_tokens_of_rows() -> None:
    assert last_tokens(np.array([3, 1, 0, 4]), 4).tolist() == [2, 4, 8, 15]
    assert last_tokens(np.array([1, 0]), 1).tolist() == [0, 1]


@pytest.mark.parametrize("outputs", [[0], [11, 0, 5, 5, 4], range(12), range(11, -1, -1)])
@pytest.mark.parametrize("part", [1, 2, 4])
def test_parts_give_what_the_whole_gives(outputs: Any, part: int) -> None:
    found = wanted(list(outputs))
    for row in range(3):
        for start in range(0, 4, part):
            run(found, slice(row, row + 1), slice(start, start + part))
    assert found.logits.tolist() == logits_of(list(outputs)).tolist()
    whole = wanted(list(outputs))
    assert run(whole, slice(0, 3), COLUMNS) == len(outputs)
    assert whole.logits.tolist() == found.logits.tolist()


def test_a_run_of_which_nobody_wants_logits_gives_one_s() -> None:
    found = wanted([11, 8])
    assert run(found, slice(0, 2), COLUMNS) == 1
    assert not found.logits.any()
    assert run(found, slice(2, 3), COLUMNS) == 2
    none = wanted([])
    assert run(none, slice(0, 3), COLUMNS) == 1
    assert none.logits.shape == (0, VOCABULARY)


def test_a_run_writes_where_the_logits_lie_side_by_side() -> None:
    found = wanted([9, 0, 1, 2, 3])
    places, _ = found.places(slice(0, 1), COLUMNS)
    assert np.shares_memory(found.buffer(places), found.logits)
    places, _ = wanted([0, 9, 1]).places(slice(0, 1), COLUMNS)
    assert places.tolist() == [0, 2]
    assert not np.shares_memory(found.buffer(places), found.logits)


@pytest.mark.parametrize("outputs", [[12], [-1], [0, 3, 2**40], [-(2**40), 1]])
def test_outputs_are_among_the_new_tokens(outputs: list[int]) -> None:
    with pytest.raises(ValueError, match="outputs must be from 0 to 11, as there are 3 rows of 4"):
        WantedOutputs(np.array(outputs), 3, 4, VOCABULARY)


def test_outputs_beyond_64_bits_and_not_in_order() -> None:
    with pytest.raises(ValueError, match="outputs must be from 0 to 11"):
        WantedOutputs(np.array([2**64 - 1, 0], np.uint64), 3, 4, VOCABULARY)


@pytest.mark.parametrize("outputs", [np.zeros((1, 1), np.int64), np.int64(0), [0.0], [True], ["0"]])
def test_outputs_are_a_list_of_whole_numbers(outputs: Any) -> None:
    with pytest.raises(ValueError, match="outputs must be a list of whole numbers, got"):
        WantedOutputs(outputs, 3, 4, VOCABULARY)
