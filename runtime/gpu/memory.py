"""Memory of the device that a graph runs on, and copies between it and the host.

The same decoder runs on `CudaMemory` and on its twin in the host's memory.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DeviceMemoryError
from runtime.gpu.captures import CAPTURES
from runtime.gpu.cuda_library import (
    INITIALIZATION_ERROR,
    MEMORY_ALLOCATION,
    UNLOADING,
    CudaError,
    CudaLibrary,
)
from runtime.sizes import format_bytes
from runtime.system.available_memory import available_memory_bytes

ALIGNMENT = 256  # of buffers; what CUDA gives


class DeviceMemory(Protocol):
    """Buffers on one device, named by their addresses.

    Copies start when what the default stream has to do is done. ONNX Runtime runs on a stream of its
    own, which they do not wait for: its runs are done when they return.

    Attributes:
        device_type: `"cpu"` or `"cuda"`, as `IOBinding.bind_input` calls it.
        device_id: the device's index.
        name: `"cpu"` or `"cuda:0"`.
    """

    device_type: str
    device_id: int
    name: str

    def allocate(self, nbytes: int) -> int:
        """The address of a new buffer of zeros, a multiple of 256.

        Raises:
            ValueError: if the size is below 1.
            DeviceMemoryError: if there is no room.
        """

    def free(self, pointer: int) -> None:
        """Gives a buffer back; allowed in a forked child and while the process ends."""

    def staging(self, nbytes: int) -> NDArray[np.uint8]:
        """Zeros in the host's memory that the device reads and writes fastest, page-locked for CUDA.

        They are freed with the last array that shows them.

        Raises:
            ValueError: if the size is below 1.
            DeviceMemoryError: if there is no room.
        """

    def write(self, pointer: int, data: NDArray[Any]) -> None:
        """Copies a C-contiguous array to the device; done when it returns."""

    def read(self, pointer: int, out: NDArray[Any]) -> None:
        """Copies from the device into a C-contiguous array; done when it returns."""

    def copy_blocks(
        self, target: int, target_stride: int, source: int, source_stride: int, width: int, count: int
    ) -> None:
        """Copies `count` blocks of `width` bytes within the device; done when it returns.

        Args:
            target, source: addresses of the first blocks; what is read and what is written must not
                overlap.
            target_stride, source_stride: bytes from one block's start to the next one's, at least
                `width`.
            width: bytes of a block.
            count: of blocks; none is allowed.

        Raises:
            ValueError: if a stride is below the width.
        """

    def available_bytes(self) -> int | None:
        """Bytes that are free now; `None` where the system does not tell."""


class HostMemory:
    """A `DeviceMemory` in the host's memory. Addresses outside its buffers are a `ValueError`."""

    device_type = "cpu"
    device_id = 0
    name = "cpu"

    def __init__(self) -> None:
        # Its thread may take it again: the garbage collector frees buffers at any point.
        self._lock = threading.RLock()
        self._buffers: dict[int, NDArray[np.uint8]] = {}
        self._starts: list[int] = []  # replaced as a whole, so that readers take no lock

    def allocate(self, nbytes: int) -> int:
        """See `DeviceMemory.allocate`."""
        buffer = self.staging(nbytes)
        pointer = _address(buffer)
        with self._lock:
            self._buffers[pointer] = buffer
            self._starts = sorted(self._buffers)
        return pointer

    def free(self, pointer: int) -> None:
        """See `DeviceMemory.free`."""
        with self._lock:
            if self._buffers.pop(pointer, None) is None:
                raise ValueError(f"no buffer starts at {pointer:#x}")
            self._starts = sorted(self._buffers)

    def staging(self, nbytes: int) -> NDArray[np.uint8]:
        """See `DeviceMemory.staging`."""
        _check_size(nbytes)
        try:
            memory = np.zeros(nbytes + ALIGNMENT, np.uint8)
        except MemoryError:
            raise _no_room(nbytes, "the memory of this machine", self.available_bytes()) from None
        start = -_address(memory) % ALIGNMENT
        return memory[start : start + nbytes]

    def write(self, pointer: int, data: NDArray[Any]) -> None:
        """See `DeviceMemory.write`."""
        _check_contiguous(data)
        (block,) = self._blocks(pointer, data.nbytes, data.nbytes, 1)
        block[:] = data.reshape(-1).view(np.uint8)

    def read(self, pointer: int, out: NDArray[Any]) -> None:
        """See `DeviceMemory.read`."""
        _check_contiguous(out)
        (block,) = self._blocks(pointer, out.nbytes, out.nbytes, 1)
        out.reshape(-1).view(np.uint8)[:] = block

    def copy_blocks(
        self, target: int, target_stride: int, source: int, source_stride: int, width: int, count: int
    ) -> None:
        """See `DeviceMemory.copy_blocks`."""
        if _is_copy(target_stride, source_stride, width, count):
            blocks = self._blocks(source, source_stride, width, count)
            self._blocks(target, target_stride, width, count)[...] = blocks

    def _blocks(self, pointer: int, stride: int, width: int, count: int) -> NDArray[np.uint8]:
        """A view of blocks of one buffer, uint8 [count, width]."""
        starts = self._starts
        start = starts[bisect.bisect(starts, pointer) - 1] if starts else 0
        buffer = self._buffers.get(start)
        end = pointer + stride * (count - 1) + width
        if buffer is None or not start <= pointer <= end <= start + buffer.nbytes:
            raise ValueError(f"addresses from {pointer:#x} to {end:#x} are not within one buffer")
        return np.ndarray((count, width), np.uint8, buffer, pointer - start, (stride, 1))

    def available_bytes(self) -> int | None:
        """See `DeviceMemory.available_bytes`."""
        return available_memory_bytes()


class CudaMemory:
    """A `DeviceMemory` on an NVIDIA GPU.

    Args:
        library: CUDA's functions.
        index: of the GPU among those that this process may use.
    """

    device_type = "cuda"

    def __init__(self, library: CudaLibrary, index: int) -> None:
        self.device_id = index
        self.name = f"cuda:{index}"
        self._library = library
        self._several = library.device_count() > 1

    def _select(self) -> None:
        """Makes the device this thread's: each has one, number 0 until set, and others may set it."""
        if self._several:
            self._library.set_device(self.device_id)

    def allocate(self, nbytes: int) -> int:
        """See `DeviceMemory.allocate`."""
        _check_size(nbytes)
        with CAPTURES:
            self._select()
            try:
                pointer = self._library.malloc(nbytes)
            except CudaError as error:
                if error.code != MEMORY_ALLOCATION:
                    raise
                raise _no_room(nbytes, f"the memory of {self.name}", self.available_bytes()) from None
            self._library.fill(pointer, 0, nbytes)
            self._library.synchronize()
        return pointer

    def free(self, pointer: int) -> None:
        """See `DeviceMemory.free`."""
        with CAPTURES, _without_cuda():
            self._select()
            self._library.free(pointer)

    def staging(self, nbytes: int) -> NDArray[np.uint8]:
        """See `DeviceMemory.staging`."""
        _check_size(nbytes)
        try:
            with CAPTURES:
                self._select()
                pointer = self._library.malloc_host(nbytes)
        except CudaError as error:
            if error.code != MEMORY_ALLOCATION:
                raise
            raise _no_room(
                nbytes, "what this machine can page-lock (ulimit -l)", available_memory_bytes()
            ) from None
        ctypes.memset(pointer, 0, nbytes)
        # The arrays made of it keep this object alive, and it the memory.
        memory = (ctypes.c_uint8 * nbytes).from_address(pointer)
        # Not while the process ends, which frees all: arrays may still be in use then.
        weakref.finalize(memory, _free_host, self._library, pointer).atexit = False
        return np.frombuffer(memoryview(memory), np.uint8)

    def write(self, pointer: int, data: NDArray[Any]) -> None:
        """See `DeviceMemory.write`."""
        _check_contiguous(data)
        with CAPTURES:
            self._select()
            self._library.copy_to_device(pointer, _address(data), data.nbytes)
            # What is not page-locked may be on its way yet, and ONNX Runtime's stream does not wait.
            self._library.synchronize()

    def read(self, pointer: int, out: NDArray[Any]) -> None:
        """See `DeviceMemory.read`."""
        _check_contiguous(out)
        with CAPTURES:
            self._select()
            self._library.copy_to_host(_address(out), pointer, out.nbytes)

    def copy_blocks(
        self, target: int, target_stride: int, source: int, source_stride: int, width: int, count: int
    ) -> None:
        """See `DeviceMemory.copy_blocks`."""
        if _is_copy(target_stride, source_stride, width, count):
            with CAPTURES:
                self._select()
                self._library.copy_blocks(target, target_stride, source, source_stride, width, count)
                self._library.synchronize()  # else ONNX Runtime's stream may read before it is done

    def available_bytes(self) -> int:
        """See `DeviceMemory.available_bytes`."""
        with CAPTURES:
            self._select()
            return self._library.memory_info()[0]


def _free_host(library: CudaLibrary, pointer: int) -> None:
    with CAPTURES, _without_cuda():
        library.free_host(pointer)


@contextlib.contextmanager
def _without_cuda() -> Iterator[None]:
    """Passes over errors of a process whose CUDA is gone: a forked child's, and one that ends."""
    try:
        yield
    except CudaError as error:
        if error.code not in (INITIALIZATION_ERROR, UNLOADING):
            raise


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]  # half the time of array.ctypes.data
    return address


def _check_size(nbytes: int) -> None:
    if nbytes < 1:
        raise ValueError(f"a buffer has at least 1 byte, got {nbytes}")


def _check_contiguous(array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous:
        raise ValueError(
            f"an array of strides {array.strides} and shape {array.shape} is not C-contiguous"
        )


def _is_copy(target_stride: int, source_stride: int, width: int, count: int) -> bool:
    """Whether there is anything to copy."""
    if min(target_stride, source_stride) < width or width < 0 or count < 0:
        raise ValueError(
            f"{count} blocks of {width} bytes cannot be {source_stride} bytes apart in the source and "
            f"{target_stride} in the target"
        )
    return width > 0 and count > 0


def _no_room(nbytes: int, place: str, available: int | None) -> DeviceMemoryError:
    left = "" if available is None else f", of which {format_bytes(available)} are free"
    return DeviceMemoryError(
        f"a buffer of {format_bytes(nbytes)} does not fit in {place}{left}; ask for fewer rows or a "
        "smaller max_length, or end what else takes memory there",
        nbytes,
        available,
    )
