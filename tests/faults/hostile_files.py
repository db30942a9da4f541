"""Hostile presets: their weight files in safetensors, torch's and HDF5 format."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.exporter.torch_files import (
    state_dict,
    storage,
    tensor,
    text,
    whole,
    write_archive,
)
from tests.faults.good_presets import tensors
from tests.faults.hostile_folders import OUTSIDE, Kind

Maker = Callable[[Path], object]

# === safetensors ===


def _header(edit: Callable[[dict[str, Any]], object]) -> Maker:
    """Edits the header as a dictionary; the values stay."""

    def make(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        edit(header)
        changed = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + size :])

    return make


def _first(**values: Any) -> Maker:
    def edit(header: dict[str, Any]) -> None:
        name = next(name for name in header if name != "__metadata__")
        header[name] |= values

    return _header(edit)


def _raw(data: bytes, size: int = 0) -> Maker:
    def make(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(data)
        os.truncate(path, max(size, len(data)))

    return make


def _raw_header(header: bytes) -> Maker:
    return _raw(struct.pack("<Q", len(header)) + header)


def _nan(value: float) -> Maker:
    def make(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-8:-4] = np.float32(value).tobytes()
        path.write_bytes(data)

    return make


_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
_F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

SAFETENSORS = (
    Kind("header of 2**63 bytes", "safetensors", _raw(struct.pack("<Q", 2**63)),
         "declares a header of 9223372036854775808 bytes"),
    Kind("header of 8 GB in a file that has them", "safetensors",
         _raw(struct.pack("<Q", 2**33), 2**34), "declares a header of 8589934592 bytes, of at most"),
    Kind("header nested 100,000 deep", "safetensors", _raw_header(b"[" * 100_000),
         "unreadable header: it nests too deeply"),
    Kind("header in UTF-16", "safetensors", _raw_header("{}".encode("utf-16")), "unreadable header"),
    Kind("a shape of 100,000 axes", "safetensors", _first(shape=[2**60] * 100_000),
         "a shape must be a list of at most 64 sizes"),
    Kind("a shape of 2**62 times 2**62", "safetensors", _first(shape=[2**62, 2**62]),
         "takes 85070591730234615865843651857942052864 bytes"),
    Kind("a negative size", "safetensors", _first(shape=[-2, -132]), "whole numbers up to 2**62"),
    Kind("a size that is a fraction", "safetensors", _first(shape=[1.5]), "whole numbers up to 2**62"),
    Kind("a place at infinity", "safetensors", _raw_header(b'{"a":{"dtype":"F32","shape":[1],'
         b'"data_offsets":[Infinity,4]}}'), "holds the number Infinity"),
    Kind("a place beyond the file", "safetensors",
         _first(shape=[2**40], data_offsets=[0, 2**42]), "is truncated: tensor"),
    Kind("tensors that overlap", "safetensors", _header(lambda h: h.update(a=_F32, b=_F32)), "overlap"),
    Kind("a tensor twice", "safetensors", _raw_header(b'{"a":{},"a":{}}'), "gives the name 'a' twice"),
    Kind("an unknown dtype", "safetensors", _first(dtype="F4"), "dtype 'F4' is not one of"),
    Kind("100,000 layers too many", "safetensors", _header(lambda h: h.update(
         {f"decoder.layers.{i + 9}.fc1.bias": _EMPTY for i in range(100_000)})),
         "100000 of the "),
    Kind("a NaN among the weights", "safetensors", _nan(np.nan), "NaN or infinite"),
    Kind("an infinity among the weights", "safetensors", _nan(-np.inf), "NaN or infinite"),
)  # fmt: skip

# === torch ===


def _pickle(data: bytes, records: dict[str, bytes] | None = None, **options: Any) -> Maker:
    def make(folder: Path) -> None:
        write_archive(folder / "pytorch_model.bin", data, records, **options)

    return make


def _call(module: str, name: str, argument: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R."


def _patched(old: bytes, new: bytes) -> Maker:
    """Replaces bytes of the whole file, all that there are."""

    def make(folder: Path) -> None:
        path = folder / "pytorch_model.bin"
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))

    return make


def _directory_of(size: int) -> Maker:
    """A zip file whose end says that the directory is as large as the file, which is a hole."""

    def make(folder: Path) -> None:
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0)
        with (folder / "pytorch_model.bin").open("wb") as file:
            file.truncate(size)
            file.seek(0, os.SEEK_END)
            file.write(end)

    return make


def _twice(folder: Path) -> None:
    with zipfile.ZipFile(folder / "pytorch_model.bin", "a") as archive:
        archive.writestr("archive/data/0", b"other values")


_LAUGHS = b"\x80\x02)q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(64)) + b"."
_ONE = {"data/0": bytes(48)}
_TORCH = "pytorch_model.bin"

TORCH = (
    Kind("a pickle that calls os.system", "torch", _pickle(_call("os", "system", text("true"))),
         "asks for os.system"),
    Kind("a pickle that calls eval", "torch", _pickle(_call("builtins", "eval", text("1"))),
         "asks for builtins.eval"),
    Kind("a pickle that loads torch code", "torch",
         _pickle(_call("torch", "load", text("/etc/passwd"))), "asks for torch.load"),
    Kind("a pickle that makes an object", "torch", _pickle(b"\x80\x02(ios\nsystem\n."),
         "asks for os.system"),
    Kind("a memo of 2**31 entries", "torch", _pickle(b"\x80\x02)r\xff\xff\xff\x7f."),
         "not tensors by name"),
    Kind("a string of 2**40 characters", "torch",
         _pickle(b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a."), "has a damaged pickle"),
    Kind("64 tuples of each the last twice", "torch", _pickle(_LAUGHS), "not tensors by name"),
    Kind("such a tuple as a key", "torch",
         _pickle(_LAUGHS[:-1] + b"}h\x00Ns."), "has a key that is a value of type tuple"),
    Kind("300,000 tuples within each other", "torch",
         _pickle(b"\x80\x02)" + b"\x85" * 300_000 + b"."), "not tensors by name"),
    Kind("a dictionary within itself", "torch",
         _pickle(b"\x80\x02}q\x00" + text("a") + b"h\x00s."), "not tensors by name"),
    Kind("a pickle of 8 MB", "torch", _pickle(b"N" * 2**23), "takes 8388608 bytes, at most 1048576"),
    Kind("a storage of 10**18 items", "torch",
         _pickle(state_dict(a=tensor(storage(items=10**18))), _ONE), "but its record holds 48"),
    Kind("a storage by a path", "torch",
         _pickle(state_dict(a=tensor(storage(f"../../{OUTSIDE}/config.json"))), _ONE),
         "that the file does not have"),
    Kind("a tensor of one item 10**12 times", "torch", _pickle(state_dict(
         a=tensor(shape=(10**12,), strides=(0,))), _ONE), "has more values than its storage"),
    Kind("a tensor beyond its storage", "torch", _pickle(state_dict(
         a=tensor(offset=2**60)), _ONE), "of a storage of 12"),
    Kind("sizes of 600 digits", "torch", _pickle(state_dict(
         a=tensor(shape=(2**2000,) * 4, strides=(1,) * 4)), _ONE), "has more values than its storage"),
    Kind("65 axes", "torch", _pickle(state_dict(
         a=tensor(shape=(1,) * 65, strides=(1,) * 65)), _ONE), "with 65 sizes and 65 strides"),
    Kind("members that are compressed zeros", "torch",
         _pickle(state_dict(a=tensor()), {"data/0": bytes(2**24)}, compression=zipfile.ZIP_DEFLATED),
         "is compressed or encrypted"),
    Kind("a member that says it is encrypted", "torch", _patched(b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1"),
         "is compressed or encrypted"),
    Kind("two members of one name", "torch", _twice, "1 repeated names"),
    Kind("a directory of 4 GB", "torch", _directory_of(2**32 - 2),
         "its directory takes 4294967294 bytes"),
    Kind("half a file", "torch",
         lambda folder: os.truncate(folder / _TORCH, (folder / _TORCH).stat().st_size // 2),
         "is truncated or not a file that torch.save wrote"),
)  # fmt: skip

# === HDF5 ===

FIRST = "layers/token_and_position_embedding/token_embedding/vars/0"
SHAPE = (264, 8)


def _h5(write: Callable[[h5py.File], object], **options: Any) -> Maker:
    """All tensors but the first, which `write` puts in its own way."""

    def make(folder: Path) -> None:
        with h5py.File(folder / "model.weights.h5", "w", **options) as file:
            for name, values in tensors("keras").items():
                if name != FIRST:
                    file[name] = values
            write(file)

    return make


def _external(file: h5py.File) -> None:
    place = f"../{OUTSIDE}/pipe"
    file.create_dataset(FIRST, SHAPE, np.float32, external=[(place, 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(SHAPE, np.float32)
    layout[:] = h5py.VirtualSource(f"../{OUTSIDE}/pipe", "a", SHAPE)
    file.create_virtual_dataset(FIRST, layout)


def _growing_virtual(file: h5py.File) -> None:
    """One whose size is that of another file's, which asking for it opens."""
    layout = h5py.VirtualLayout((0, 8), np.float32, maxshape=(None, 8))
    source = h5py.VirtualSource(f"../{OUTSIDE}/pipe", "a", (0, 8), maxshape=(None, 8))
    layout[: h5py.h5s.UNLIMITED :, :] = source[: h5py.h5s.UNLIMITED :, :]
    file.create_virtual_dataset(FIRST, layout)


def _unwritten(chunks: tuple[int, ...] | None, shape: tuple[int, ...] = (2**30, 2**8)) -> Maker:
    options = {"chunks": chunks, "maxshape": chunks and (None, shape[1]), "fillvalue": 0.5}
    return _h5(lambda f: f.create_dataset(FIRST, shape, np.float32, **options))


def _bomb(file: h5py.File) -> None:
    data = file.create_dataset(FIRST, (2**20, 64), np.float32, chunks=(2**18, 64), compression="gzip")
    for start in range(0, 2**20, 2**18):
        data[start : start + 2**18] = np.zeros((2**18, 64), np.float32)


def _circle(file: h5py.File) -> None:
    group = file.create_group("layers/circle")
    for i in range(200):
        group[f"again{i}"] = file["layers"]


def _half_written(file: h5py.File) -> None:
    data = file.create_dataset(FIRST, SHAPE, np.float32, chunks=(8, 8), compression="gzip")
    data[:80] = np.random.default_rng(0).random((80, 8), np.float32)


H5 = (
    Kind("a tensor in another file by a link", "h5", _h5(lambda f: f.__setitem__(
         FIRST, h5py.ExternalLink(f"../{OUTSIDE}/pipe", "a"))), "is a link into another file"),
    Kind("a tensor by a soft link", "h5", _h5(lambda f: f.__setitem__(
         FIRST, h5py.SoftLink("/layers/layer_normalization/vars/0"))), "is a soft link"),
    Kind("a tensor stored in another file", "h5", _h5(_external), "is stored outside the file"),
    Kind("a tensor made of another file", "h5", _h5(_virtual), "is a virtual dataset"),
    Kind("a tensor as large as another file's", "h5", _h5(_growing_virtual), "is a virtual dataset"),
    Kind("a tensor of references", "h5", _h5(lambda f: f.create_dataset(
         FIRST, data=np.array([f.ref], h5py.ref_dtype))), "holds values of type object"),
    Kind("a tensor of texts", "h5", _h5(lambda f: f.create_dataset(FIRST, data=["a", "b"])),
         "holds values of type object"),
    Kind("a tensor of records", "h5", _h5(lambda f: f.create_dataset(
         FIRST, SHAPE, "f4,f4", data=np.zeros(SHAPE, "f4,f4"))), "holds values of type [('f0'"),
    Kind("a tensor of integers", "h5", _h5(lambda f: f.create_dataset(
         FIRST, data=np.ones(SHAPE, np.int64))), "holds values of type int64"),
    Kind("a filter that is not gzip's kind", "h5", _h5(lambda f: f.create_dataset(
         FIRST, data=np.ones(SHAPE, np.float32), chunks=(8, 8), scaleoffset=3)),
         "is stored through the filters [6]"),
    Kind("1 TB that were never written", "h5", _unwritten(None), "but the file holds 0 of it"),
    Kind("1 TB in pieces that were never written", "h5", _unwritten((2**10, 2**8)),
         "but the file holds 0 of it"),
    Kind("a right size in pieces that were not all written", "h5", _h5(_half_written),
         "has only 10 of the 33 pieces"),
    Kind("pieces of 1 GB for a small tensor", "h5", _unwritten((2**20, 2**8), (0, 2**8)),
         "is stored in pieces of 1073741824"),
    Kind("256 MB of compressed zeros", "h5", _h5(_bomb), "takes 268435456 bytes, but the file holds"),
    Kind("groups in a circle", "h5", _h5(_circle), "1 missing"),
    Kind("groups 1,000 deep", "h5", _h5(lambda f: f.create_group("a/" * 1000)),
         "nests groups more than 32 deep"),
    Kind("no shape at all", "h5", _h5(lambda f: f.create_dataset(FIRST, data=h5py.Empty("f4"))),
         "has no shape"),
    Kind("weights that are a pickle", "h5", lambda folder: (folder / "model.weights.h5").write_bytes(
         pickle.dumps(whole)), "is truncated or not an HDF5 file"),
)  # fmt: skip
