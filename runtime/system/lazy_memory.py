"""Memory that the system gives page by page, and takes back so."""

from __future__ import annotations

import math
import mmap
import os
import sys

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Of a mapping that other processes may see, the advice would leave the numbers as they are. Linux
# refuses one larger than all memory, unless it is told that not all of it is to be used.
_FLAGS = {}
if hasattr(mmap, "MAP_PRIVATE"):
    _FLAGS["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
if sys.platform == "linux" and os.uname().machine in ("x86_64", "aarch64"):
    _FLAGS["flags"] |= 0x4000  # MAP_NORESERVE, which Python has no name for before 3.13
_RETURNS = sys.platform == "linux"  # elsewhere the advice may leave them, too


class LazyArray:
    """An array of zeros that takes memory only where it has been written to.

    `numpy.zeros` asks for pages of 2 MB where there are any, so that a few numbers in each row of a
    large array take the whole row.

    Args:
        shape: of the array.
        dtype: of its entries.

    Attributes:
        array: the numbers.

    Raises:
        MemoryError: if there is no room for it in the process's address space.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            self._memory = mmap.mmap(-1, max(size, 1), **_FLAGS)
        except (OSError, ValueError, OverflowError) as error:
            raise MemoryError(f"the system gave no {size:,} bytes: {error}") from None
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._advise(mmap.MADV_NOHUGEPAGE, 0, size)
        self.array: NDArray[np.generic] = np.frombuffer(self._memory, dtype, math.prod(shape)).reshape(
            shape
        )

    def clear(self, start: int, stop: int) -> None:
        """Makes some bytes zero again and gives back the pages that lie within them."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = stop // mmap.PAGESIZE * mmap.PAGESIZE
        everything = np.frombuffer(self._memory, np.uint8)
        if not _RETURNS or first >= last:
            everything[start:stop] = 0
            return
        everything[start:first] = 0
        everything[last:stop] = 0
        self._advise(mmap.MADV_DONTNEED, first, last - first)

    def _advise(self, advice: int, start: int, size: int) -> None:
        if size:
            self._memory.madvise(advice, start, size)
