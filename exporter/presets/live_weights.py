"""The weights of a live backbone, written as the files of a checkpoint one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoints.weight_map import WeightMap, bind_names
from exporter.checkpoints.writers import GIGABYTE, Piece, file_pieces, file_tensors, write_weights
from exporter.model_weights import LiveWeights
from exporter.opt.backbone import OPTBackbone


def write_live_weights(
    backbone: OPTBackbone,
    folder: Path,
    layout: str,
    weight_map: WeightMap,
    max_shard_size: float | None,
    dtype: str | None = None,
) -> None:
    """Writes a backbone's weights into a folder.

    Args:
        backbone: the model.
        folder: an existing folder.
        layout: `"keras"` or `"huggingface"`.
        weight_map: how the layout spells the weights.
        max_shard_size: most GB (2**30 bytes) of one file; `None` for a single file.
        dtype: dtype to store them in; by default that of each variable.
    """
    weights = LiveWeights(backbone)
    targets = bind_names(weight_map, backbone.model_config)
    dtypes = {v.path: dtype or v.dtype for v in backbone.weights}
    tensors = [t for target in targets for t in file_tensors(target, dtypes[target.name])]

    def pieces() -> Iterator[Piece]:
        for target in targets:
            values = weights.value(target.name)
            yield from file_pieces(target, [values], backbone.padding_positions)

    limit = None if max_shard_size is None else max_shard_size * GIGABYTE
    write_weights(folder, layout, tensors, pieces(), limit)


def check_shard_size(max_shard_size: Any) -> None:
    """Raises `ValueError` unless this is a positive number or `None`."""
    if max_shard_size is None:
        return
    if not isinstance(max_shard_size, (int, float, np.number)) or not max_shard_size > 0:
        raise ValueError(
            f"max_shard_size must be a positive number of GB, or None for a single file; "
            f"got {max_shard_size!r}"
        )
