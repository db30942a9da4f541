"""Reads safetensors files."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from exporter.errors import CheckpointError

SAFETENSORS_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


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
