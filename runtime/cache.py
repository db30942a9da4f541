"""The KV cache: buffers of fixed capacity that the graphs read and write in place."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.contract import CACHE_BYTES, ModelConfig, cache_shape
from graphs.shown import shown
from runtime.system.lazy_memory import LazyArray

# Of each row: the graphs write padding that would lie past the end into the last slot.
SPARE_SLOTS = 1

# Memory of rows without a token stays with the process while no call runs, so only so much of it is.
MOST_IDLE_BYTES = 256 * 2**20

Rows = NDArray[np.integer[Any]]


def cache_bytes(config: ModelConfig, batch: int, capacity: int, dtype: str) -> int:
    """Bytes that a `KVCache` of these arguments takes."""
    return config.cache_bytes(batch, capacity + SPARE_SLOTS, CACHE_BYTES[dtype])


class RowCache(ABC):
    """What caches have in common: rows of tokens, which may be forgotten and copied.

    Args:
        batch: rows.
        capacity: tokens that a row has room for.

    Attributes:
        lengths: int32 [batch], tokens of each row; what lies beyond them is overwritten later.
    """

    def __init__(self, batch: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int32)

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def check_new_tokens(self, token_ids: Rows, new_lengths: Rows, first_row: int = 0) -> list[int]:
        """The new tokens of each row as plain numbers.

        Args:
            token_ids: int [n, sequence].
            new_lengths: int [n], valid tokens among them.
            first_row: of the n rows that get them.

        Raises:
            ValueError: if they do not fit the cache, or a row has no room for them.
        """
        batch, sequence = token_ids.shape
        if first_row + batch > self.batch or new_lengths.shape != (batch,):
            raise ValueError(
                f"a cache of {self.batch} rows got {batch} rows from {first_row} on and "
                f"{new_lengths.shape} lengths"
            )
        # Plain numbers: after a step an array operation costs tens of microseconds.
        added: list[int] = new_lengths.tolist()
        if min(added) < 0 or max(added) > sequence:
            raise ValueError(f"new_lengths must be from 0 to {sequence}, got {shown(added)}")
        lengths = self.lengths[first_row : first_row + batch].tolist()
        longest = max(map(operator.add, lengths, added))
        if longest > self.capacity:
            raise ValueError(f"a row of {longest} tokens has no room in a cache of {self.capacity}")
        return added

    def roll_back(self, lengths: NDArray[np.int32]) -> None:
        """Forgets the tokens of each row beyond the given lengths.

        Raises:
            ValueError: if a length is negative or more than the row has.
        """
        if (lengths < 0).any() or (lengths > self.lengths).any():
            raise ValueError(f"cannot roll rows of {self.lengths} tokens back to {lengths}")
        self.lengths[:] = lengths

    def copy_rows(self, source: Any, rows: Rows, targets: Rows, first: int = 0) -> None:
        """Copies rows, only the slots that are in use; see `runtime.decoder.Cache.copy_rows`.

        Raises:
            ValueError: if a row does not fit into this cache.
        """
        if not len(targets):
            return
        last = int(source.lengths[rows].max())
        if last > self.capacity:
            raise ValueError(f"a row of {last} tokens has no room in a cache of {self.capacity}")
        if first < last:
            self._copy_slots(source, rows, targets, first, last)
        self.lengths[targets] = source.lengths[rows]

    @abstractmethod
    def _copy_slots(self, source: Any, rows: Rows, targets: Rows, first: int, last: int) -> None:
        """Copies slots from `first` to before `last`; rows of one cache may trade places."""

    def release(self, row: int, *, clean: bool = False) -> None:
        """Empties a row; see `runtime.decoder.Cache.release`."""
        self.lengths[row] = 0
        if clean:
            self._clear(row)

    @abstractmethod
    def _clear(self, row: int) -> None:
        """Makes all of a row zero."""


class KVCache(RowCache):
    """Keys and values of the tokens that each row has seen, in the host's memory.

    Args:
        config: sizes of the model.
        batch: rows.
        capacity: tokens that a row has room for.
        dtype: NumPy dtype of the entries.

    Attributes:
        layers: key and value buffers [batch, heads, capacity + 1, head_dim] of each layer. They take
            memory where tokens have been written.
    """

    def __init__(self, config: ModelConfig, batch: int, capacity: int, dtype: str) -> None:
        super().__init__(batch, capacity)
        sizes = {"batch": batch, "capacity": capacity + SPARE_SLOTS}
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in cache_shape(config))
        # Zeros, because masked places are multiplied by zero and must not hold NaN.
        self._memory = LazyArray((config.num_layers, 2, *shape), dtype)
        self.layers: list[tuple[NDArray[np.generic], NDArray[np.generic]]] = [
            (keys, values) for keys, values in self._memory.array
        ]
        self._token_bytes = config.cache_bytes(1, 1, self._memory.array.itemsize)
        self._written = np.zeros(batch, np.int32)  # tokens that a row has memory for

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(key.nbytes + value.nbytes for key, value in self.layers)

    @property
    def idle_bytes(self) -> int:
        """Bytes of memory in rows without a token."""
        return int(self._written[self.lengths == 0].sum()) * self._token_bytes

    def release(self, row: int, *, clean: bool = False) -> None:
        """Empties a row. Its memory goes back to the system where there is much of that kind.

        The system hands out memory page by page when it is first written to, on virtual machines many
        times as slowly as it is set to zero.
        """
        self._written[row] = max(self._written[row], self.lengths[row])
        super().release(row, clean=clean or self.idle_bytes + self._row_bytes(row) > MOST_IDLE_BYTES)

    def _row_bytes(self, row: int) -> int:
        return int(self._written[row]) * self._token_bytes

    def _clear(self, row: int) -> None:
        array = self._memory.array
        size = array[0, 0, 0].nbytes
        for first in range(row * size, array.nbytes, array.shape[2] * size):
            self._memory.clear(first, first + size)
        self._written[row] = 0

    def block_bytes(self, tokens: int) -> int:
        """Bytes of a block of so many tokens."""
        return tokens * self._token_bytes

    def read_block(
        self, row: int, start: int, stop: int, spare: NDArray[np.generic] | None = None
    ) -> NDArray[np.generic]:
        """A copy of the keys and values of some of a row's tokens, for `write_block`.

        `spare` is a block of as many tokens whose memory may be used.
        """
        part = self._memory.array[:, :, row, :, start:stop]
        if spare is None:
            return part.copy()
        spare[...] = part
        return spare

    def write_block(self, row: int, start: int, block: NDArray[np.generic]) -> None:
        """Writes a block into a row, from a token on; `lengths` is the caller's business."""
        self._memory.array[:, :, row, :, start : start + block.shape[3]] = block

    def _copy_slots(self, source: KVCache, rows: Rows, targets: Rows, first: int, last: int) -> None:
        for own, others in zip(self.layers, source.layers, strict=True):
            for buffer, other in zip(own, others, strict=True):
                # The right side is a copy of its own, so rows may trade places.
                buffer[targets, :, first:last] = other[rows, :, first:last]
