"""Reads the HDF5 files that Keras stores weights in.

HDF5 can do much that weights do not need: links and datasets that lie in other files, filters from
plug-in libraries, datasets of which only the size is stored. Whoever made a file decides on all of
that, so a file is first looked through without opening a dataset's values, and all but hard links to
arrays of plain numbers that are stored in the file itself is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5z

from exporter.checkpoints.h5_check import check_in_child
from exporter.errors import CheckpointError

OLD_LAYERS = "_layer_checkpoint_dependencies/"
OTHER_STATE = ("optimizer", "_")  # of training and random seeds: no weights of the model
BLOCK_BYTES = 32 * 1024**2
MAX_DEPTH = 32  # groups within groups; Keras nests about six
FILTERS = {
    h5z.FILTER_DEFLATE: "gzip",
    h5z.FILTER_SHUFFLE: "shuffle",
    h5z.FILTER_FLETCHER32: "fletcher32",
    h5z.FILTER_LZF: "lzf",
}
# Bytes of values for a byte in the file: weights seldom compress to half, and gzip reaches 1032.
MAX_COMPRESSION = 100
FREE_BYTES = 1024**2  # a small tensor may be all zeros
KINDS = ("f2", "f4", "f8")
BFLOAT16_KINDS = ("V2", "u2")  # HDF5 has no bfloat16: Keras stores its bits


class H5Reader:
    """Reads a Keras weights file, whose datasets are found by their paths.

    Values that lie in one piece, as Keras writes them, are read without the HDF5 library.

    Args:
        path: the file.
        check: whether the library survives the file; see `h5_check`.

    Raises:
        CheckpointError: if the file is truncated or is not HDF5, or holds what weights do not need.
    """

    def __init__(self, path: Path, check: Callable[[Path], None] = check_in_child) -> None:
        self._path = path
        check(path)
        try:
            self._file = h5py.File(path, "r")
        except Exception as error:  # h5py raises errors of many kinds for a damaged file
            raise CheckpointError(f"{path} is truncated or not an HDF5 file: {error}") from None
        try:
            self._datasets = self._find_datasets()
        except CheckpointError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise CheckpointError(f"{path} is damaged: {error!r}; fetch the file again") from None

    @property
    def attributes(self) -> dict[str, Any]:
        """The file's own attributes.

        Raises:
            CheckpointError: if they are damaged.
        """
        try:
            return dict(self._file.attrs)
        except Exception as error:
            raise CheckpointError(f"{self._path} has damaged attributes: {error!r}") from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(dataset.shape) for name, dataset in self._datasets.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        dataset = self._datasets[name]
        if not _is_weight(dataset):
            raise CheckpointError(_wrong_kind(dataset, f"{self._path}: tensor {name!r}"))
        try:
            if dataset.id.get_offset() is None:
                values = np.asarray(dataset[start:stop] if dataset.shape else dataset[()])
            else:
                values = self._read_plain(dataset, start, stop)
        except Exception as error:
            raise CheckpointError(f"{self._path} is truncated at tensor {name!r}: {error}") from None
        if dataset.dtype.str[1:] in KINDS:
            return values
        import ml_dtypes  # takes most of a second, which the child that only checks goes without

        return values.view(ml_dtypes.bfloat16)

    def read_pieces(self) -> None:
        """Reads all values that the library puts together, and forgets them."""
        for name, dataset in self._datasets.items():
            if dataset.id.get_offset() is None and _is_weight(dataset):
                rows = max(
                    1, BLOCK_BYTES // max(1, dataset.dtype.itemsize * math.prod(dataset.shape[1:]))
                )
                for start in range(0, dataset.shape[0] if dataset.shape else 1, rows):
                    self.read(name, start, start + rows)

    def _read_plain(self, dataset: h5py.Dataset, start: int, stop: int | None) -> np.ndarray:
        shape, dtype = dataset.shape, dataset.dtype
        first, last, _ = slice(start, stop).indices(shape[0]) if shape else (0, 1, 1)
        rows, row_items = max(0, last - first), math.prod(shape[1:])
        place = dataset.id.get_offset() + first * row_items * dtype.itemsize
        values = np.fromfile(self._path, dtype, rows * row_items, offset=place)
        return values.reshape((rows, *shape[1:]) if shape else ())

    def close(self) -> None:
        self._file.close()

    def _find_datasets(self) -> dict[str, h5py.Dataset]:
        datasets = {}
        stored = 0
        for name, identifier in _walk(self._file.id, f"{self._path}"):
            # Keras before 3 wrote the layers under another name.
            if name.startswith(OLD_LAYERS):
                name = "layers/" + name.removeprefix(OLD_LAYERS)
            if name.startswith(OTHER_STATE):
                continue
            where = f"{self._path}: tensor {name!r}"
            _check_place(identifier, where)
            datasets[name] = h5py.Dataset(identifier)
            stored += _check_size(datasets[name], where)
            _check_kind(datasets[name], where)
        size = self._path.stat().st_size
        if stored > size:
            raise CheckpointError(
                f"{self._path} says that its tensors take {stored} bytes of it, but it has {size}; "
                "fetch the file again"
            )
        return datasets


def _walk(root: Any, origin: str) -> Iterator[tuple[str, Any]]:
    """The datasets that hard links lead to, by path, with the groups looked into once each."""
    seen = set()
    waiting = [("", h5g.open(root, b"/"))]
    while waiting:
        prefix, group = waiting.pop()
        if prefix.count("/") > MAX_DEPTH:
            raise CheckpointError(f"{origin} nests groups more than {MAX_DEPTH} deep at {prefix!r}")
        for link in list(group):
            name = prefix + link.decode("utf-8", "backslashreplace")
            if (kind := group.links.get_info(link).type) != h5l.TYPE_HARD:
                raise CheckpointError(
                    f"{origin}: {name!r} is {_link_kind(kind)}, and only what is stored at its own "
                    "place in the file is read; save the weights again with Keras"
                )
            # By number: h5py's own class for an object may not be told from its name.
            item = h5o.open(group, link)
            info = h5o.get_info(item)
            if isinstance(item, h5d.DatasetID):
                yield name, item
            elif isinstance(item, h5g.GroupID) and (info.fileno, info.addr) not in seen:
                seen.add((info.fileno, info.addr))
                waiting.append((f"{name}/", item))


def _link_kind(kind: int) -> str:
    names = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link into another file"}
    return names.get(kind, "a link of an unknown kind")


def _check_place(identifier: Any, where: str) -> None:
    """Refuses values that are not in this file, before asking for a size, which opens the others."""
    settings = identifier.get_create_plist()
    if settings.get_layout() == h5d.VIRTUAL:
        raise CheckpointError(f"{where} is a virtual dataset, made of other files; save its values")
    if settings.get_external_count():
        name = settings.get_external(0)[0].decode("utf-8", "backslashreplace")
        raise CheckpointError(f"{where} is stored outside the file, in {name!r}; save its values in it")
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    unknown = [number for number in filters if number not in FILTERS]
    if unknown or len(set(filters)) != len(filters):
        raise CheckpointError(
            f"{where} is stored through the filters {filters}, and only {sorted(FILTERS)} "
            f"({', '.join(FILTERS.values())}) are read, each once; save it without compression"
        )


def _check_size(dataset: h5py.Dataset, where: str) -> int:
    """Refuses a dataset of which the file does not hold the values; gives the bytes that do."""
    shape, stored = dataset.shape, dataset.id.get_storage_size()
    if shape is None:
        raise CheckpointError(f"{where} has no shape")
    itemsize = dataset.dtype.itemsize
    size = math.prod(shape) * itemsize
    compressed = dataset.id.get_create_plist().get_nfilters() > 0
    if size > (stored * MAX_COMPRESSION + FREE_BYTES if compressed else stored):
        raise CheckpointError(
            f"{where} of shape {shape} takes {size} bytes, but the file holds {stored} of it; save the "
            "weights again with Keras"
        )
    if dataset.chunks is not None:
        chunk = math.prod(dataset.chunks) * itemsize
        if chunk > 4 * size + FREE_BYTES:
            raise CheckpointError(f"{where} takes {size} bytes and is stored in pieces of {chunk}")
        expected = math.prod(-(-n // step) for n, step in zip(shape, dataset.chunks, strict=True))
        if (found := dataset.id.get_num_chunks()) != expected:
            raise CheckpointError(f"{where} has only {found} of the {expected} pieces it is stored in")
    return stored


def _check_kind(dataset: h5py.Dataset, where: str) -> None:
    """Whole numbers may be beside the weights, as counters and seeds are."""
    if not _is_weight(dataset) and dataset.dtype.kind not in "iub":
        raise CheckpointError(_wrong_kind(dataset, where))


def _is_weight(dataset: h5py.Dataset) -> bool:
    dtype = dataset.dtype
    is_bits = dtype.str[1:] in BFLOAT16_KINDS and dtype.names is None and _is_bfloat16(dataset)
    return dtype.str[1:] in KINDS or is_bits


def _wrong_kind(dataset: h5py.Dataset, where: str) -> str:
    return (
        f"{where} holds values of type {dataset.dtype}, and only float16, bfloat16, float32 and "
        "float64 are read; save it in one of them"
    )


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    name = dataset.attrs.get("dtype", "")
    return (name.decode(errors="replace") if isinstance(name, bytes) else str(name)) == "bfloat16"
