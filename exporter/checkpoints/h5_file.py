"""Reads the HDF5 files that Keras stores weights in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from exporter.errors import CheckpointError

OLD_LAYERS = "_layer_checkpoint_dependencies/"


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
