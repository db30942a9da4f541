"""The cache on a device: its sizes, its buffers' ways between calls, and copies of rows."""

from __future__ import annotations

import numpy as np
import pytest

from graphs.contract import ModelConfig, Revision
from runtime.errors import DeviceMemoryError
from runtime.gpu.buffers import BufferPool, CacheBuffers, CacheShape
from runtime.gpu.cache import DeviceCache
from runtime.gpu.memory import HostMemory
from runtime.gpu.session import DeviceDecoder
from tests.runtime.test_session import append, random_rows

CONFIG = ModelConfig(
    vocabulary_size=90,
    num_layers=3,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=8,
    max_sequence_length=256,
)


class SmallMemory(HostMemory):
    """Has room for so many bytes; counts the buffers."""

    def __init__(self, room: int = 1 << 30) -> None:
        super().__init__()
        self.room = room
        self.allocations = 0
        self.frees: list[int] = []

    def allocate(self, nbytes: int) -> int:
        if nbytes > self.available_bytes():
            raise DeviceMemoryError(f"no room for {nbytes}", nbytes, self.available_bytes())
        self.allocations += 1
        return super().allocate(nbytes)

    def free(self, pointer: int) -> None:
        super().free(pointer)
        self.frees.append(pointer)

    def available_bytes(self) -> int:
        return self.room - sum(buffer.nbytes for buffer in self._buffers.values())


def make_buffers(memory: HostMemory, batch: int = 2, capacity: int = 10) -> CacheBuffers:
    shape = CacheShape(CONFIG, "float16", batch, capacity)
    return CacheBuffers(memory, CONFIG, Revision.DEVICE, shape)


def make_cache(
    memory: HostMemory, batch: int = 2, capacity: int = 10, pool: BufferPool | None = None
) -> DeviceCache:
    """A cache whose every number says where it lies; the same in all caches of a size."""
    cache = DeviceCache(memory, make_buffers(memory, batch, capacity), pool or BufferPool(), capacity)
    content = np.arange(cache.nbytes // 2, dtype=np.uint16)
    memory.write(cache.buffers.pointer, content)
    return cache


def read(memory: HostMemory, cache: DeviceCache) -> np.ndarray:
    """Its content, uint16 [tensor, row, head, slot, number]."""
    shape = cache.buffers.shape
    content = np.empty((shape.tensors, shape.batch, shape.heads, shape.slots, 4), np.uint16)
    assert content.nbytes == cache.nbytes
    memory.read(cache.buffers.pointer, content)
    return content


# === Sizes ===


@pytest.mark.parametrize(
    ("capacity", "slots"), [(1, 64), (62, 64), (63, 64), (64, 128), (127, 128), (2048, 2112)]
)
@pytest.mark.parametrize(("dtype", "itemsize"), [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_capacities_are_rounded_up_beyond_a_spare_slot(
    capacity: int, slots: int, dtype: str, itemsize: int
) -> None:
    shape = CacheShape(CONFIG, dtype, 5, capacity)
    assert (shape.batch, shape.tensors, shape.heads, shape.slots) == (5, 6, 2, slots)
    assert shape.slot_bytes == 4 * itemsize
    assert shape.head_bytes == slots * 4 * itemsize
    assert shape.row_bytes == 2 * shape.head_bytes
    assert shape.tensor_bytes == 5 * shape.row_bytes
    assert shape.nbytes == 6 * 5 * 2 * slots * 4 * itemsize


def test_where_buffers_lie() -> None:
    buffers = make_buffers(HostMemory(), batch=3)
    shape = buffers.shape
    assert buffers.tensor(0) == buffers.pointer == buffers.addresses[0]
    assert buffers.tensor(5, 2) == buffers.pointer + 5 * shape.tensor_bytes + 2 * shape.row_bytes
    assert buffers.tensor(5, 2) + shape.row_bytes == buffers.pointer + shape.nbytes
    assert buffers.logits_row(2) == buffers.addresses[1] + 2 * 90 * 4
    assert [address % 256 for address in buffers.addresses] == [0] * 4
    assert buffers.best is not None
    assert buffers.best.logits.shape == (3, 64)
    assert buffers.read_logits().tolist() == np.zeros((3, 90)).tolist()
    plain = CacheBuffers(HostMemory(), CONFIG, Revision.HOST, shape)
    assert plain.best is None


def test_a_new_cache_is_empty() -> None:
    cache = make_cache(HostMemory(), batch=3, capacity=70)
    assert (cache.batch, cache.capacity, cache.nbytes) == (3, 70, 3 * 128 * 6 * 2 * 8)
    assert (cache.lengths.dtype, cache.lengths.tolist()) == (np.int32, [0, 0, 0])
    assert (cache.temperatures.dtype, cache.temperatures.tolist()) == (np.float32, [1, 1, 1])


# === Rows ===


def test_rolling_back() -> None:
    cache = make_cache(HostMemory(), batch=2)
    cache.lengths[:] = [5, 3]
    cache.roll_back(np.array([4, 3], np.int32))
    assert cache.lengths.tolist() == [4, 3]
    with pytest.raises(ValueError, match=r"cannot roll rows of \[4 3\] tokens back to \[4 4\]"):
        cache.roll_back(np.array([4, 4], np.int32))


@pytest.mark.parametrize(
    ("rows", "targets", "first"),
    [
        ([0], [3], 0),
        ([0, 1], [1, 0], 0),
        ([0, 1, 2, 3], [1, 2, 3, 0], 2),
        ([2, 2, 2], [0, 1, 3], 4),
        ([1, 1], [1, 0], 0),
        ([3, 0], [0, 1], 1),
        ([0, 1, 2, 3], [0, 1, 2, 3], 0),
        ([0], [1], 7),
        ([], [], 0),
    ],
)
def test_rows_of_one_cache(rows: list[int], targets: list[int], first: int) -> None:
    memory = SmallMemory()
    cache = make_cache(memory, batch=4)
    cache.lengths[:] = [3, 7, 5, 1]
    before, lengths, allocated = read(memory, cache), cache.lengths.copy(), len(memory._buffers)
    cache.copy_rows(cache, np.array(rows, int), np.array(targets, int), first)
    last = int(lengths[rows].max()) if rows else 0
    wanted = before.copy()
    wanted[:, targets, :, first:last] = before[:, rows, :, first:last]
    assert np.array_equal(read(memory, cache), wanted)
    lengths[targets] = lengths[rows]
    assert cache.lengths.tolist() == lengths.tolist()
    assert len(memory._buffers) == allocated


def test_rows_of_another_cache_of_another_capacity() -> None:
    memory = SmallMemory()
    source, target = make_cache(memory, batch=2, capacity=10), make_cache(memory, 5, 100)
    source.lengths[:] = [9, 4]
    before, given = read(memory, target), read(memory, source)
    target.copy_rows(source, np.array([1, 0, 1]), np.array([4, 1, 0]))
    wanted = before.copy()
    wanted[:, [4, 1, 0], :, :9] = given[:, [1, 0, 1], :, :9]
    assert np.array_equal(read(memory, target), wanted)
    assert target.lengths.tolist() == [4, 9, 0, 0, 4]
    assert np.array_equal(read(memory, source), given)
    narrow = make_cache(memory, batch=1, capacity=8)
    with pytest.raises(ValueError, match="a row of 9 tokens has no room in a cache of 8"):
        narrow.copy_rows(source, np.array([0]), np.array([0]))
    assert narrow.lengths.tolist() == [0]


@pytest.mark.parametrize("clean", [False, True])
def test_a_released_row_is_empty(clean: bool) -> None:
    """What may be no number goes; anything else may stay until it is written over."""
    memory = SmallMemory()
    cache = make_cache(memory, batch=4)
    cache.lengths[:] = [3, 7, 5, 1]
    wanted = read(memory, cache)
    cache.release(2, clean=clean)
    assert cache.lengths.tolist() == [3, 7, 0, 1]
    if clean:
        wanted[:, 2] = 0
    assert np.array_equal(read(memory, cache), wanted)


def test_copied_rows_go_on_as_their_source(device_decoder: DeviceDecoder) -> None:
    rows = random_rows([6, 3])
    small, large = device_decoder.new_cache(2, 10), device_decoder.new_cache(3, 100)
    append(device_decoder, small, rows)
    large.copy_rows(small, np.array([1, 0, 0]), np.array([0, 1, 2]))
    wanted = append(device_decoder, small, [[9], [8]])
    found = append(device_decoder, large, [[8], [9], [9]])
    assert np.abs(found - wanted[[1, 0, 0]]).max() <= 0.01
