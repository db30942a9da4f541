"""The KV cache: buffers of fixed capacity that the graphs read and write in place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphs.contract import ModelConfig, cache_shape


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
        # One spare slot: the graphs write padding that would lie past the end into the last one.
        sizes = {"batch": batch, "capacity": capacity + 1}
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in cache_shape(config))
        self.capacity = capacity
        # Zeros, because masked slots are multiplied by zero and must not hold NaN.
        self.layers: list[tuple[NDArray[np.generic], NDArray[np.generic]]] = [
            (np.zeros(shape, dtype), np.zeros(shape, dtype)) for _ in range(config.num_layers)
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
        if (lengths < 0).any() or (lengths > self.lengths).any():
            raise ValueError(f"cannot roll rows of {self.lengths} tokens back to {lengths}")
        self.lengths[:] = lengths

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """Makes row i a copy of what row `rows[i]` was, as beam search does."""
        for pair in self.layers:
            for buffer in pair:
                buffer[...] = buffer[rows]
        self.lengths[:] = self.lengths[rows]
