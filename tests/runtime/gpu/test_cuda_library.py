"""The calls of CUDA's runtime library, on one that was compiled for tests."""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Callable

import pytest

from runtime.gpu.cuda_library import CudaError, CudaLibrary
from tests.runtime.gpu.stub_cuda import MEMORY, StubCuda

GIB = 2**30


@pytest.fixture
def library(stub_cuda: StubCuda) -> CudaLibrary:
    return CudaLibrary(stub_cuda.path)


def test_versions(stub_cuda: StubCuda, library: CudaLibrary) -> None:
    assert (library.runtime_version(), library.driver_version()) == ("13.0", "13.0")
    stub_cuda.reset(driver=12040, runtime=13110)
    assert (library.runtime_version(), library.driver_version()) == ("13.11", "12.4")
    stub_cuda.reset(driver=0)
    assert library.driver_version() == "0.0"


def test_devices(stub_cuda: StubCuda, library: CudaLibrary) -> None:
    stub_cuda.reset(devices=3, memory=80 * GIB)
    assert library.device_count() == 3
    assert [library.device_name(i) for i in range(3)] == ["Stub GPU 0", "Stub GPU 1", "Stub GPU 2"]
    assert library.total_memory(2) == 80 * GIB
    assert library.memory_info() == (80 * GIB, 80 * GIB)
    library.set_device(2)
    assert stub_cuda.ask("device") == 2


def test_memory_is_taken_and_given_back(stub_cuda: StubCuda, library: CudaLibrary) -> None:
    # Fixtures of the whole run may hold buffers of the same library.
    free, held = library.memory_info()[0], stub_cuda.ask("locked")
    one, other = library.malloc(1000), library.malloc(24)
    assert one % 256 == other % 256 == 0
    assert library.memory_info() == (free - 1024, MEMORY)
    library.free(one)
    assert library.memory_info() == (free - 24, MEMORY)
    library.free(other)
    locked = library.malloc_host(100)
    assert stub_cuda.ask("locked") == held + 1
    library.free_host(locked)
    assert (stub_cuda.ask("locked"), library.memory_info()[0]) == (held, free)


def test_copies(library: CudaLibrary) -> None:
    pointer = library.malloc(16)
    source, target = ctypes.create_string_buffer(b"abcdefgh", 8), ctypes.create_string_buffer(16)
    library.fill(pointer, 0x2A, 16)
    library.copy_to_device(pointer + 4, ctypes.addressof(source), 8)
    library.copy_to_host(ctypes.addressof(target), pointer, 16)
    assert target.raw == b"****abcdefgh****"
    library.copy_blocks(pointer, 6, pointer + 4, 3, 2, 3)
    library.copy_to_host(ctypes.addressof(target), pointer, 16)
    assert target.raw == b"ab**abdeefghgh**"
    library.free(pointer)


def test_work_is_done_when_it_is_waited_for(stub_cuda: StubCuda, library: CudaLibrary) -> None:
    """As CUDA documents it: fills and copies within the device do not wait."""
    pointer = library.malloc(4)
    library.fill(pointer, 0x2A, 4)
    assert ctypes.string_at(pointer, 4) == b"\xab" * 4
    library.synchronize()
    assert ctypes.string_at(pointer, 4) == b"****"
    assert stub_cuda.ask("waits") == 1
    library.free(pointer)


CALLS: dict[str, Callable[[CudaLibrary], object]] = {
    "cudaGetDeviceCount": lambda library: library.device_count(),
    "cudaGetDeviceProperties": lambda library: library.device_name(0),
    "cudaSetDevice": lambda library: library.set_device(0),
    "cudaMemGetInfo": lambda library: library.memory_info(),
    "cudaMalloc": lambda library: library.malloc(8),
    "cudaFree": lambda library: library.free(0),
    "cudaMallocHost": lambda library: library.malloc_host(8),
    "cudaFreeHost": lambda library: library.free_host(0),
    "cudaMemset": lambda library: library.fill(0, 0, 0),
    "cudaMemcpy": lambda library: library.copy_to_host(0, 0, 0),
    "cudaMemcpy2D": lambda library: library.copy_blocks(0, 0, 0, 0, 0, 0),
    "cudaStreamSynchronize": lambda library: library.synchronize(),
}


@pytest.mark.parametrize("function", CALLS)
def test_errors(stub_cuda: StubCuda, library: CudaLibrary, function: str) -> None:
    stub_cuda.fail(function, 100)
    with pytest.raises(CudaError) as raised:
        CALLS[function](library)
    error = raised.value
    text = "no CUDA-capable device is detected"
    assert str(error) == f"{function} failed with cudaErrorNoDevice (100): {text}"
    assert (error.function, error.code, error.name, error.text) == (
        function,
        100,
        "cudaErrorNoDevice",
        text,
    )
    # Who asks CUDA for the last error next does not get this one.
    assert stub_cuda.ask("last_error") == 0


def test_sizes_are_64_bits_wide(stub_cuda: StubCuda, library: CudaLibrary) -> None:
    with pytest.raises(CudaError, match=r"cudaMalloc failed with cudaErrorMemoryAllocation \(2\)"):
        library.malloc(2**32 + 1)
    assert stub_cuda.ask("used") == 0


def test_an_error_goes_to_other_processes() -> None:
    error = CudaError("cudaMalloc", 2, "cudaErrorMemoryAllocation", "out of memory")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_a_library_that_is_not_there() -> None:
    with pytest.raises(OSError, match=r"libcudart\.so\.99"):
        CudaLibrary("libcudart.so.99")
