"""How fast this machine reads memory, which is what bounds a decode step."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

READ_BYTES = 2_000_000_000  # many times a shared last-level cache
METHOD = (
    "each thread takes NumPy's maximum of its part of a float32 array of "
    f"{READ_BYTES / 1e9:g} GB, once in each trial"
)


class BandwidthMeter:
    """An array to be read by several threads; a context manager that ends them.

    Args:
        threads: that read at the same time.
        size: of the array in bytes.
    """

    def __init__(self, threads: int, size: int = READ_BYTES) -> None:
        # Written, so that every page is real memory. The maximum is NumPy's fastest reduction.
        self._parts = np.array_split(np.ones(size // 4, np.float32), threads)
        self._pool = ThreadPoolExecutor(threads)

    def measure(self) -> float:
        """Reads the array once; bytes per second."""
        started = time.perf_counter()
        list(self._pool.map(np.max, self._parts))
        seconds = time.perf_counter() - started
        return sum(part.nbytes for part in self._parts) / seconds

    def __enter__(self) -> BandwidthMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
