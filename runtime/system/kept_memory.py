"""Memory of KV caches that is used again, as fresh memory from the system is slow to write to."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Kept memory stays with the process while no call runs, so that only so much of it is.
MOST_KEPT_BYTES = 256 * 2**20


class KeptMemory:
    """Gives out zeroed arrays, and keeps the memory of the last one for the next.

    The system hands out memory page by page when it is first written to, which takes longer than
    setting it to zero; on virtual machines, where the host may have to find each page too, many times
    as long.

    Args:
        most_bytes: larger arrays go back to the system when they are no longer used.
    """

    def __init__(self, most_bytes: int = MOST_KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept = np.zeros(0, np.uint8)
        self._lock = threading.Lock()

    @property
    def idle_bytes(self) -> int:
        """Bytes that are kept and that nobody uses."""
        with self._lock:
            return self._kept.nbytes if self._is_idle() else 0

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        """An array of zeros. Its memory is given out anew once neither it nor a view of it is used."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:
            if self._is_idle() and size <= self._kept.nbytes:
                memory = self._kept[:size]
                memory.fill(0)
            else:
                self._kept = np.zeros(0, np.uint8)  # given back first, as there may be no room for both
                memory = np.zeros(size, np.uint8)
                if size <= self._most_bytes:
                    self._kept = memory
        return memory.view(dtype).reshape(shape)

    def _is_idle(self) -> bool:
        # Views of an array refer to it. Two references are this object's and the function's argument.
        return sys.getrefcount(self._kept) == 2
