"""The rows of a KV cache: who has them, and how they stay dense.

A decode step runs the rows from the first to the last that is in use, and takes as long for an idle
row as for a busy one. So a sequence that comes takes the first hole, and where none comes the last row
is moved into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.decoder import Decoder, TemperedCache
from runtime.engine.sequence import Sequence
from runtime.errors import CacheMemoryError
from runtime.probabilities import bounded_temperature


class Slots:
    """A cache for sequences that need room for the same number of tokens.

    Args:
        decoder: the model.
        capacity: tokens of a row.
        new_cache: makes a cache of so many rows and tokens, or raises that there is no room for it.

    Attributes:
        cache: the rows; `None` before the first is taken.
    """

    def __init__(self, decoder: Decoder, capacity: int, new_cache: Callable[[int, int], Any]) -> None:
        self.capacity = capacity
        self.cache: Any = None
        self._spare = decoder.spare_rows
        self._new_cache = new_cache
        self._owners: list[tuple[Sequence, int] | None] = []

    @property
    def used(self) -> int:
        """Rows from the first to the last that a sequence has."""
        return len(self._owners)

    @property
    def idle_bytes(self) -> int:
        """Bytes of memory that rows without a token have."""
        return 0 if self.cache is None else getattr(self.cache, "idle_bytes", 0)

    @property
    def shares_logits(self) -> bool:
        """Whether the logits of one row can be written into another's place in the host's memory."""
        return not isinstance(self.cache, TemperedCache)

    def reserve(self, rows: int) -> None:
        """Sees to room for so many more rows.

        Raises:
            CacheMemoryError: if there is none.
        """
        needed = rows + sum(owner is not None for owner in self._owners)
        old = self.cache
        held = 0 if old is None else len(old.lengths)
        if needed <= held:
            return
        wanted = max(needed, self._spare if old is None else 2 * held)
        try:
            wider = self._new_cache(wanted, self.capacity)
        except CacheMemoryError:
            if wanted == needed:
                raise
            wider = self._new_cache(needed, self.capacity)
        if old is None:
            self.cache = wider
            return
        kept = np.arange(self.used)
        wider.copy_rows(old, kept, kept)
        if isinstance(wider, TemperedCache):
            wider.temperatures[: self.used] = old.temperatures[: self.used]
        self.cache = wider

    def take(self, sequence: Sequence, rows: int, temperature: float) -> None:
        """Gives a sequence some empty rows, those that are free before the end first.

        `reserve` has seen to room for them.
        """
        free = [row for row, owner in enumerate(self._owners) if owner is None][:rows]
        while len(free) < rows:
            free.append(len(self._owners))
            self._owners.append(None)
        for i, row in enumerate(free, start=len(sequence.rows)):
            self._owners[row] = (sequence, i)
            self.cache.lengths[row] = 0
            if isinstance(self.cache, TemperedCache):
                self.cache.temperatures[row] = bounded_temperature(temperature)
        sequence.rows += free

    def length(self, sequence: Sequence) -> int:
        """Tokens in a sequence's first row."""
        return int(self.cache.lengths[sequence.rows[0]])

    def copy(self, sequence: Sequence) -> None:
        """Does the copies between a sequence's rows that its search asks for."""
        if not sequence.copies:
            return
        rows, copies = np.array(sequence.rows), np.array(sequence.copies)
        first = int(copies[:, 2].min())
        self.cache.copy_rows(self.cache, rows[copies[:, 0]], rows[copies[:, 1]], first)
        sequence.copies = []

    def free(self, sequence: Sequence, *, clean: bool = False) -> None:
        """Takes a sequence's rows back.

        Args:
            sequence: has ended.
            clean: whether what is in them must not be seen again, as it may not be numbers.
        """
        for row in sequence.rows:
            self._owners[row] = None
            self.cache.release(row, clean=clean)
        sequence.rows = []
        self._trim()

    def close_gaps(self) -> None:
        """Moves rows from the end into those that are free before it."""
        owners = self._owners
        for row in range(len(owners)):
            if row >= len(owners):
                return
            owner = owners[row]
            if owner is not None:
                continue
            last = len(owners) - 1
            self.cache.copy_rows(self.cache, np.array([last]), np.array([row]))
            if isinstance(self.cache, TemperedCache):
                self.cache.temperatures[row] = self.cache.temperatures[last]
            moved = owners[last]
            assert moved is not None
            sequence, i = moved
            owners[row], sequence.rows[i] = moved, row
            owners[last] = None
            self.cache.release(last)
            self._trim()

    def _trim(self) -> None:
        while self._owners and self._owners[-1] is None:
            self._owners.pop()
