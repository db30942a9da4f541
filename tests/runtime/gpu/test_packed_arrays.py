"""Arrays beside each other in one buffer, on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.gpu.memory import HostMemory
from runtime.gpu.packed_arrays import ArrayLayout, PackedArrays

ARRAYS = [
    ("ids", np.int64, (3, 5)),
    ("empty", np.float32, (0, 4)),
    ("lengths", np.int32, (16,)),
    ("one", np.float32, (3, 1)),
]


def test_every_array_begins_at_a_multiple_of_64() -> None:
    layout = ArrayLayout(ARRAYS)
    assert layout.offsets == {"ids": 0, "empty": 128, "lengths": 128, "one": 192}
    assert layout.nbytes == 256
    assert (ArrayLayout([]).nbytes, ArrayLayout([]).offsets) == (0, {})


def test_views_share_the_buffer_and_keep_it() -> None:
    layout = ArrayLayout(ARRAYS)
    buffer = np.zeros(layout.nbytes, np.uint8)
    views = layout.views(buffer)
    assert {name: (view.dtype, view.shape) for name, view in views.items()} == {
        name: (np.dtype(dtype), shape) for name, dtype, shape in ARRAYS
    }
    views["lengths"][:] = 7
    assert buffer[128:192].view(np.int32).tolist() == [7] * 16
    assert not buffer[:128].any()
    assert not buffer[192:].any()
    with pytest.raises((TypeError, ValueError)):
        layout.views(buffer[:200])
    del buffer
    assert views["lengths"].tolist() == [7] * 16


def test_one_copy_moves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, layout = HostMemory(), ArrayLayout(ARRAYS)
    pointer = memory.allocate(layout.nbytes)
    first = PackedArrays(memory, layout, pointer)
    second = PackedArrays(memory, layout, pointer, memory.staging(layout.nbytes))
    assert not any(view.any() for view in second.views.values())
    first.views["ids"][:] = np.arange(15).reshape(3, 5)
    first.views["one"][:, 0] = [0.5, 2, 4]
    second.download()
    assert not second.views["ids"].any()
    first.upload()
    second.download()
    assert second.views["ids"].tolist() == np.arange(15).reshape(3, 5).tolist()
    assert second.views["one"].tolist() == [[0.5], [2], [4]]
    assert not second.views["lengths"].any()


def test_addresses_are_those_of_rows() -> None:
    memory, layout = HostMemory(), ArrayLayout(ARRAYS)
    pointer = memory.allocate(layout.nbytes)
    arrays = PackedArrays(memory, layout, pointer)
    assert arrays.address("ids") == pointer
    assert arrays.address("lengths") == pointer + 128
    arrays.views["ids"][2] = [5, 6, 7, 8, 9]
    arrays.upload()
    row = np.empty(5, np.int64)
    memory.read(arrays.address("ids", 2), row)
    assert row.tolist() == [5, 6, 7, 8, 9]
    assert arrays.address("one", 2) == pointer + 192 + 8
