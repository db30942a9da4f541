"""Writes the weights of a checkpoint as they come: safetensors or H5, in shards where they are large.

The files are those of `safetensors` (https://github.com/huggingface/safetensors#format), with the
index that transformers writes beside shards, and those of Keras's `save_weights`, sharded or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from exporter.checkpoints.readers import WEIGHT_FILES
from exporter.checkpoints.safetensors_file import SAFETENSORS_DTYPES
from exporter.checkpoints.weight_map import BoundTarget

GIGABYTE = 1024**3  # what Keras means by it in `max_shard_size`
Piece = tuple[str, np.ndarray]
_SAFETENSORS_NAMES = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a checkpoint, as it is to be stored."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def file_tensors(target: BoundTarget, dtype: Any) -> list[FileTensor]:
    """The tensors that a weight becomes in a file, stored in `dtype`."""
    return [FileTensor(s.name, s.shape, np.dtype(dtype)) for s in target.sources]


def file_pieces(
    target: BoundTarget, blocks: Iterable[np.ndarray], skipped: np.ndarray | None = None
) -> Iterator[Piece]:
    """A weight's values as the tensors of its file, each in consecutive runs of rows.

    Tensors that are stored as the model has them pass through block by block; the others are put
    together first.

    Args:
        target: the weight.
        blocks: its values in consecutive runs of rows.
        skipped: the leading rows that the file has and the model has not; by default zeros.
    """
    source = target.sources[0]
    if len(target.sources) > 1 or source.transpose or source.part_shape != target.shape:
        yield from target.split(_joined(target.shape, blocks))
        return
    for i, block in enumerate(blocks):
        if i == 0 and source.skip_rows:
            rows = (source.skip_rows, *source.shape[1:])
            yield source.name, np.zeros(rows, block.dtype) if skipped is None else skipped
        yield source.name, block


def _joined(shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> np.ndarray:
    whole: np.ndarray | None = None
    start = 0
    for block in blocks:
        if len(block) == shape[0]:
            return block
        if whole is None:
            whole = np.empty(shape, block.dtype)
        whole[start : start + len(block)] = block
        start += len(block)
    assert whole is not None, "a weight without rows"
    return whole


def write_weights(
    folder: Path,
    layout: str,
    tensors: Sequence[FileTensor],
    pieces: Iterable[Piece],
    max_shard_bytes: float | None = None,
) -> None:
    """Writes the weight files of a checkpoint into a folder.

    Args:
        folder: an existing folder.
        layout: `"keras"` or `"huggingface"`.
        tensors: what is written, in order.
        pieces: their values by name in the same order, each tensor's in consecutive runs of rows;
            asked for one at a time and converted to the tensor's dtype.
        max_shard_bytes: where all values together are more than this, they go into several files of
            at most so many bytes of values each, and an index. A tensor that is larger on its own has
            a file to itself.
    """
    files = _FILES[layout]
    names = WEIGHT_FILES[layout][0]
    total = sum(tensor.nbytes for tensor in tensors)
    remaining = iter(pieces)
    if max_shard_bytes is None or total <= max_shard_bytes:
        files.write(folder / names.single, tensors, remaining)
    else:
        shards = _shards(tensors, max_shard_bytes)
        home: dict[str, str] = {}
        for i, shard in enumerate(shards):
            name = files.shard_name(i, len(shards))
            files.write(folder / name, shard, remaining)
            home.update(dict.fromkeys((tensor.name for tensor in shard), name))
        index = {"metadata": {"total_size": total}, "weight_map": files.weight_map(home)}
        text = json.dumps(index, indent=2) + "\n"
        (folder / names.index).write_text(text, encoding="utf-8")
    assert next(remaining, None) is None, "more values than tensors"


def _shards(tensors: Sequence[FileTensor], most: float) -> list[list[FileTensor]]:
    """Consecutive groups of at most `most` bytes, or of one tensor."""
    shards: list[list[FileTensor]] = []
    size = 0.0
    for tensor in tensors:
        if not shards or size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _rows(
    tensors: Iterable[FileTensor], pieces: Iterator[Piece]
) -> Iterator[tuple[FileTensor, int, np.ndarray]]:
    """The values of these tensors in their dtypes, with the row that each run begins at."""
    for tensor in tensors:
        start = 0
        while start < tensor.shape[0]:
            name, values = next(pieces)
            assert (name, values.shape[1:]) == (tensor.name, tensor.shape[1:]), (name, tensor)
            yield tensor, start, np.ascontiguousarray(values, tensor.dtype)
            start += len(values)
        assert start == tensor.shape[0], tensor


# === safetensors ===


def _write_safetensors(path: Path, tensors: Sequence[FileTensor], pieces: Iterator[Piece]) -> None:
    """The header first, from the shapes alone, then the values in the same order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, values in _rows(tensors, pieces):
            file.write(values.view(np.uint8).data)


def _same(home: dict[str, str]) -> dict[str, Any]:
    return dict(home)


# === H5 ===


def _write_h5(path: Path, tensors: Sequence[FileTensor], pieces: Iterator[Piece]) -> None:
    """All datasets first, from the shapes alone, then their rows as they come."""
    with h5py.File(path, "w") as file:
        for tensor in tensors:
            # HDF5 has no bfloat16: Keras stores its bits and names the dtype in an attribute.
            narrow = tensor.dtype == _BFLOAT16
            dataset = file.create_dataset(
                tensor.name, tensor.shape, np.dtype("V2") if narrow else tensor.dtype
            )
            if narrow:
                dataset.attrs["dtype"] = "bfloat16"
        for tensor, start, values in _rows(tensors, pieces):
            stored = values.view("V2") if tensor.dtype == _BFLOAT16 else values
            file[tensor.name][start : start + len(values)] = stored


def _by_group(home: dict[str, str]) -> dict[str, Any]:
    """Keras's index: the file of each group of variables, or the files where there are several."""
    groups: dict[str, list[str]] = {}
    for name, file in home.items():
        found = groups.setdefault(f"/{name.rpartition('/')[0]}", [])
        if file not in found:
            found.append(file)
    return {name: found[0] if len(found) == 1 else found for name, found in groups.items()}


@dataclass(frozen=True)
class _Files:
    """How a layout's weight files are written and what its shards are called."""

    write: Callable[[Path, Sequence[FileTensor], Iterator[Piece]], None]
    shard_name: Callable[[int, int], str]
    weight_map: Callable[[dict[str, str]], dict[str, Any]]


_FILES = {
    "keras": _Files(_write_h5, lambda i, _: f"model_{i:05}.weights.h5", _by_group),
    "huggingface": _Files(
        _write_safetensors, lambda i, count: f"model-{i + 1:05}-of-{count:05}.safetensors", _same
    ),
}
# What an earlier save may have left in a folder, by layout.
WRITTEN_FILES = {
    "keras": ("model.weights.h5", "model.weights.json", "model_[0-9]*.weights.h5"),
    "huggingface": (
        "model.safetensors",
        "model.safetensors.index.json",
        "model-[0-9]*-of-[0-9]*.safetensors",
    ),
}
