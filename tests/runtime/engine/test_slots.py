"""Rows of the cache: taken, freed, moved together, and what each move leaves as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.engine.sequence import Sequence
from runtime.engine.slots import Slots
from runtime.errors import CacheMemoryError
from runtime.samplers import BeamSampler, ContrastiveSampler, GreedySampler
from tests.runtime.engine_runs import begin, new_call, run
from tests.runtime.fake_decoder import BestDecoder, SequenceCache, SequenceDecoder
from tests.runtime.test_session import random_rows

CAPACITY = 20


def slots_of(decoder: Any) -> Slots:
    return Slots(decoder, CAPACITY, decoder.new_cache)


def come(slots: Slots, rows: int = 1, temperature: float = 1.0) -> Sequence:
    """A sequence that takes some rows."""
    sequence = Sequence(Request((1,), CAPACITY))
    slots.reserve(rows)
    slots.take(sequence, rows, temperature)
    return sequence


def write(slots: Slots, *sequences: Sequence) -> None:
    """Gives each row of some sequences as many tokens as its number says, and one."""
    for sequence in sequences:
        for row in sequence.rows:
            slots.cache.tokens[row, : row + 1] = 10 * row + np.arange(row + 1)
            slots.cache.lengths[row] = row + 1


def tokens(slots: Slots, sequence: Sequence) -> list[list[int]]:
    cache: SequenceCache = slots.cache
    return [cache.tokens[row, : cache.lengths[row]].tolist() for row in sequence.rows]


# === Who has which row ===


def test_rows_are_taken_in_order_and_holes_first() -> None:
    slots = slots_of(SequenceDecoder(9))
    assert (slots.used, slots.idle_bytes, slots.cache) == (0, 0, None)
    first, second, third = come(slots), come(slots, 2), come(slots)
    assert (first.rows, second.rows, third.rows, slots.used) == ([0], [1, 2], [3], 4)
    slots.free(second)
    assert (second.rows, slots.used) == ([], 4)
    assert come(slots, 3).rows == [1, 2, 4]
    assert slots.used == 5


def test_free_rows_at_the_end_are_not_run() -> None:
    slots = slots_of(SequenceDecoder(9))
    first, second, third = come(slots), come(slots, 2), come(slots)
    slots.free(second)
    slots.free(third)
    assert slots.used == 1
    slots.free(first)
    assert slots.used == 0


def test_what_was_in_a_row_is_no_longer_there() -> None:
    slots = slots_of(SequenceDecoder(9))
    first, second = come(slots), come(slots)
    write(slots, first, second)
    assert (slots.length(first), slots.length(second)) == (1, 2)
    slots.free(first)
    assert slots.length(come(slots)) == 0
    assert slots.length(second) == 2


@pytest.mark.parametrize("clean", [False, True])
def test_rows_are_released_as_they_are_freed(clean: bool) -> None:
    slots, released = slots_of(SequenceDecoder(9)), []
    first, second = come(slots, 3), come(slots)
    slots.cache.release = lambda row, *, clean=False: released.append((row, clean))
    slots.free(first, clean=clean)
    assert released == [(0, clean), (1, clean), (2, clean)]
    assert second.rows == [3]


# === Room ===


def test_a_cache_grows_by_half_of_what_it_becomes_at_least() -> None:
    """Each copy of all rows makes room for as many more."""
    decoder = SequenceDecoder(9)
    slots = slots_of(decoder)
    sequences = [come(slots)]
    write(slots, *sequences)
    for _ in range(8):
        sequences.append(come(slots))
        write(slots, sequences[-1])
    assert [len(cache.lengths) for cache in decoder.caches] == [1, 2, 4, 8, 16]
    assert [tokens(slots, sequence) for sequence in sequences] == [
        [[10 * row + i for i in range(row + 1)]] for row in range(9)
    ]
    slots.reserve(7)
    assert len(decoder.caches) == 5
    slots.reserve(40)
    assert len(decoder.caches[-1].lengths) == 49


def test_spare_rows_are_there_from_the_start() -> None:
    decoder = SequenceDecoder(9)
    decoder.spare_rows = 5
    slots = slots_of(decoder)
    for _ in range(5):
        come(slots)
    assert [len(cache.lengths) for cache in decoder.caches] == [5]


def test_free_rows_are_room() -> None:
    decoder = SequenceDecoder(9)
    slots = slots_of(decoder)
    first = come(slots, 2)
    come(slots, 2)
    slots.free(first)
    come(slots, 2)
    assert [len(cache.lengths) for cache in decoder.caches] == [2, 4]


def test_without_room_everything_stays() -> None:
    decoder = SequenceDecoder(9)

    def new_cache(rows: int, capacity: int) -> Any:
        if rows > 2:
            raise CacheMemoryError("no room", rows, 2)
        return decoder.new_cache(rows, capacity)

    slots = Slots(decoder, CAPACITY, new_cache)
    sequence = come(slots, 2)
    write(slots, sequence)
    with pytest.raises(CacheMemoryError):
        slots.reserve(1)
    assert (slots.used, sequence.rows, tokens(slots, sequence)) == (2, [0, 1], [[0], [10, 11]])


@pytest.mark.parametrize("most", [1, 3])
def test_rows_to_spare_are_left_out_where_there_is_no_room(most: int) -> None:
    decoder = SequenceDecoder(9)
    decoder.spare_rows = 16

    def new_cache(rows: int, capacity: int) -> Any:
        if rows > most:
            raise CacheMemoryError("no room", rows, most)
        return decoder.new_cache(rows, capacity)

    slots = Slots(decoder, CAPACITY, new_cache)
    sequences = []
    for _ in range(most):
        sequences.append(come(slots))
        write(slots, sequences[-1])
    assert [len(cache.lengths) for cache in decoder.caches] == [*range(1, most + 1)]
    assert [tokens(slots, sequence) for sequence in sequences] == [
        [[10 * row + i for i in range(row + 1)]] for row in range(most)
    ]
    with pytest.raises(CacheMemoryError, match="no room") as raised:
        slots.reserve(1)
    assert raised.value.needed == most + 1


# === Gaps ===


def test_the_last_rows_are_moved_into_gaps() -> None:
    slots = slots_of(SequenceDecoder(9))
    sequences = [come(slots, rows) for rows in (1, 2, 1, 3)]
    write(slots, *sequences)
    held = [tokens(slots, sequence) for sequence in sequences]
    slots.free(sequences[1])
    slots.free(sequences[0])
    slots.close_gaps()
    assert slots.used == 4
    assert [sequence.rows for sequence in sequences] == [[], [], [3], [2, 1, 0]]
    assert [tokens(slots, sequence) for sequence in sequences] == [[], [], *held[2:]]
    assert slots.cache.lengths[4:].tolist() == [0] * (len(slots.cache.lengths) - 4)
    copied = list(slots.cache.copied_slots)
    slots.close_gaps()
    assert slots.cache.copied_slots == copied  # nothing to do


def test_temperatures_go_with_their_rows() -> None:
    slots = slots_of(BestDecoder(9, 3))
    first, second, third = (come(slots, 1, t) for t in (0.5, 2.0, 3.0))
    assert slots.cache.temperatures[:3].tolist() == [0.5, 2.0, 3.0]
    slots.free(first)
    slots.close_gaps()
    assert (second.rows, third.rows) == ([1], [0])
    assert slots.cache.temperatures[:2].tolist() == [3.0, 2.0]
    slots.reserve(20)
    assert slots.cache.temperatures[:2].tolist() == [3.0, 2.0]
    assert come(slots, 1, 1e300).rows == [2]
    assert slots.cache.temperatures[2] == np.float32(1e30)


def test_copies_are_between_a_sequences_own_rows() -> None:
    """Counted within its rows, wherever these are."""
    slots = slots_of(SequenceDecoder(9))
    first, second = come(slots, 2), come(slots, 3)
    write(slots, first, second)
    other, (a, b, _) = tokens(slots, first), tokens(slots, second)
    second.copies = [(0, 2, 0), (1, 0, 0)]
    slots.copy(second)
    assert tokens(slots, second) == [b, b, a]
    assert (tokens(slots, first), second.copies) == (other, [])
    second.copies = [(2, 1, 2)]  # the first two are the same, it says: they are not written
    slots.copy(second)
    assert tokens(slots, second)[1] == [*b[:2], *a[2:]]


@pytest.mark.parametrize("kind", ["decoder", "cpu_decoder", "device_decoder"])
def test_moved_rows_go_on_as_if_they_had_been_there(kind: str, request: Any) -> None:
    """Bit by bit, whatever the rows have held before."""
    decoder = request.getfixturevalue(kind)
    first, second, third = random_rows([7, 5, 9])

    def read(slots: Slots, *rows: list[int]) -> list[Sequence]:
        sequences = [come(slots) for _ in rows]
        for sequence, row in zip(sequences, rows, strict=True):
            ids, length = np.array([row]), np.array([len(row)], np.int32)
            decoder.append(slots.cache, ids, length, first_row=sequence.rows[0])
        return sequences

    def go_on(slots: Slots) -> list[list[float]]:
        found, ones = [], np.ones(2, np.int32)
        for token in (3, 4, 5, 6):
            output = decoder.append(slots.cache, np.array([[token], [token + 9]]), ones)
            found += output.logits[:2].tolist()
        return found

    moved, still = slots_of(decoder), slots_of(decoder)
    sequences = read(moved, first, second, third)
    moved.free(sequences[0])
    moved.close_gaps()
    assert [sequence.rows for sequence in sequences] == [[], [1], [0]]
    read(still, third, second)
    assert go_on(moved) == go_on(still)


@pytest.mark.parametrize("seed", range(5))
def test_steps_run_rows_in_use_and_no_others(seed: int) -> None:
    """Calls come and go at random; each gets what it gets alone."""
    random = np.random.default_rng(seed)
    decoder = SequenceDecoder(9)
    engine = Engine(decoder, max_slots=9)
    samplers = [GreedySampler(), BeamSampler(3), ContrastiveSampler(k=2)]
    rows, append = [], decoder.append

    def noted(cache: Any, ids: Any, new: Any, *, first_row: int = 0, **options: Any) -> Any:
        running = engine._scheduler.running
        if all(sequence.feed for _, sequence in running):  # nobody reads: what runs is a step
            used = sum(len(s.rows) for _, s in running if s.capacity == cache.capacity)
            rows.append((first_row, len(new), used))
        return append(cache, ids, new, first_row=first_row, **options)

    decoder.append = noted  # type: ignore[method-assign]
    calls, wanted = [], []
    for _ in range(12):
        requests = [
            Request(tuple(random.integers(0, 9, random.integers(1, 5)).tolist()), 8 + 4 * i)
            for i in range(random.integers(1, 4))
        ]
        sampler = samplers[random.integers(3)]
        alone = run(SequenceDecoder(9), requests, sampler)
        wanted.append([sequence.token_ids for sequence in alone.sequences])
        calls.append(begin(engine, new_call(decoder, requests, sampler)))
        for _ in range(random.integers(0, 6)):
            engine.step()
    while not all(call.ended for call in calls):
        engine.step()
    assert [[sequence.token_ids for sequence in call.sequences] for call in calls] == wanted
    assert len(rows) > 10
    assert all(first == 0 and run_rows == used for first, run_rows, used in rows)
