"""Buffers on a device: the same on the host, on a libcudart compiled for tests, and on a GPU."""

from __future__ import annotations

import ctypes
import gc
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runtime.errors import DeviceMemoryError
from runtime.gpu.cuda_library import CudaError, CudaLibrary
from runtime.gpu.memory import CudaMemory, DeviceMemory, HostMemory
from tests.runtime.gpu.stub_cuda import MEMORY, StubCuda

STRIDE_ERROR = "blocks of 8 bytes cannot be .* bytes apart"


@pytest.fixture(params=["host", "stub", pytest.param("gpu", marks=pytest.mark.gpu)])
def memory(request: pytest.FixtureRequest) -> DeviceMemory:
    if request.param == "host":
        return HostMemory()
    if request.param == "stub":
        return CudaMemory(CudaLibrary(request.getfixturevalue("stub_cuda").path), 0)
    from runtime.gpu.requirements import open_cuda_library

    return CudaMemory(open_cuda_library(), 0)


@pytest.fixture
def cuda(stub_cuda: StubCuda) -> CudaMemory:
    """On the stub, where a test can see what arrived."""
    return CudaMemory(CudaLibrary(stub_cuda.path), 0)


@pytest.fixture
def pointer(memory: DeviceMemory) -> Iterator[int]:
    """A buffer of 4,096 bytes."""
    pointer = memory.allocate(4096)
    yield pointer
    memory.free(pointer)


def read(memory: DeviceMemory, pointer: int, nbytes: int) -> bytes:
    out = np.full(nbytes, 0xEE, np.uint8)
    memory.read(pointer, out)
    return out.tobytes()


# === On every device ===


def test_new_buffers_are_zeros_and_apart(memory: DeviceMemory) -> None:
    pointers = [memory.allocate(n) for n in (1, 1000, 256, 7)]
    assert [p % 256 for p in pointers] == [0] * 4
    for number, pointer in enumerate(pointers, start=1):
        size = (1, 1000, 256, 7)[number - 1]
        assert read(memory, pointer, size) == bytes(size)
        memory.write(pointer, np.full(size, number, np.uint8))
    assert [read(memory, p, 1) for p in pointers] == [b"\1", b"\2", b"\3", b"\4"]
    for pointer in pointers:
        memory.free(pointer)


@pytest.mark.parametrize("dtype", ["int64", "float32", "float16", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0), (2, 3, 4)])
def test_arrays_come_back(
    memory: DeviceMemory, pointer: int, dtype: str, shape: tuple[int, ...]
) -> None:
    data = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    memory.write(pointer + 64, data)
    out = np.empty(shape, dtype)
    memory.read(pointer + 64, out)
    np.testing.assert_array_equal(out, data)
    assert read(memory, pointer, 64) == bytes(64)
    assert read(memory, pointer + 64 + data.nbytes, 64) == bytes(64)


def test_staging_comes_and_goes(memory: DeviceMemory, pointer: int) -> None:
    staging = memory.staging(48)
    assert (staging.shape, staging.dtype, staging.any()) == ((48,), np.uint8, False)
    lengths, weights = staging[:16].view(np.int64), staging[16:].view(np.float32)
    lengths[:] = 5, -7
    weights[:] = np.arange(8) / 4
    memory.write(pointer, staging)
    back = memory.staging(48)
    memory.read(pointer, back)
    assert back.tobytes() == lengths.tobytes() + weights.tobytes()


@pytest.mark.parametrize(
    ("width", "count", "source_stride", "target_stride"),
    [(8, 5, 8, 8), (8, 5, 16, 40), (3, 7, 5, 3), (100, 1, 100, 300), (8, 0, 8, 8), (0, 4, 8, 8)],
)
def test_copying_blocks(
    memory: DeviceMemory, pointer: int, width: int, count: int, source_stride: int, target_stride: int
) -> None:
    before = np.random.default_rng(2).integers(0, 256, 4096).astype(np.uint8)
    memory.write(pointer, before)
    memory.copy_blocks(pointer + 2048, target_stride, pointer + 10, source_stride, width, count)
    wanted = before.copy()
    for i in range(count):
        source, target = 10 + i * source_stride, 2048 + i * target_stride
        wanted[target : target + width] = before[source : source + width]
    assert read(memory, pointer, 4096) == wanted.tobytes()


def test_copying_from_one_buffer_to_another(memory: DeviceMemory, pointer: int) -> None:
    other = memory.allocate(32)
    memory.write(pointer, np.arange(64, dtype=np.uint8))
    memory.copy_blocks(other, 4, pointer, 8, 4, 8)
    wanted = [8 * i + j for i in range(8) for j in range(4)]
    assert list(read(memory, other, 32)) == wanted
    memory.free(other)


@pytest.mark.parametrize("strides", [(7, 8), (8, 7), (0, 8), (-8, 8)])
def test_blocks_that_overlap_each_other(
    memory: DeviceMemory, pointer: int, strides: tuple[int, int]
) -> None:
    target_stride, source_stride = strides
    with pytest.raises(ValueError, match=STRIDE_ERROR):
        memory.copy_blocks(pointer + 2048, target_stride, pointer, source_stride, 8, 2)


@pytest.mark.parametrize("nbytes", [0, -1])
def test_sizes_below_one(memory: DeviceMemory, nbytes: int) -> None:
    for take in (memory.allocate, memory.staging):
        with pytest.raises(ValueError, match=f"a buffer has at least 1 byte, got {nbytes}"):
            take(nbytes)


def test_arrays_with_gaps(memory: DeviceMemory, pointer: int) -> None:
    array = np.zeros((4, 4), np.float32)[:, ::2]
    for copy in (memory.write, memory.read):
        with pytest.raises(ValueError, match=r"strides \(16, 8\) .* is not C-contiguous"):
            copy(pointer, array)


@pytest.mark.parametrize("take", ["allocate", "staging"])
def test_what_does_not_fit(memory: DeviceMemory, take: str) -> None:
    nbytes = 2**60
    with pytest.raises(DeviceMemoryError, match=r"a buffer of 1,152,922 TB does not fit in .*free"):
        getattr(memory, take)(nbytes)


def test_names(stub_cuda: StubCuda) -> None:
    stub_cuda.reset(devices=2)
    library = CudaLibrary(stub_cuda.path)
    found = [
        (m.device_type, m.device_id, m.name)
        for m in (HostMemory(), CudaMemory(library, 0), CudaMemory(library, 1))
    ]
    assert found == [("cpu", 0, "cpu"), ("cuda", 0, "cuda:0"), ("cuda", 1, "cuda:1")]


# === On the host ===


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 4), (4093, 4), (4096, 1), (10**9, 1)])
def test_addresses_outside_are_found_on_the_host(offset: int, nbytes: int) -> None:
    memory = HostMemory()
    pointer = memory.allocate(4096)
    array = np.zeros(nbytes, np.uint8)
    for copy in (memory.write, memory.read):
        with pytest.raises(ValueError, match="are not within one buffer"):
            copy(pointer + offset, array)
    with pytest.raises(ValueError, match="are not within one buffer"):
        memory.copy_blocks(pointer + offset, nbytes, pointer, nbytes, nbytes, 1)


def test_a_freed_buffer_is_found_on_the_host() -> None:
    memory = HostMemory()
    kept, pointer = memory.allocate(8), memory.allocate(8)
    memory.free(pointer)
    with pytest.raises(ValueError, match="are not within one buffer"):
        memory.read(pointer, np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match=f"no buffer starts at {pointer:#x}"):
        memory.free(pointer)
    assert read(memory, kept, 8) == bytes(8)


# === On CUDA ===


def test_everything_has_arrived_when_a_call_returns(stub_cuda: StubCuda, cuda: CudaMemory) -> None:
    """ONNX Runtime's stream does not wait for the default one, which the stub lets lag behind."""
    pointer, staging = cuda.allocate(8), cuda.staging(8)
    assert ctypes.string_at(pointer, 8) == bytes(8)
    cuda.write(pointer, np.frombuffer(b"pageable", np.uint8))
    assert ctypes.string_at(pointer, 8) == b"pageable"
    staging[:] = np.frombuffer(b"pagelock", np.uint8)
    cuda.write(pointer, staging)
    assert ctypes.string_at(pointer, 8) == b"pagelock"
    cuda.copy_blocks(pointer + 4, 4, pointer, 4, 4, 1)
    assert ctypes.string_at(pointer, 8) == b"pagepage"
    cuda.free(pointer)


def test_available_bytes(stub_cuda: StubCuda, cuda: CudaMemory) -> None:
    pointer = cuda.allocate(1000)
    assert cuda.available_bytes() == MEMORY - 1000
    cuda.free(pointer)
    assert cuda.available_bytes() == MEMORY


def test_a_buffer_larger_than_what_is_free(stub_cuda: StubCuda, cuda: CudaMemory) -> None:
    pointer = cuda.allocate(MEMORY - 10_000)
    with pytest.raises(DeviceMemoryError) as raised:
        cuda.allocate(20_000)
    assert str(raised.value) == (
        "a buffer of 20 KB does not fit in the memory of cuda:0, of which 10 KB are free; ask for "
        "fewer rows or a smaller max_length, or end what else takes memory there"
    )
    assert (raised.value.needed, raised.value.available) == (20_000, 10_000)
    assert stub_cuda.ask("last_error") == 0
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (type(copy), str(copy), vars(copy)) == (
        DeviceMemoryError,
        str(raised.value),
        vars(raised.value),
    )
    cuda.free(pointer)


def test_page_locked_memory_lives_as_long_as_its_arrays(stub_cuda: StubCuda, cuda: CudaMemory) -> None:
    before = stub_cuda.ask("locked")
    staging = cuda.staging(64)
    view: Any = staging[8:].view(np.int64).reshape(7, 1)[2:]
    assert stub_cuda.ask("locked") == before + 1
    del staging
    gc.collect()
    view[:] = 3
    assert stub_cuda.ask("locked") == before + 1
    del view
    gc.collect()
    assert stub_cuda.ask("locked") == before


@pytest.mark.parametrize("code", [3, 4])
def test_giving_back_after_cuda_is_gone(stub_cuda: StubCuda, cuda: CudaMemory, code: int) -> None:
    """In a forked child, and while the process ends."""
    pointer, staging = cuda.allocate(8), cuda.staging(8)
    stub_cuda.fail("cudaFree", code)
    cuda.free(pointer)
    stub_cuda.fail("cudaFreeHost", code)
    del staging
    gc.collect()
    stub_cuda.fail("cudaFree", 1)
    with pytest.raises(CudaError, match="cudaFree failed with cudaErrorInvalidValue"):
        cuda.free(pointer)
    stub_cuda.fail("", 0)
    cuda.free(pointer)


@pytest.mark.parametrize("take", ["allocate", "staging"])
def test_other_errors_are_cudas(stub_cuda: StubCuda, cuda: CudaMemory, take: str) -> None:
    stub_cuda.fail({"allocate": "cudaMalloc", "staging": "cudaMallocHost"}[take], 3)
    with pytest.raises(CudaError, match=r"cudaErrorInitializationError \(3\)"):
        getattr(cuda, take)(8)


def test_the_device_is_set_in_every_thread(stub_cuda: StubCuda) -> None:
    stub_cuda.reset(devices=3)
    memory = CudaMemory(CudaLibrary(stub_cuda.path), 2)
    pointer = memory.allocate(8)
    found = []

    def use() -> None:
        found.append(stub_cuda.ask("device"))
        memory.write(pointer, np.zeros(8, np.uint8))
        found.append(stub_cuda.ask("device"))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [0, 2]
    memory.free(pointer)


def test_a_device_alone_is_not_set(stub_cuda: StubCuda, cuda: CudaMemory) -> None:
    """It is every thread's, and a step saves the call."""
    pointer = cuda.allocate(8)
    cuda.write(pointer, np.zeros(8, np.uint8))
    cuda.free(pointer)
    assert stub_cuda.ask("selections") == 0
