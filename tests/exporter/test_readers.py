"""Readers of safetensors and HDF5 files: values, rows, shards, and files that are not valid."""

from __future__ import annotations

import json
import struct

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from exporter.checkpoints.readers import (
    H5Reader,
    SafetensorsReader,
    ShardedReader,
    open_checkpoint,
)
from exporter.errors import CheckpointError

VALUES = np.arange(-6, 6, dtype=np.float32).reshape(4, 3) / 4
SAFETENSORS = ("model", ".safetensors", "model.safetensors.index.json")
KERAS = ("model.weights", ".h5", "model.weights.json")


def write_raw(path, header, data=b"", header_size=None):
    """A safetensors file of any header, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if header_size is None else header_size
    path.write_bytes(struct.pack("<Q", size) + text + data)
    return path


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# === Safetensors ===


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
    with h5py.File(tmp_path / "h", "w") as file:
        file["layers/w"] = VALUES
    for reader, name in (
        (SafetensorsReader(tmp_path / "s"), "w"),
        (H5Reader(tmp_path / "h"), "layers/w"),
    ):
        np.testing.assert_array_equal(reader.read(name, start, stop), VALUES[start:stop])


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
    with pytest.raises(CheckpointError, match=f"declares a header of {size} bytes and has 10 in all"):
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
    path = write_raw(tmp_path / "a", {"w": entry("F8_E4M3", [4], 0, 4)}, bytes(4))
    with pytest.raises(CheckpointError, match=r"dtype 'F8_E4M3' is not one of \['BF16', 'F16'"):
        SafetensorsReader(path)


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


# === HDF5 ===


def test_reads_float32_and_float16_datasets(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/dense/vars/0"] = VALUES
        file["layers/dense/vars/1"] = VALUES[0].astype(np.float16)
        file["layers/scalar/vars/0"] = np.float32(0.5)
    reader = H5Reader(tmp_path / "w.h5")
    assert reader.shapes == {
        "layers/dense/vars/0": (4, 3),
        "layers/dense/vars/1": (3,),
        "layers/scalar/vars/0": (),
    }
    np.testing.assert_array_equal(reader.read("layers/dense/vars/0"), VALUES)
    half = reader.read("layers/dense/vars/1")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, VALUES[0])
    assert reader.read("layers/scalar/vars/0") == 0.5
    reader.close()


@pytest.mark.parametrize("stored_as", ["V2", "uint16"])
@pytest.mark.parametrize("mark", ["bfloat16", np.bytes_("bfloat16")])
def test_reads_bfloat16_by_the_dtype_attribute(tmp_path, stored_as, mark):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        data = VALUES.astype(ml_dtypes.bfloat16).view(stored_as)
        file.create_dataset("layers/w", data=data).attrs["dtype"] = mark
    reader = H5Reader(tmp_path / "w.h5")
    for found, expected in (
        (reader.read("layers/w"), VALUES),
        (reader.read("layers/w", 1, 3), VALUES[1:3]),
    ):
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found.astype(np.float32), expected)


def test_the_state_of_the_optimizer_is_no_weight(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["optimizer/vars/0"] = VALUES
        file["layers/w"] = VALUES
    assert set(H5Reader(tmp_path / "w.h5").shapes) == {"layers/w"}


def test_every_truncation_of_an_hdf5_file_is_an_error(tmp_path):
    with h5py.File(tmp_path / "whole", "w") as file:
        file["layers/a/vars/0"] = np.ones((20, 10), np.float32)
        file["layers/b/vars/0"] = VALUES
    whole = (tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated or not an HDF5 file") as raised:
            H5Reader(cut)
        assert str(cut) in str(raised.value)


def test_damage_that_shows_only_when_reading_names_the_tensor(tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
        file.create_dataset("layers/w", data=values, chunks=(64, 64), compression="gzip")
        offset = file["layers/w"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = bytes(64)
    path.write_bytes(data)
    reader = H5Reader(path)
    with pytest.raises(CheckpointError, match="truncated at tensor 'layers/w'"):
        reader.read("layers/w")


def test_a_file_of_another_kind_is_no_hdf5_file(tmp_path):
    (tmp_path / "w.h5").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not an HDF5 file"):
        H5Reader(tmp_path / "w.h5")


# === Shards ===


def write_shards(folder, weight_map, files=("one", "two")):
    for i, name in enumerate(files):
        save_file({f"t{i}": VALUES + i}, str(folder / name))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map}), encoding="utf-8"
    )


def test_shards_are_read_as_one(tmp_path):
    write_shards(tmp_path, {"t0": "one", "t1": "two"})
    reader = open_checkpoint(tmp_path, *SAFETENSORS)
    assert isinstance(reader, ShardedReader)
    assert reader.shapes == {"t0": (4, 3), "t1": (4, 3)}
    np.testing.assert_array_equal(reader.read("t0"), VALUES)
    np.testing.assert_array_equal(reader.read("t1", 1, 2), VALUES[1:2] + 1)
    reader.close()


def test_shards_of_keras_may_hold_one_layer_in_two_files(tmp_path):
    for i in range(2):
        with h5py.File(tmp_path / f"model_{i}.weights.h5", "w") as file:
            file[f"layers/dense/vars/{i}"] = VALUES + i
    index = {"weight_map": {"/layers/dense/vars": ["model_0.weights.h5", "model_1.weights.h5"]}}
    (tmp_path / "model.weights.json").write_text(json.dumps(index), encoding="utf-8")
    reader = open_checkpoint(tmp_path, *KERAS)
    assert set(reader.shapes) == {"layers/dense/vars/0", "layers/dense/vars/1"}
    np.testing.assert_array_equal(reader.read("layers/dense/vars/1"), VALUES + 1)


def test_a_single_file_comes_before_an_index(tmp_path):
    write_shards(tmp_path, {"t0": "one", "t1": "two"})
    save_file({"alone": VALUES}, str(tmp_path / "model.safetensors"))
    assert set(open_checkpoint(tmp_path, *SAFETENSORS).shapes) == {"alone"}


def test_missing_shards_are_all_named(tmp_path):
    write_shards(tmp_path, {"t0": "one", "t1": "two", "t2": "three", "t3": "four"})
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(tmp_path, *SAFETENSORS)
    assert "lacks the shards ['four', 'three'] that model.safetensors.index.json lists" in str(
        raised.value
    )


def test_a_truncated_shard_is_an_error(tmp_path):
    write_shards(tmp_path, {"t0": "one", "t1": "two"})
    data = (tmp_path / "two").read_bytes()
    (tmp_path / "two").write_bytes(data[:-5])
    with pytest.raises(CheckpointError, match="two is truncated: tensor 't1'"):
        open_checkpoint(tmp_path, *SAFETENSORS)


@pytest.mark.parametrize(
    "name", ["../x", "/x", "deeper/x", "..", ".", "", "x/", "../folder/one", 5, None, {"a": "one"}]
)
def test_an_index_names_plain_files_only(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"t": VALUES}, str(tmp_path / "x"))  # what the traversal would reach
    write_shards(folder, {"t0": "one", "t1": name}, files=("one",))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(folder, *SAFETENSORS)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 3}'])
def test_a_broken_index_is_an_error(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        open_checkpoint(tmp_path, *SAFETENSORS)


@pytest.mark.parametrize(("stem", "ending", "index"), [SAFETENSORS, KERAS])
def test_no_weights_at_all(tmp_path, stem, ending, index):
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(tmp_path, stem, ending, index)
    assert str(raised.value) == (
        f"{tmp_path} has no weights: expected {stem}{ending}, or {index} with its shards"
    )
