"""Reads what `torch.save` writes, without torch: a zip file of a pickle and one record per storage."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from exporter.checkpoints.torch_pickle import StoredTensor, read_state_dict
from exporter.errors import CheckpointError

LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # section 4.3.7 of PKWARE's APPNOTE.TXT
ENCRYPTED = 1
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file from before torch 1.6 begins
MAX_PICKLE_BYTES = 1024 * 1024  # 5,000 tensors and more; seconds of work at worst
MAX_DIRECTORY_BYTES = 16 * 1024 * 1024  # of the zip file: 200,000 records
MAX_EMPTY_SIZE = 2**40


class TorchReader:
    """Reads one file of `torch.save(model.state_dict(), path)`, as torch 1.6 and later write it.

    The pickle that names the tensors is never run, see `torch_pickle`. Values are read when they are
    asked for, by plain reads at their place in the file. Everything a read relies on is checked when
    the file is opened, so that no tensor reaches beyond its storage, nor a storage beyond its record.

    Raises:
        CheckpointError: if the file is truncated, is in the format before torch 1.6, is big-endian or
            compressed, or holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records = _read_records(path)
        order = self._record_bytes("byteorder", 16) if "byteorder" in self._records else b"little"
        if order != b"little":
            raise CheckpointError(
                f"{path} is stored in the byte order {order.decode(errors='replace')!r}, and only "
                "'little' is read; write it with torch.save on a little-endian machine"
            )
        pickled = self._record_bytes("data.pkl", MAX_PICKLE_BYTES)
        self._tensors = read_state_dict(pickled, str(path))
        for name, tensor in self._tensors.items():
            self._check(name, tensor)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        tensor = self._tensors[name]
        shape, offset, dtype = tensor.shape, tensor.offset, tensor.storage.dtype
        if shape:
            first, last, _ = slice(start, stop).indices(shape[0])
            shape = (max(0, last - first), *shape[1:])
            offset += first * tensor.strides[0]
        size = _span(shape, tensor.strides) * dtype.itemsize
        if not size:
            return np.empty(shape, dtype)
        begin, _ = self._records[f"data/{tensor.storage.key}"]
        data = np.fromfile(self._path, np.uint8, size, offset=begin + offset * dtype.itemsize)
        if len(data) != size:
            raise CheckpointError(
                f"{self._path} was cut short while it was open: tensor {name!r} lacks "
                f"{size - len(data)} of {size} bytes"
            )
        # The stride of an axis that is never stepped along may be anything.
        steps = [n * dtype.itemsize if m > 1 else 0 for n, m in zip(tensor.strides, shape, strict=True)]
        return np.ndarray(shape, dtype, data, strides=steps)

    def close(self) -> None:
        """Nothing to close: the file is open only while it is read."""

    def _record_bytes(self, name: str, most: int) -> bytes:
        begin, size = self._records[name]
        if size > most:
            raise CheckpointError(f"{self._path}: record {name!r} takes {size} bytes, at most {most}")
        return np.fromfile(self._path, np.uint8, size, offset=begin).tobytes()

    def _check(self, name: str, tensor: StoredTensor) -> None:
        storage, shape = tensor.storage, tensor.shape
        where = f"{self._path}: tensor {name!r}"
        if f"data/{storage.key}" not in self._records:
            raise CheckpointError(f"{where} is in a record {storage.key!r} that the file does not have")
        _, size = self._records[f"data/{storage.key}"]
        expected = storage.items * storage.dtype.itemsize
        if expected > size:
            raise CheckpointError(
                f"{where} has a storage of {storage.items} items of {storage.dtype}, which take "
                f"{expected} bytes, but its record holds {size}"
            )
        most = MAX_EMPTY_SIZE if 0 in shape else storage.items
        if math.prod(n or 1 for n in shape) > most:
            raise CheckpointError(
                f"{where} of shape {shape} has more values than its storage, {storage.items}; "
                "save a contiguous copy of it"
            )
        end = tensor.offset + _span(shape, tensor.strides)
        if end > storage.items:
            raise CheckpointError(
                f"{where} of shape {shape}, strides {tensor.strides} and offset {tensor.offset} "
                f"reaches item {end} of a storage of {storage.items}"
            )


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many consecutive items a strided view lies in."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


# === The zip file ===


def _read_records(path: Path) -> dict[str, tuple[int, int]]:
    """Where each record begins in the file, and its size in bytes, by its name in the archive."""
    with path.open("rb") as file:
        if file.read(len(OLD_MAGIC)) == OLD_MAGIC:
            raise CheckpointError(
                f"{path} is in the format before torch 1.6, which is not read; convert it where torch "
                "is installed: torch.save(torch.load(path, weights_only=True), path)"
            )
        entries = _read_directory(path, file)
        names = [entry.filename for entry in entries]
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise CheckpointError(
                f"{path} is a zip file, but not one that torch.save wrote: it has {len(pickles)} "
                f"records named data.pkl and {len(names) - len(set(names))} repeated names"
            )
        folder = pickles[0].removesuffix("data.pkl")
        return {
            entry.filename.removeprefix(folder): (_data_start(path, file, entry), entry.file_size)
            for entry in entries
            if entry.filename.startswith(folder)
        }


def _read_directory(path: Path, file: IO[bytes]) -> list[zipfile.ZipInfo]:
    try:
        return zipfile.ZipFile(_ZipDirectory(file)).infolist()
    # What zipfile raises for a directory that makes no sense is not of one kind.
    except Exception as error:
        raise CheckpointError(
            f"{path} is truncated or not a file that torch.save wrote ({path.stat().st_size} bytes: "
            f"{error}); fetch the file again"
        ) from None


class _ZipDirectory(io.RawIOBase):
    """A file for `zipfile` to read the directory of, which may say that it is as large as the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory takes {size} bytes, at most {MAX_DIRECTORY_BYTES}")
        if size < 0:  # the rest; Python takes the memory for what is asked for before it reads
            place = self._file.tell()
            size = min(self._file.seek(0, os.SEEK_END) - place, MAX_DIRECTORY_BYTES)
            self._file.seek(place)
        return self._file.read(size)


def _data_start(path: Path, file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin in the file: after its local header, name and extra field."""
    file_size = path.stat().st_size
    where = f"{path}: record {entry.filename!r}"
    if 0 <= entry.header_offset <= file_size - LOCAL_HEADER.size:
        file.seek(entry.header_offset)
        header = file.read(LOCAL_HEADER.size)
    else:
        header = b""
    if not header.startswith(b"PK\3\4"):
        raise CheckpointError(f"{where} does not begin at byte {entry.header_offset}, as it should")
    _, _, flags, method, *_, name_size, extra_size = LOCAL_HEADER.unpack(header)
    if {method, entry.compress_type} != {zipfile.ZIP_STORED} or (flags | entry.flag_bits) & ENCRYPTED:
        raise CheckpointError(
            f"{where} is compressed or encrypted (zip method {entry.compress_type}), and torch.save "
            "stores records as they are; write the file again with torch.save"
        )
    start = entry.header_offset + LOCAL_HEADER.size + name_size + extra_size
    if start + entry.file_size > file_size:
        raise CheckpointError(
            f"{where} ends at byte {start + entry.file_size} of {file_size}; fetch the file again"
        )
    return start
