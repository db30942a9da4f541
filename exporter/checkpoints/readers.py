"""Finds a checkpoint in a folder and reads it: names and shapes at once, values by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from exporter.checkpoints.h5_file import H5Reader
from exporter.checkpoints.safetensors_file import SafetensorsReader
from exporter.checkpoints.torch_file import TorchReader
from exporter.errors import CheckpointError
from exporter.foreign_files import find_file
from graphs.shown import listed
from graphs.strict_json import parse_json
from runtime.text_files import MEGABYTE, read_text


class TensorReader(Protocol):
    """Gives the tensors of a checkpoint by name."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A tensor's values, or rows `start` to `stop` of them, in the stored dtype."""

    def close(self) -> None:
        """Closes the files."""


def check_floats(reader: TensorReader, name: str) -> None:
    """Raises `CheckpointError` if a tensor is stored as anything but floats, which weights are."""
    if (dtype := reader.read(name, 0, 0).dtype).kind in "biu":
        raise CheckpointError(f"tensor {name!r} holds values of type {dtype}, and weights are floats")


@dataclass(frozen=True)
class WeightFiles:
    """How a checkpoint may lie in a folder.

    Attributes:
        single: the name of the file that holds all of it.
        index: the name of the JSON file that lists its shards, where it is in several.
        reader: opens one of its files.
    """

    single: str
    index: str
    reader: Callable[[Path], TensorReader]


# By the format of the folder, in order of preference.
WEIGHT_FILES: dict[str, tuple[WeightFiles, ...]] = {
    "keras": (WeightFiles("model.weights.h5", "model.weights.json", H5Reader),),
    "huggingface": (
        WeightFiles("model.safetensors", "model.safetensors.index.json", SafetensorsReader),
        WeightFiles("pytorch_model.bin", "pytorch_model.bin.index.json", TorchReader),
    ),
}
MAX_INDEX_BYTES = 16 * MEGABYTE  # 100,000 tensors
MAX_SHARDS = 1000
UNREAD_FILES = ("tf_model.h5", "flax_model.msgpack")  # transformers' other frameworks


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


def open_checkpoint(folder: Path, layout: str) -> TensorReader:
    """Opens the weights in a folder: one file, or the shards that an index lists.

    Args:
        folder: where they are.
        layout: `"keras"` or `"huggingface"`, which says what the files are called.

    Raises:
        CheckpointError: if there are none, a shard is missing, or a file is not valid.
    """
    for files in WEIGHT_FILES[layout]:
        if (path := find_file(folder, files.single, CheckpointError)) is not None:
            return files.reader(path)
        if find_file(folder, files.index, CheckpointError) is not None:
            return _open_shards(folder, files)
    wanted = ", or ".join(f"{f.single}, or {f.index} with its shards" for f in WEIGHT_FILES[layout])
    unread = [name for name in UNREAD_FILES if (folder / name).is_file()]
    hint = f"; {' and '.join(unread)} cannot be read" if unread else ""
    raise CheckpointError(f"{folder} has no weights: expected {wanted}{hint}")


def has_weights(folder: Path, layout: str) -> bool:
    """Whether a folder has weights of a layout."""
    names = [name for files in WEIGHT_FILES[layout] for name in (files.single, files.index)]
    return any(find_file(folder, name, CheckpointError) is not None for name in names)


def _open_shards(folder: Path, files: WeightFiles) -> ShardedReader:
    paths = {
        name: find_file(folder, name, CheckpointError) for name in shard_names(folder / files.index)
    }
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise CheckpointError(f"{folder} lacks the shards {listed(missing)} that {files.index} lists")
    readers: list[TensorReader] = []
    try:
        for path in filter(None, paths.values()):
            readers.append(files.reader(path))
        _check_once(folder, readers)
        return ShardedReader(readers)
    except BaseException:
        for reader in readers:
            reader.close()
        raise


def _check_once(folder: Path, readers: Sequence[TensorReader]) -> None:
    names = Counter(name for reader in readers for name in reader.shapes)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise CheckpointError(
            f"two shards in {folder} hold the tensors {listed(twice)}; leave in the index only "
            "the files of one checkpoint"
        )


def shard_names(index_path: Path) -> list[str]:
    """The files that an index of shards lists, each once, in order.

    Raises:
        CheckpointError: if it is no such index, or names a file outside its folder.
    """
    try:
        files = parse_json(read_text(index_path, MAX_INDEX_BYTES))["weight_map"].values()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index_path} is not an index of shards: {error!r}") from None
    names: set[str] = set()
    for entry in files:  # Keras lists several files where a layer is spread over them
        for name in entry if isinstance(entry, list) else [entry]:
            plain = isinstance(name, str) and name.isprintable() and name not in ("", "..")
            if not plain or Path(name).name != name:
                raise CheckpointError(
                    f"{index_path} names a shard outside its folder, or by no plain name: {name!r:.200}"
                )
            names.add(name)
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index_path} lists {len(names)} shards, of at most {MAX_SHARDS}")
    return sorted(names)
