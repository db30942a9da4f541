"""Buffers in a device's memory: of a cache and its decode steps, kept in a pool, and of single runs."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.contract import (
    BEST_IDS,
    BEST_LOGITS,
    CACHE_BYTES,
    WEIGHT_TOTALS,
    ModelConfig,
    Revision,
    best_count,
)
from runtime.cache import SPARE_SLOTS
from runtime.decoder import BestLogits
from runtime.gpu.memory import DeviceMemory
from runtime.gpu.packed_arrays import ArrayLayout, PackedArrays
from runtime.gpu.step_inputs import decode_layout

# Capacities are rounded up to a multiple of this, so that calls of similar lengths share buffers and
# the CUDA graphs that were captured on them.
CAPACITY_STEP = 64
MOST_IDLE = 4  # sets of buffers that are kept for later calls


class CacheShape:
    """Sizes of the buffers for a number of rows and tokens.

    Attributes:
        slots: of a row, one spare among them.
        head_bytes, row_bytes, tensor_bytes: of one head's keys, of a row's and of all rows'.
        nbytes: of all keys and values.
    """

    def __init__(self, config: ModelConfig, dtype: str, batch: int, capacity: int) -> None:
        self.batch = batch
        self.tensors = 2 * config.num_layers
        self.slots = -(-(capacity + SPARE_SLOTS) // CAPACITY_STEP) * CAPACITY_STEP
        self.slot_bytes = config.head_dim * CACHE_BYTES[dtype]
        self.heads = config.num_heads
        self.head_bytes = self.slots * self.slot_bytes
        self.row_bytes = self.heads * self.head_bytes
        self.tensor_bytes = batch * self.row_bytes
        self.nbytes = self.tensors * self.tensor_bytes


@dataclass(frozen=True)
class DecodeStep:
    """A decode step of some rows on buffers that stay.

    Attributes:
        inputs: what the host writes before each run.
        binding: of the run.
        options: of the run.
        graph_id: of the CUDA graph that replays it.
        total_length: what the binding reads in the host's memory.
    """

    inputs: PackedArrays
    binding: Any
    options: Any
    graph_id: int
    total_length: NDArray[np.int32]


class CacheBuffers:
    """Buffers at addresses that stay: of the cache, of a decode step's inputs and of what it gives.

    Attributes:
        shape: of the cache.
        logits: address of float32 [batch, vocabulary].
        best: what the last run found, in arrays that the next one overwrites; `None` for
            graphs of `Revision.HOST`.
        addresses: of all buffers.
        steps: by a number of rows, from the first on, their decode step; made by the decoder.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        config: ModelConfig,
        revision: Revision,
        shape: CacheShape,
    ) -> None:
        self.shape = shape
        self.steps: dict[int, DecodeStep] = {}
        self._memory = memory
        self._revision = revision
        self._config = config
        batch = shape.batch
        layouts = [decode_layout(batch, revision), _result_layout(config, batch, revision)]
        self._logits_shape = (batch, config.vocabulary_size)
        sizes = [shape.nbytes, 4 * batch * config.vocabulary_size, *(one.nbytes for one in layouts)]
        pointers: list[int] = []
        self._finalizer = weakref.finalize(self, _free, memory, pointers)
        # Not while the process ends, which frees all: a thread may still be in a step.
        self._finalizer.atexit = False
        try:
            for size in sizes:
                pointers.append(memory.allocate(max(size, 1)))
            self._staging = memory.staging(max(layouts[0].nbytes, 1))
            staging = memory.staging(max(layouts[1].nbytes, 1))
            self.results = PackedArrays(memory, layouts[1], pointers[3], staging)
        except BaseException:
            self.free()  # the error's traceback would keep what has been taken so far
            raise
        self.addresses = tuple(pointers)
        self.pointer, self.logits = pointers[:2]
        self.best: BestLogits | None = None
        if revision is Revision.DEVICE:
            found = self.results.views
            self.best = BestLogits(
                found[BEST_LOGITS], found[BEST_IDS], found[WEIGHT_TOTALS], config.vocabulary_size
            )

    def free(self) -> None:
        """Gives the buffers back."""
        self._finalizer()

    def inputs(self, rows: int) -> PackedArrays:
        """The inputs of a decode step of so many rows; one step's at a time."""
        layout = decode_layout(rows, self._revision)
        return PackedArrays(self._memory, layout, self.addresses[2], self._staging[: layout.nbytes])

    def tensor(self, index: int, row: int = 0) -> int:
        """The address of a row of layer `index // 2`'s keys, or values where the index is odd."""
        return self.pointer + index * self.shape.tensor_bytes + row * self.shape.row_bytes

    def logits_row(self, row: int) -> int:
        """The address of a row's logits."""
        return self.logits + 4 * row * self._config.vocabulary_size

    def read_logits(self) -> NDArray[np.float32]:
        """A copy of all logits, float32 [batch, vocabulary]."""
        logits = np.empty(self._logits_shape, np.float32)
        self._memory.read(self.logits, logits)
        return logits


def result_names(revision: Revision) -> tuple[str, ...]:
    """The outputs that lie beside each other."""
    return (BEST_IDS, BEST_LOGITS, WEIGHT_TOTALS) if revision is Revision.DEVICE else ()


def _result_layout(config: ModelConfig, batch: int, revision: Revision) -> ArrayLayout:
    if revision is Revision.HOST:
        return ArrayLayout([])
    best = (batch, best_count(config))
    return ArrayLayout(
        [
            (BEST_IDS, np.int64, best),
            (BEST_LOGITS, np.float32, best),
            (WEIGHT_TOTALS, np.float32, (batch,)),
        ]
    )


def _free(memory: DeviceMemory, pointers: list[int]) -> None:
    while pointers:
        memory.free(pointers.pop())


class BufferPool:
    """Buffers that no cache uses now, kept for the next one of their size.

    A CUDA graph replays the addresses that it was captured on: calls that find the same buffers again
    find their graph again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._returned: deque[CacheBuffers] = deque()
        self._idle: list[CacheBuffers] = []  # longest unused first

    @property
    def idle_bytes(self) -> int:
        """Bytes of the buffers that no cache uses."""
        with self._lock:
            return sum(buffers.shape.nbytes for buffers in self._sorted())

    def take(self, shape: CacheShape) -> CacheBuffers | None:
        """Buffers of a shape, if there are any."""
        with self._lock:
            idle = self._sorted()
            for i in reversed(range(len(idle))):
                if (idle[i].shape.batch, idle[i].shape.slots) == (shape.batch, shape.slots):
                    return idle.pop(i)
        return None

    def give_back(self, buffers: CacheBuffers) -> None:
        """Takes buffers that a cache no longer uses; frees those unused longest beyond a few.

        Waits for no thread: the garbage collector may call this in one that is in here already, or in
        a forked process without the thread that was. Who comes next sorts them in then.
        """
        self._returned.append(buffers)
        if self._lock.acquire(blocking=False):
            try:
                idle = self._sorted()
                surplus = [idle.pop(0) for _ in range(len(idle) - MOST_IDLE)]
            finally:
                self._lock.release()
            for unused in surplus:
                unused.free()

    def free_one(self) -> bool:
        """Frees the buffers that were unused longest; `False` if there are none."""
        with self._lock:
            idle = self._sorted()
            buffers = idle.pop(0) if idle else None
        if buffers is None:
            return False
        buffers.free()
        return True

    def _sorted(self) -> list[CacheBuffers]:
        while self._returned:
            self._idle.append(self._returned.popleft())
        return self._idle


class ScratchBuffer:
    """One buffer for what a run needs and nothing later does; it grows, and is kept between runs."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._size = 0
        self._pointers: list[int] = []
        weakref.finalize(self, _free, memory, self._pointers).atexit = False

    def of_size(self, nbytes: int) -> int:
        """The address of at least so many bytes; what was there before may be gone.

        Raises:
            DeviceMemoryError: if there is no room.
        """
        if nbytes > self._size:
            self._size = 0
            _free(self._memory, self._pointers)
            self._pointers.append(self._memory.allocate(nbytes))
            self._size = nbytes
        return self._pointers[0]
