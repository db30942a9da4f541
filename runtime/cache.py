"""The KV cache: buffers of fixed capacity that the graphs read and write in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.contract import CACHE_BYTES, ModelConfig, cache_shape

# Of each row: the graphs write padding that would lie past the end into the last slot.
SPARE_SLOTS = 1


def cache_bytes(config: ModelConfig, batch: int, capacity: int, dtype: str) -> int:
    """Bytes that a `KVCache` of these arguments takes."""
    return config.cache_bytes(batch, capacity + SPARE_SLOTS, CACHE_BYTES[dtype])


def check_roll_back(lengths: NDArray[np.int32], wanted: NDArray[np.int32]) -> None:
    """Raises `ValueError` if rows of some lengths cannot be rolled back to others."""
    if (wanted < 0).any() or (wanted > lengths).any():
        raise ValueError(f"cannot roll rows of {lengths} tokens back to {wanted}")


class KVCache:
    """Keys and values of the tokens that each row has seen.

    Args:
        config: sizes of the model.
        batch: rows.
        capacity: tokens that a row has room for.
        dtype: NumPy dtype of the entries.

    Attributes:
        layers: key and value buffers [batch, heads, capacity + 1, head_dim] of each layer.
        lengths: int32 [batch], tokens of each row; what lies beyond them is overwritten later.
    """

    def __init__(self, config: ModelConfig, batch: int, capacity: int, dtype: str) -> None:
        sizes = {"batch": batch, "capacity": capacity + SPARE_SLOTS}
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in cache_shape(config))
        self.capacity = capacity
        # Zeros, because masked slots are multiplied by zero and must not hold NaN. One array, because
        # NumPy asks for huge pages where one is large enough: fewer faults, fewer misses.
        buffers = np.zeros((config.num_layers, 2, *shape), dtype)
        self.layers: list[tuple[NDArray[np.generic], NDArray[np.generic]]] = [
            (keys, values) for keys, values in buffers
        ]
        self.lengths = np.zeros(batch, np.int32)

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(key.nbytes + value.nbytes for key, value in self.layers)

    def roll_back(self, lengths: NDArray[np.int32]) -> None:
        """Forgets the tokens of each row beyond the given lengths.

        Raises:
            ValueError: if a length is negative or more than the row has.
        """
        check_roll_back(self.lengths, lengths)
        self.lengths[:] = lengths

    def copy_rows(
        self,
        source: KVCache,
        rows: NDArray[np.integer[Any]],
        targets: NDArray[np.integer[Any]],
        first: int = 0,
    ) -> None:
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
            for own, others in zip(self.layers, source.layers, strict=True):
                for buffer, other in zip(own, others, strict=True):
                    # The right side is a copy of its own, so rows may trade places.
                    buffer[targets, :, first:last] = other[rows, :, first:last]
        self.lengths[targets] = source.lengths[rows]

    def reorder(self, rows: NDArray[np.integer[Any]], first: int = 0) -> None:
        """Makes row i a copy of what row `rows[i]` was; rows that stay are not touched."""
        targets = np.flatnonzero(rows != np.arange(self.batch))
        self.copy_rows(self, rows[targets], targets, first)
