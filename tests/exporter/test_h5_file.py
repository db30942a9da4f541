"""Reading Keras's HDF5 weights files: values, rows, and files that are not valid."""

from __future__ import annotations

import h5py
import ml_dtypes
import numpy as np
import pytest

from exporter.checkpoints.h5_file import H5Reader
from exporter.errors import CheckpointError

VALUES = np.arange(-6, 6, dtype=np.float32).reshape(4, 3) / 4


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


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 3), (3, None), (2, 2), (0, None)])
def test_reads_rows_only(tmp_path, start, stop):
    with h5py.File(tmp_path / "h", "w") as file:
        file["layers/w"] = VALUES
    rows = H5Reader(tmp_path / "h").read("layers/w", start, stop)
    np.testing.assert_array_equal(rows, VALUES[start:stop])


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
            H5Reader(cut, check=lambda path: None)
        assert str(cut) in str(raised.value)
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
    with pytest.raises(CheckpointError, match="truncated at tensor 'layers/w'") as raised:
        H5Reader(path)
    assert str(raised.value).startswith(str(path))


def test_a_file_of_another_kind_is_no_hdf5_file(tmp_path):
    (tmp_path / "w.h5").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not an HDF5 file"):
        H5Reader(tmp_path / "w.h5")
