"""Lazy readers of checkpoint files: names and shapes at once, values one tensor at a time."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import ml_dtypes
import numpy as np

from exporter.errors import CheckpointError

SAFETENSORS_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
OLD_LAYERS = "_layer_checkpoint_dependencies/"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


class TensorReader(Protocol):
    """Gives the tensors of a checkpoint by name."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A tensor's values, or rows `start` to `stop` of them, in the stored dtype."""

    def close(self) -> None:
        """Closes the files."""


class SafetensorsReader:
    """Reads one safetensors file with plain reads.

    Follows https://github.com/huggingface/safetensors#format. The library maps the whole file, whose
    pages then count as this process's memory; reading only what is asked for keeps that flat.

    Raises:
        CheckpointError: if the file is truncated or its header is not valid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{path} is truncated: {size} bytes hold no header")
            (header_size,) = struct.unpack("<Q", prefix)
            if header_size > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path} is truncated or not a safetensors file: it declares a header of "
                    f"{header_size} bytes and has {size} in all"
                )
            try:
                header = json.loads(file.read(header_size))
                header.pop("__metadata__", None)
                self._entries = {name: _entry(value) for name, value in header.items()}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise CheckpointError(f"{path} has an unreadable header: {error}") from None
        self._data_start = 8 + header_size
        self._data_size = size - self._data_start
        for name, (dtype, shape, begin, end) in self._entries.items():
            expected = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
            if begin < 0 or end - begin != expected or min(shape, default=0) < 0:
                raise CheckpointError(
                    f"{path}: tensor {name!r} of shape {shape} takes {expected} bytes, "
                    f"but the header gives it {end - begin}"
                )
            if end > self._data_size:
                raise CheckpointError(
                    f"{path} is truncated: tensor {name!r} ends at byte {self._data_start + end} of "
                    f"{size}; fetch the file again"
                )

        placed = sorted((begin, end, name) for name, (_, _, begin, end) in self._entries.items())
        for (_, end, first), (begin, _, second) in itertools.pairwise(placed):
            if begin < end:
                raise CheckpointError(f"{path}: tensors {first!r} and {second!r} overlap")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (_, shape, _, _) in self._entries.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        dtype, shape, begin, _ = self._entries[name]
        first, last, _ = slice(start, stop).indices(shape[0]) if shape else (0, 1, 1)
        row_items = int(np.prod(shape[1:], dtype=object))
        values = np.fromfile(
            self._path,
            dtype,
            count=max(0, last - first) * row_items,
            offset=self._data_start + begin + first * row_items * np.dtype(dtype).itemsize,
        )
        return values.reshape((-1, *shape[1:])) if shape else values.reshape(())

    def close(self) -> None:
        """Nothing to close: the file is open only while it is read."""


def _entry(value: dict[str, Any]) -> tuple[Any, tuple[int, ...], int, int]:
    begin, end = value["data_offsets"]
    dtype = SAFETENSORS_DTYPES.get(value["dtype"])
    if dtype is None:
        raise ValueError(f"dtype {value['dtype']!r} is not one of {sorted(SAFETENSORS_DTYPES)}")
    return dtype, tuple(int(n) for n in value["shape"]), int(begin), int(end)


class H5Reader:
    """Reads a Keras weights file, whose datasets are found by their paths.

    Raises:
        CheckpointError: if the file is truncated or is not HDF5.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise CheckpointError(f"{path} is truncated or not an HDF5 file: {error}") from None
        self._datasets: dict[str, h5py.Dataset] = {}
        self._file.visititems(self._visit)

    def _visit(self, name: str, item: Any) -> None:
        # Keras before 3 wrote the layers under another name.
        if name.startswith(OLD_LAYERS):
            name = "layers/" + name.removeprefix(OLD_LAYERS)
        # Optimizer state and random seeds are no weights of the model.
        if isinstance(item, h5py.Dataset) and not name.startswith(("optimizer", "_")):
            self._datasets[name] = item

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(dataset.shape) for name, dataset in self._datasets.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        dataset = self._datasets[name]
        try:
            values = np.asarray(dataset[start:stop] if dataset.shape else dataset[()])
        except OSError as error:
            raise CheckpointError(
                f"{self._file.filename} is truncated at tensor {name!r}: {error}"
            ) from None
        # HDF5 has no bfloat16: Keras stores its bits and names the dtype in an attribute.
        return values.view(ml_dtypes.bfloat16) if _is_bfloat16(dataset) else values

    def close(self) -> None:
        self._file.close()


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    name = dataset.attrs.get("dtype", "")
    return (name.decode() if isinstance(name, bytes) else str(name)) == "bfloat16"


class ShardedReader:
    """Several files read as one."""

    def __init__(self, readers: Sequence[TensorReader]) -> None:
        self._readers = readers
        self._home = {name: reader for reader in readers for name in reader.shapes}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for reader in self._readers for name, shape in reader.shapes.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._home[name].read(name, start, stop)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


def open_checkpoint(folder: Path, stem: str, ending: str, index: str) -> TensorReader:
    """Opens `stem + ending` in a folder, or else the shards that the file `index` lists.

    Raises:
        CheckpointError: if neither is there, a shard is missing, or a file is not valid.
    """
    reader: Callable[[Path], TensorReader] = H5Reader if ending == ".h5" else SafetensorsReader
    single, index_path = folder / (stem + ending), folder / index
    if single.exists():
        return reader(single)
    if not index_path.exists():
        raise CheckpointError(
            f"{folder} has no weights: expected {single.name}, or {index} with its shards"
        )
    names = _shard_names(index_path)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise CheckpointError(f"{folder} lacks the shards {missing} that {index} lists")
    return ShardedReader([reader(folder / name) for name in names])


def _shard_names(index_path: Path) -> list[str]:
    try:
        files = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index_path} is not an index of shards: {error!r}") from None
    names: set[str] = set()
    for entry in files:  # Keras lists several files where a layer is spread over them
        for name in entry if isinstance(entry, list) else [entry]:
            if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
                raise CheckpointError(f"{index_path} names a shard outside its folder: {name!r}")
            names.add(name)
    return sorted(names)
