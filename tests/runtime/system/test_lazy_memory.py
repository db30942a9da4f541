"""Memory that is there where it has been written to, and goes back page by page."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.system import lazy_memory
from runtime.system.available_memory import address_space_is_limited
from runtime.system.lazy_memory import LazyArray

PAGE = mmap.PAGESIZE
MB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are counted under Linux")


def resident_bytes() -> int:
    """Memory that the process has."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * PAGE


@pytest.fixture(params=[True, False], ids=["pages go back", "pages stay"])
def returns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With and without the system's way to take pages back."""
    if not request.param:
        monkeypatch.setattr(lazy_memory, "_RETURNS", False)
    elif sys.platform != "linux":
        pytest.skip("this system takes no pages back")
    return bool(request.param)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (0,), (4, 0, 2), (2, 3000)])
def test_an_array_of_zeros(shape: tuple[int, ...], dtype: str) -> None:
    array = LazyArray(shape, dtype).array
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert not array.any()
    array[...] = 7
    assert (array == 7).all()


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, 8 * PAGE),
        (PAGE, 3 * PAGE),
        (PAGE - 1, 3 * PAGE + 1),
        (PAGE + 1, 3 * PAGE - 1),
        (5, 9),
        (PAGE + 5, PAGE + 9),
        (PAGE - 5, PAGE + 5),
        (PAGE - 5, 2 * PAGE + 5),
        (PAGE, PAGE),
        (7 * PAGE + 3, 8 * PAGE),
    ],
)
def test_some_bytes_are_cleared_and_no_others(start: int, stop: int, returns: bool) -> None:
    memory = LazyArray((8 * PAGE,), "uint8")
    for _ in range(2):
        memory.array[:] = 1
        memory.clear(start, stop)
        assert not memory.array[start:stop].any()
        assert memory.array[:start].all()
        assert memory.array[stop:].all()


def test_what_no_page_is_large_enough_for() -> None:
    with pytest.raises(MemoryError, match=r"the system gave no [0-9,]+ bytes"):
        LazyArray((2**40, 2**40), "float32")


def test_views_outlive_the_object() -> None:
    view = LazyArray((3, 100), "float32").array[1]
    view[:] = 5
    assert view.sum() == 500


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_has_a_copy() -> None:
    """As of all other memory: what a child writes is not its parent's."""
    memory = LazyArray((2 * PAGE,), "uint8")
    memory.array[:] = 1
    child = os.fork()
    if child == 0:
        seen = bool(memory.array.all())
        memory.array[:] = 2
        memory.clear(0, 2 * PAGE)
        os._exit(0 if seen else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (memory.array == 1).all()


# === Pages ===


@linux
def test_pages_come_where_something_is_written() -> None:
    """Single ones: a few numbers in each row of a large array take no row."""
    before = resident_bytes()
    memory = LazyArray((64, MB), "uint8")
    assert resident_bytes() - before < 4 * MB
    memory.array[:, 0] = 1
    assert resident_bytes() - before < 8 * MB  # 64 pages
    memory.array[:32] = 1
    assert resident_bytes() - before > 28 * MB
    assert memory.array.sum() == 32 * MB + 32


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"),
    reason="needs a flag of Linux",
)
def test_more_than_the_machine_has() -> None:
    """Rows to spare of a large model may be so many."""
    if address_space_is_limited():
        pytest.skip("here memory counts before it is used")
    memory = LazyArray((2**42,), "uint8")
    memory.array[:: 2**40] = 1
    assert memory.array[2**40 : 2**40 + 2].tolist() == [1, 0]


@linux
def test_pages_of_cleared_bytes_go_back() -> None:
    memory = LazyArray((64, MB), "uint8")
    memory.array[...] = 1
    before = resident_bytes()
    memory.clear(0, 48 * MB)
    assert before - resident_bytes() > 40 * MB
    assert memory.array.sum() == 16 * MB
    memory.array[:8] = 2  # and come again
    assert memory.array.sum() == 32 * MB


@linux
def test_all_pages_go_back_with_the_array() -> None:
    memory = LazyArray((64, MB), "uint8")
    memory.array[...] = 1
    view = memory.array[3]
    before = resident_bytes()
    del memory
    assert before - resident_bytes() < 4 * MB
    assert view.all()
    del view
    assert before - resident_bytes() > 56 * MB
