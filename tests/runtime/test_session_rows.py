"""Rows of the cache: rolled back, copied from row to row and from cache to cache."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.session import SessionDecoder
from tests.runtime.test_session import append, assert_close, check_some_rows, logits_alone, random_rows


@pytest.fixture
def decoder(any_decoder: SessionDecoder) -> SessionDecoder:
    """Every test here is for all targets."""
    return any_decoder


@pytest.mark.parametrize("hidden_states", [False, True])
def test_some_rows_of_a_cache_take_tokens(decoder: SessionDecoder, hidden_states: bool) -> None:
    check_some_rows(decoder, assert_close, hidden_states)


def test_roll_back_forgets(decoder: SessionDecoder) -> None:
    rows = random_rows([10, 7])
    cache = decoder.new_cache(2, 12)
    append(decoder, cache, rows)
    cache.roll_back(np.array([4, 7], np.int32))
    assert cache.lengths.tolist() == [4, 7]
    other = [[11, 12, 13], [14]]
    logits = append(decoder, cache, other)
    assert_close(logits[0], logits_alone(decoder, rows[0][:4] + other[0]))
    assert_close(logits[1], logits_alone(decoder, rows[1] + other[1]))
    cache.roll_back(np.zeros(2, np.int32))
    logits = append(decoder, cache, [rows[1], rows[0]])
    assert_close(logits[0], logits_alone(decoder, rows[1]))


@pytest.mark.parametrize("lengths", [[-1, 2], [4, 2], [3, 3]])
def test_roll_back_takes_lengths_that_rows_have(decoder: SessionDecoder, lengths: list[int]) -> None:
    cache = decoder.new_cache(2, 8)
    append(decoder, cache, [[1, 2, 3], [4, 5]])
    with pytest.raises(ValueError, match=r"cannot roll rows of \[3 2\] tokens back to"):
        cache.roll_back(np.array(lengths, np.int32))
    assert cache.lengths.tolist() == [3, 2]


def test_copies_within_a_cache(decoder: SessionDecoder) -> None:
    rows = random_rows([5, 9, 2])
    cache = decoder.new_cache(3, 12)
    append(decoder, cache, rows)
    cache.copy_rows(cache, np.array([1, 0, 1]), np.arange(3))
    assert cache.lengths.tolist() == [9, 5, 9]
    logits = append(decoder, cache, [[21], [22], [23]])
    for row, previous, token in zip(logits, (1, 0, 1), (21, 22, 23), strict=True):
        assert_close(row, logits_alone(decoder, [*rows[previous], token]))


@pytest.mark.parametrize("first", [0, 4])
def test_copy_rows_from_another_cache(decoder: SessionDecoder, first: int) -> None:
    """Rows 0 and 3 are told to agree with their sources in the slots before `first`, and do."""
    rows = random_rows([5, 9, 7])
    source = decoder.new_cache(3, 9)
    append(decoder, source, rows)
    cache = decoder.new_cache(4, 14)
    append(decoder, cache, [[*rows[1][:4], 8, 8], rows[2], rows[0], rows[0][:4]])
    cache.copy_rows(source, np.array([1, 0]), np.array([0, 3]), first)
    assert cache.lengths.tolist() == [9, 7, 5, 5]
    logits = append(decoder, cache, [[21], [22], [23], [24]])
    for row, tokens, token in zip(
        logits, (rows[1], rows[2], rows[0], rows[0]), (21, 22, 23, 24), strict=True
    ):
        assert_close(row, logits_alone(decoder, [*tokens, token]))


def test_copies_are_of_slots_in_use_from_the_first_on(decoder: SessionDecoder) -> None:
    cache = decoder.new_cache(3, 12)
    append(decoder, cache, random_rows([6, 6, 3]))
    parts = [part for pair in cache.layers for part in pair]
    before = [part.copy() for part in parts]
    cache.copy_rows(cache, np.array([0]), np.array([1]), first=2)
    for part, old in zip(parts, before, strict=True):
        assert np.array_equal(part[1, :, 2:6], old[0, :, 2:6])
        assert np.array_equal(part[1, :, :2], old[1, :, :2])
        for same in ((0,), (2,), (1, slice(None), slice(6, None))):
            assert np.array_equal(part[same], old[same])


def test_rows_may_trade_places(decoder: SessionDecoder) -> None:
    rows = random_rows([5, 9, 2])
    cache = decoder.new_cache(3, 12)
    append(decoder, cache, rows)
    cache.copy_rows(cache, np.array([2, 0, 1]), np.arange(3))
    logits = append(decoder, cache, [[21], [22], [23]])
    for row, previous, token in zip(logits, (2, 0, 1), (21, 22, 23), strict=True):
        assert_close(row, logits_alone(decoder, [*rows[previous], token]))


def test_rows_that_do_not_fit_are_not_copied(decoder: SessionDecoder) -> None:
    source, cache = decoder.new_cache(1, 6), decoder.new_cache(1, 5)
    append(decoder, source, random_rows([6]))
    with pytest.raises(ValueError, match="a row of 6 tokens has no room in a cache of 5"):
        cache.copy_rows(source, np.array([0]), np.array([0]))
