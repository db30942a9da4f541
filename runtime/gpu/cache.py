"""The KV cache in a device's memory."""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

from runtime.cache import RowCache, Rows
from runtime.gpu.buffers import BufferPool, CacheBuffers
from runtime.gpu.memory import DeviceMemory


class DeviceCache(RowCache):
    """Keys and values of the tokens that each row has seen, in a device's memory.

    Args:
        memory: the device's.
        buffers: what no other cache uses.
        pool: gets the buffers when this object is gone.
        capacity: tokens that a row has room for.

    Attributes:
        lengths: int32 [batch], tokens of each row; what lies beyond them is overwritten later.
        temperatures: float32 [batch]; see `runtime.decoder.TemperedCache`.
    """

    def __init__(
        self, memory: DeviceMemory, buffers: CacheBuffers, pool: BufferPool, capacity: int
    ) -> None:
        super().__init__(buffers.shape.batch, capacity)
        self.buffers = buffers
        self.temperatures = np.ones(buffers.shape.batch, np.float32)
        self._memory = memory
        # Not while the process ends, which frees all.
        self._finalizer = weakref.finalize(self, pool.give_back, buffers)
        self._finalizer.atexit = False

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self.buffers.shape.nbytes

    def read_logits(self) -> NDArray[np.float32]:
        """A copy of all logits of the last step, float32 [batch, vocabulary]."""
        return self.buffers.read_logits()

    def _copy_slots(
        self, source: DeviceCache, rows: Rows, targets: Rows, first: int, last: int
    ) -> None:
        shape, other = self.buffers.shape, source.buffers.shape
        width = (last - first) * shape.slot_bytes
        # Rows may trade places: where one that is written is read too, all go by way of a buffer.
        trades = source is self and bool(np.isin(targets, rows).any())
        size = len(rows) * shape.heads * width
        between = self._memory.allocate(size) if trades else 0
        try:
            for tensor in range(shape.tensors):
                copies = [
                    (
                        self.buffers.tensor(tensor, target) + first * shape.slot_bytes,
                        source.buffers.tensor(tensor, row) + first * shape.slot_bytes,
                    )
                    for row, target in zip(rows.tolist(), targets.tolist(), strict=True)
                ]
                if not trades:
                    for to, start in copies:
                        self._copy(to, shape.head_bytes, start, other.head_bytes, width)
                    continue
                step = shape.heads * width
                for i, (_, start) in enumerate(copies):
                    self._copy(between + i * step, width, start, other.head_bytes, width)
                for i, (to, _) in enumerate(copies):
                    self._copy(to, shape.head_bytes, between + i * step, width, width)
        finally:
            if trades:
                self._memory.free(between)

    def _copy(self, target: int, target_stride: int, source: int, stride: int, width: int) -> None:
        heads = self.buffers.shape.heads
        self._memory.copy_blocks(target, target_stride, source, stride, width, heads)

    def _clear(self, row: int) -> None:
        shape = self.buffers.shape
        zeros = np.zeros(shape.row_bytes, np.uint8)
        for tensor in range(shape.tensors):
            self._memory.write(self.buffers.tensor(tensor, row), zeros)
