"""Reading safetensors files: values, rows, and files that are not valid."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from exporter.checkpoints.safetensors_file import SafetensorsReader
from exporter.errors import CheckpointError

VALUES = np.arange(-6, 6, dtype=np.float32).reshape(4, 3) / 4


def write_raw(path, header, data=b"", header_size=None):
    """A safetensors file of any header, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if header_size is None else header_size
    path.write_bytes(struct.pack("<Q", size) + text + data)
    return path


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_safetensors_library_writes(tmp_path):
    tensors = {
        "single": VALUES,
        "half": VALUES.astype(np.float16),
        "double": VALUES.astype(np.float64),
        "row": VALUES[0],
        "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    }
    save_file(tensors, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    reader = SafetensorsReader(tmp_path / "model.safetensors")
    assert reader.shapes == {name: value.shape for name, value in tensors.items()}
    for name, value in tensors.items():
        found = reader.read(name)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)
    reader.close()


def test_reads_bfloat16(tmp_path):
    bits = VALUES.astype(ml_dtypes.bfloat16)
    data = bits.tobytes()
    path = write_raw(tmp_path / "b", {"w": entry("BF16", [4, 3], 0, len(data))}, data)
    found = SafetensorsReader(path).read("w")
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), VALUES)  # quarters are exact in bfloat16


def test_reads_tensors_that_are_not_aligned(tmp_path):
    half, single = VALUES[0].astype(np.float16), VALUES
    data = half.tobytes() + single.tobytes()
    header = {"h": entry("F16", [3], 0, 6), "s": entry("F32", [4, 3], 6, 54)}
    text = json.dumps(header).encode()
    text += b" " * (7 - len(text) % 8)  # an odd place for the data to begin
    reader = SafetensorsReader(write_raw(tmp_path / "u", text, data))
    np.testing.assert_array_equal(reader.read("h"), half)
    np.testing.assert_array_equal(reader.read("s"), single)


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 3), (3, None), (2, 2), (0, None)])
def test_reads_rows_only(tmp_path, start, stop):
    save_file({"w": VALUES}, str(tmp_path / "s"))
    rows = SafetensorsReader(tmp_path / "s").read("w", start, stop)
    np.testing.assert_array_equal(rows, VALUES[start:stop])


def test_every_truncation_of_a_safetensors_file_is_an_error(tmp_path):
    save_file({"a": VALUES, "b": VALUES[0]}, str(tmp_path / "whole"))
    whole = (tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated") as raised:
            SafetensorsReader(cut)
        assert str(cut) in str(raised.value)
    cut.write_bytes(whole)
    np.testing.assert_array_equal(SafetensorsReader(cut).read("a"), VALUES)


@pytest.mark.parametrize(("kept", "values"), [(1, 11), (4, 11), (5, 10), (48, 0)])
def test_a_file_that_is_cut_while_it_is_open_is_an_error(tmp_path, kept, values):
    save_file({"w": VALUES}, str(tmp_path / "w"))
    whole = (tmp_path / "w").read_bytes()
    reader = SafetensorsReader(tmp_path / "w")
    (tmp_path / "w").write_bytes(whole[:-kept])
    with pytest.raises(CheckpointError) as raised:
        reader.read("w")
    assert str(raised.value) == (
        f"{tmp_path / 'w'} was cut short while it was open: tensor 'w' has {values} of 12 values; "
        "fetch the file again"
    )
    with pytest.raises(CheckpointError, match="was cut short while it was open"):
        reader.read("w", 3)
    (tmp_path / "w").write_bytes(whole)
    np.testing.assert_array_equal(reader.read("w"), VALUES)


def test_a_truncated_tensor_is_named(tmp_path):
    save_file({"w": VALUES}, str(tmp_path / "w"))
    data = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="tensor 'w' ends at byte") as raised:
        SafetensorsReader(tmp_path / "w")
    assert f"of {len(data) - 1}; fetch the file again" in str(raised.value)


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 100_000_001, 50])
def test_an_absurd_header_size_is_an_error(tmp_path, size):
    path = write_raw(tmp_path / "a", b"{}", header_size=size)
    with pytest.raises(
        CheckpointError,
        match=f"declares a header of {size} bytes, of at most 16777216, and has 10 in all",
    ):
        SafetensorsReader(path)


@pytest.mark.parametrize(
    "header",
    [
        b"not JSON",
        b"\xff\xfe\x00",
        b"[]",
        b'"text"',
        b"null",
        b"7",
        b"{",
        b"",
        b"[" * 100_000,  # deeper than a parser goes
        {"w": None},
        {"w": []},
        {"w": {}},
        {"w": {"dtype": "F32", "shape": [1]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": "ab"}},
        {"w": {"dtype": "F32", "shape": 4, "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}},
        {"w": {"dtype": None, "shape": [1], "data_offsets": [0, 4]}},
    ],
    ids=lambda header: repr(header)[:40],
)
def test_a_bad_header_is_an_error(tmp_path, header):
    path = write_raw(tmp_path / "a", header, bytes(64))
    with pytest.raises(CheckpointError, match="has an unreadable header"):
        SafetensorsReader(path)


def test_an_unknown_dtype_is_named_with_the_known_ones(tmp_path):
    path = write_raw(tmp_path / "a", {"w": entry("F4", [4], 0, 4)}, bytes(4))
    with pytest.raises(CheckpointError, match=r"dtype 'F4' is not one of \['BF16', 'F16'"):
        SafetensorsReader(path)


@pytest.mark.parametrize(("dtype", "size"), [("I64", 8), ("BOOL", 1), ("U32", 4), ("F8_E4M3", 1)])
def test_tensors_that_are_no_weights_may_be_in_a_file_and_are_not_read(tmp_path, dtype, size):
    entries = {"n": entry(dtype, [2, 3], 0, 6 * size), "w": entry("F32", [1], 6 * size, 6 * size + 4)}
    reader = SafetensorsReader(write_raw(tmp_path / "a", entries, bytes(6 * size + 4)))
    assert reader.shapes == {"n": (2, 3), "w": (1,)}
    assert reader.read("w") == 0
    with pytest.raises(CheckpointError, match=rf"tensor 'n': dtype '{dtype}' is not one of"):
        reader.read("n")
    with pytest.raises(CheckpointError, match=f"takes {6 * size} bytes, but the header gives it 3"):
        SafetensorsReader(write_raw(tmp_path / "b", {"n": entry(dtype, [2, 3], 0, 3)}, bytes(6 * size)))


@pytest.mark.parametrize(
    "value",
    [
        entry("F32", [4, 3], 0, 47),  # one byte too few
        entry("F32", [4, 3], 0, 49),
        entry("F16", [4, 3], 0, 48),  # as many as float32 would take
        entry("F32", [4, 3], -4, 44),  # before the data
        entry("F32", [4, 3], 48, 0),  # ends before it begins
        entry("F32", [-4, -3], 0, 48),
        entry("F32", [4, -3], 48, 0),
        entry("F32", [2**40, 2**40], 0, 48),  # more than 64 bits can count
    ],
    ids=str,
)
def test_offsets_that_do_not_fit_the_shape_are_an_error(tmp_path, value):
    path = write_raw(tmp_path / "a", {"w": value}, bytes(64))
    with pytest.raises(CheckpointError, match="'w'"):
        SafetensorsReader(path)


def test_overlapping_tensors_are_an_error(tmp_path):
    header = {"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 8, 24)}
    path = write_raw(tmp_path / "a", header, bytes(24))
    with pytest.raises(CheckpointError, match="overlap"):
        SafetensorsReader(path)
