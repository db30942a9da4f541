"""Reads safetensors files."""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from exporter.errors import CheckpointError
from graphs.strict_json import parse_json

SAFETENSORS_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# What may be in a file beside a model's weights, as bytes of a value: buffers, masks, counters.
OTHER_DTYPES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16"), 2),
    **dict.fromkeys(("U32", "I32"), 4),
    **dict.fromkeys(("U64", "I64", "C64"), 8),
}
# The library allows 100 MB, of which Python makes gigabytes; a tensor takes about 100 bytes.
MAX_HEADER_BYTES = 16 * 1024**2
MAX_AXES = 64  # NumPy's
MAX_EMPTY_SIZE = 2**40  # product of the other sizes of a tensor without values; NumPy has limits
MAX_SIZE = 2**62  # of an axis, and of a place in the file


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
                    f"{header_size} bytes, of at most {MAX_HEADER_BYTES}, and has {size} in all"
                )
            try:
                header = parse_json(file.read(header_size).decode())
                header.pop("__metadata__", None)
                self._entries = {name: _entry(name, value) for name, value in header.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{path} has an unreadable header: {error}") from None
        self._data_start = 8 + header_size
        self._data_size = size - self._data_start
        for name, (dtype, shape, begin, end) in self._entries.items():
            expected = math.prod(shape) * _size(dtype)
            if end - begin != expected:
                raise CheckpointError(
                    f"{path}: tensor {name!r} of shape {shape} takes {expected} bytes, "
                    f"but the header gives it {end - begin}"
                )
            if math.prod(size or 1 for size in shape) > MAX_EMPTY_SIZE and 0 in shape:
                raise CheckpointError(f"{path}: tensor {name!r} has no values and the shape {shape}")
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
        if isinstance(dtype, str):
            raise CheckpointError(
                f"{self._path}: tensor {name!r}: dtype {dtype!r} is not one of "
                f"{sorted(SAFETENSORS_DTYPES)}, in which weights are read"
            )
        first, last, _ = slice(start, stop).indices(shape[0]) if shape else (0, 1, 1)
        row_items = math.prod(shape[1:])
        count = max(0, last - first) * row_items
        values = np.fromfile(
            self._path,
            dtype,
            count=count,
            offset=self._data_start + begin + first * row_items * np.dtype(dtype).itemsize,
        )
        if len(values) != count:
            raise CheckpointError(
                f"{self._path} was cut short while it was open: tensor {name!r} has {len(values)} of "
                f"{count} values; fetch the file again"
            )
        return values.reshape((max(0, last - first), *shape[1:])) if shape else values.reshape(())

    def close(self) -> None:
        """Nothing to close: the file is open only while it is read."""


def _size(dtype: Any) -> int:
    """Bytes of a value."""
    return OTHER_DTYPES[dtype] if isinstance(dtype, str) else np.dtype(dtype).itemsize


def _entry(name: str, value: dict[str, Any]) -> tuple[Any, tuple[int, ...], int, int]:
    begin, end = value["data_offsets"]
    dtype = SAFETENSORS_DTYPES.get(value["dtype"])
    if dtype is None and value["dtype"] in OTHER_DTYPES:
        dtype = value["dtype"]
    if dtype is None:
        raise ValueError(
            f"tensor {name!r}: dtype {value['dtype']!r:.100} is not one of {sorted(SAFETENSORS_DTYPES)}"
        )
    shape = value["shape"]
    if type(shape) is not list or len(shape) > MAX_AXES:
        raise ValueError(f"tensor {name!r}: a shape must be a list of at most {MAX_AXES} sizes")
    for size in (*shape, begin, end):
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            raise ValueError(
                f"tensor {name!r}: sizes and places are whole numbers up to 2**62, got {size!r:.100}"
            )
    return dtype, tuple(shape), begin, end
