"""The buffers of caches on their ways between calls, threads and processes."""

from __future__ import annotations

import gc
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Generator
from runtime.bundle import Bundle
from runtime.errors import DeviceMemoryError
from runtime.gpu import buffers as device_buffers
from runtime.gpu.buffers import MOST_IDLE, BufferPool, CacheShape, ScratchBuffer
from runtime.gpu.memory import HostMemory
from runtime.gpu.session import DeviceDecoder
from tests.runtime.gpu.test_device_cache import CONFIG, SmallMemory, make_buffers, make_cache

# === Memory ===


@pytest.mark.parametrize("allowed", range(4))
def test_an_allocation_that_fails_halfway_leaves_nothing(allowed: int) -> None:
    class Failing(SmallMemory):
        def allocate(self, nbytes: int) -> int:
            if self.allocations == allowed:
                raise DeviceMemoryError("no room", nbytes, 0)
            return super().allocate(nbytes)

    memory = Failing()
    with pytest.raises(DeviceMemoryError) as raised:
        make_buffers(memory)
    assert raised.value.__traceback__ is not None  # which holds the object that was being made
    assert memory.allocations == allowed
    assert memory._buffers == {}


def test_staging_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SmallMemory()

    def fail(nbytes: int) -> Any:
        if memory.allocations == 4:
            raise DeviceMemoryError("what this machine can page-lock", nbytes, None)
        return HostMemory.staging(memory, nbytes)

    monkeypatch.setattr(memory, "staging", fail)
    with pytest.raises(DeviceMemoryError, match="page-lock") as raised:
        make_buffers(memory)
    assert raised.value.needed > 0
    assert memory._buffers == {}


def test_scratch_that_had_no_room_to_grow_is_made_anew() -> None:
    memory = SmallMemory(room=4096)
    scratch = ScratchBuffer(memory)
    scratch.of_size(2000)
    with pytest.raises(DeviceMemoryError):
        scratch.of_size(5000)
    address = scratch.of_size(1000)
    memory.write(address, np.ones(1000, np.uint8))
    assert scratch.of_size(500) == address
    assert memory.allocations == 2


def test_buffers_are_freed_once() -> None:
    memory = SmallMemory()
    buffers = make_buffers(memory)
    addresses = buffers.addresses
    buffers.free()
    buffers.free()
    del buffers
    assert sorted(memory.frees) == sorted(addresses)


def test_a_cache_that_is_gone_leaves_its_buffers_to_the_next() -> None:
    memory, pool = SmallMemory(), BufferPool()
    cache = make_cache(memory, pool=pool)
    buffers = cache.buffers
    assert pool.take(buffers.shape) is None
    assert pool.idle_bytes == 0
    del cache
    assert pool.idle_bytes == buffers.shape.nbytes
    assert pool.take(CacheShape(CONFIG, "float16", 3, 10)) is None
    assert pool.take(CacheShape(CONFIG, "float16", 2, 64)) is None
    assert pool.take(CacheShape(CONFIG, "float16", 2, 63)) is buffers  # as many slots
    assert pool.take(buffers.shape) is None
    assert pool.idle_bytes == 0
    assert memory.frees == []


def test_the_pool_keeps_the_newest() -> None:
    memory, pool = SmallMemory(), BufferPool()
    made = [make_buffers(memory, batch) for batch in range(1, MOST_IDLE + 3)]
    for buffers in made:
        pool.give_back(buffers)
    assert sorted(memory.frees) == sorted([*made[0].addresses, *made[1].addresses])
    assert pool.idle_bytes == sum(buffers.shape.nbytes for buffers in made[2:])
    assert pool.free_one()
    assert set(memory.frees[8:]) == set(made[2].addresses)
    while pool.free_one():
        pass
    assert not pool.free_one()
    assert memory._buffers == {}


def test_of_equal_buffers_the_newest_is_taken() -> None:
    memory, pool = SmallMemory(), BufferPool()
    made = [make_buffers(memory) for _ in range(3)]
    for buffers in made:
        pool.give_back(buffers)
    assert [pool.take(made[0].shape) for _ in range(4)] == [made[2], made[1], made[0], None]


def test_giving_back_waits_for_nobody() -> None:
    """The garbage collector may do it in a thread that is in the pool already."""
    memory, pool = SmallMemory(), BufferPool()
    made = [make_buffers(memory, batch) for batch in range(1, MOST_IDLE + 2)]
    with pool._lock:
        for buffers in made:
            pool.give_back(buffers)
    assert memory.frees == []
    assert pool.take(made[3].shape) is made[3]
    pool.give_back(made[3])
    assert sorted(memory.frees) == sorted(made[0].addresses)
    with memory._lock:  # likewise in the memory
        made[1].free()
    assert len(memory.frees) == 8


def test_threads_share_a_pool() -> None:
    memory, pool, taken = SmallMemory(), BufferPool(), set()
    lock, failures = threading.Lock(), []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(60):
            batch = int(generator.integers(1, 4))
            buffers = pool.take(CacheShape(CONFIG, "float16", batch, 10)) or make_buffers(memory, batch)
            with lock:
                if buffers in taken or buffers.shape.batch != batch:
                    failures.append(buffers)
                taken.add(buffers)
            time.sleep(0)
            with lock:
                taken.remove(buffers)
            pool.give_back(buffers)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    while pool.free_one():
        pass
    assert memory._buffers == {}


# === A decoder's buffers ===


@pytest.fixture
def memory(device_decoder: DeviceDecoder) -> Iterator[SmallMemory]:
    """The decoder's own."""
    small = SmallMemory()
    device_decoder._memory = small
    yield small
    gc.collect()


def test_calls_reuse_buffers_and_graphs(device_decoder: DeviceDecoder, memory: SmallMemory) -> None:
    seen = set()
    for capacity in (10, 20, 63, 40):
        cache = device_decoder.new_cache(2, capacity)
        step = device_decoder._decode_step(cache.buffers, 2)
        seen.add((step.graph_id, cache.buffers.addresses, id(step.binding)))
        del cache, step
    assert len(seen) == 1
    caches = [device_decoder.new_cache(2, 10) for _ in range(2)]
    caches += [device_decoder.new_cache(1, 10), device_decoder.new_cache(2, 64)]
    ids = [device_decoder._decode_step(cache.buffers, cache.batch).graph_id for cache in caches]
    ids += [device_decoder._decode_step(cache.buffers, 1).graph_id for cache in caches]
    assert sorted(set(ids)) == [1, 2, 3, 4, 5, 6, 7]
    assert ids[2] == ids[6]  # one row of one


def test_steps_of_fewer_rows_share_their_graphs(
    device_decoder: DeviceDecoder, memory: SmallMemory
) -> None:
    """A graph for each number of rows would fill the device."""
    cache = device_decoder.new_cache(6, 20)
    for rows in range(1, 7):
        device_decoder.append(cache, np.ones((rows, 1), np.int64), np.ones(rows, np.int32))
    assert cache.lengths.tolist() == [6, 5, 4, 3, 2, 1]
    assert sorted(cache.buffers.steps) == [1, 2, 4, 6]
    assert len({step.graph_id for step in cache.buffers.steps.values()}) == 4


def test_buffers_at_the_places_of_former_ones_have_their_graph(
    device_decoder: DeviceDecoder, memory: SmallMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime keeps what it has recorded: a number for each time would fill the device."""
    places = iter([256, 512, 768, 1024] * 2 + [256, 512, 1024, 768])
    monkeypatch.setattr(memory, "allocate", lambda nbytes: next(places))
    monkeypatch.setattr(memory, "free", lambda pointer: None)
    ids = []
    for _ in range(3):
        cache = device_decoder.new_cache(2, 10)
        ids.append(device_decoder._decode_step(cache.buffers, 2).graph_id)
        del cache
        assert device_decoder._pool.free_one()
    assert ids[0] == ids[1] != ids[2]


def test_idle_buffers_are_freed_where_memory_is_short(
    device_decoder: DeviceDecoder, memory: SmallMemory
) -> None:
    for batch in (1, 2, 3):
        device_decoder.new_cache(batch, 10)
    room = memory.available_bytes()
    kept = [device_decoder._pool.take(CacheShape(device_decoder.config, "float16", 1, 10))]
    memory.room -= room  # nothing is free
    assert device_decoder.cache_demand(3, 10).available_bytes == device_decoder._pool.idle_bytes > 0
    cache = device_decoder.new_cache(2, 100)  # of more slots: those of two and of three rows go
    assert cache.buffers.shape.slots == 128
    assert device_decoder._pool.idle_bytes == 0
    with pytest.raises(DeviceMemoryError, match="no room for"):
        device_decoder.new_cache(2, 100)
    assert len(memory._buffers) == 8
    del cache, kept
    device_decoder.new_cache(2, 100)


def test_a_generator_that_is_gone_leaves_nothing(
    device_decoder: DeviceDecoder, memory: SmallMemory, cuda_bundle: Bundle, request: Any
) -> None:
    """Also buffers of a cache that lived longer than it."""
    sessions, config = device_decoder._sessions, device_decoder.config
    decoder = DeviceDecoder(cuda_bundle.manifest, sessions, memory, cuda_graphs=False)
    generator = Generator(decoder, cuda_bundle.tokenizer, "beam")
    generator.generate(["ab", "The quick"], max_length=20)
    assert len(memory._buffers) == 5  # those of the cache, and what runs share
    cache = decoder.new_cache(1, 10)
    del generator, decoder
    gc.collect()
    assert len(memory._buffers) == 8
    del cache
    assert memory._buffers == {}
    assert config.num_layers == 2


# === Processes ===

FORKING = """\
import os, sys, threading
from runtime import Generator
generator = Generator.from_bundle(sys.argv[1], device="cpu", threads=2)
generator.compile("greedy")
stream = generator.stream("ab", max_length=30, stop_token_ids=None)
next(stream), next(stream), next(stream)
ended = threading.Event()
def work():
    while not ended.is_set():
        generator.generate(["ab"] * 8, max_length=40)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        del stream  # its cache goes back to the pool
        os._exit(0)
    print(os.waitpid(child, 0)[1])
ended.set()
for thread in threads:
    thread.join()
print(len(list(stream)) > 0)
"""


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork"
)
def test_a_forked_process_gives_buffers_back(cuda_bundle_folder: Path, repository: Path) -> None:
    """Whatever the threads that it does not have were in the middle of."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING]
    done = subprocess.run(
        [*command, str(cuda_bundle_folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=repository,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0"] * 10 + ["True"]


def test_nothing_is_freed_while_the_process_ends(device_decoder: DeviceDecoder) -> None:
    """A thread may be in a step until the very end."""
    cache = device_decoder.new_cache(1, 10)
    assert not cache.buffers._finalizer.atexit
    assert not cache._finalizer.atexit


def test_the_number_of_idle_buffers_is_bounded(
    device_decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_buffers, "MOST_IDLE", 2)
    caches = [device_decoder.new_cache(batch, 10) for batch in range(1, 6)]
    assert device_decoder._pool.idle_bytes == 0
    sizes = [cache.nbytes for cache in caches]
    while caches:
        del caches[0]
    assert device_decoder._pool.idle_bytes == sum(sizes[3:])
