"""Small arrays side by side in one buffer of a device, so that one copy moves all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.gpu.memory import DeviceMemory

ALIGNMENT = 64  # of each array


class ArrayLayout:
    """Where arrays lie in a buffer.

    Args:
        arrays: name, dtype and shape of each.

    Attributes:
        nbytes: of the buffer.
        offsets: of each array, by name.
    """

    def __init__(self, arrays: Iterable[tuple[str, Any, tuple[int, ...]]]) -> None:
        self.arrays = [(name, np.dtype(dtype), shape) for name, dtype, shape in arrays]
        self.offsets: dict[str, int] = {}
        self.nbytes = 0
        for name, dtype, shape in self.arrays:
            self.offsets[name] = self.nbytes
            size = dtype.itemsize * math.prod(shape)
            self.nbytes += -(-size // ALIGNMENT) * ALIGNMENT

    def views(self, buffer: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The arrays in a buffer of the host's memory."""
        return {
            name: np.ndarray(shape, dtype, buffer.data, self.offsets[name])
            for name, dtype, shape in self.arrays
        }


class PackedArrays:
    """Arrays that the host and a device each have a copy of.

    Args:
        memory: the device's.
        layout: of the arrays.
        pointer: of a buffer on the device.
        staging: the host's copy; by default one that the device cannot reach by itself.

    Attributes:
        views: the host's arrays by name; zeros at first where they are not given.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        layout: ArrayLayout,
        pointer: int,
        staging: NDArray[np.uint8] | None = None,
    ) -> None:
        self._memory = memory
        self._layout = layout
        self._pointer = pointer
        self._staging = np.zeros(layout.nbytes, np.uint8) if staging is None else staging
        self.views = layout.views(self._staging)

    def address(self, name: str, row: int = 0) -> int:
        """Where an array, or one of its rows, is on the device."""
        array = self.views[name]
        return self._pointer + self._layout.offsets[name] + row * array.strides[0]

    def upload(self) -> None:
        """Copies all arrays to the device; done when it returns."""
        self._memory.write(self._pointer, self._staging)

    def download(self) -> None:
        """Copies all arrays from the device; done when it returns."""
        self._memory.read(self._pointer, self._staging)
