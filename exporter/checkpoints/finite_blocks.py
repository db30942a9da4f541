"""Weights must be numbers: one NaN in a checkpoint makes every text of the model nonsense."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from exporter.errors import CheckpointError


def finite_blocks(blocks: Iterable[np.ndarray], what: str) -> Iterator[np.ndarray]:
    """The blocks of a weight as they are.

    Args:
        blocks: runs of a weight's values.
        what: the weight, for the error.

    Raises:
        CheckpointError: at the first block that holds infinities or NaN, with their number.
    """
    for block in blocks:
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.sum(block)  # one pass without a copy, which large finite values may overflow
        if not np.isfinite(total) and (count := np.count_nonzero(~np.isfinite(block))):
            raise CheckpointError(
                f"{what} has {count} values that are NaN or infinite among {block.size} read at once: "
                "training diverged or the file is damaged, and the model would give no text; take an "
                "earlier checkpoint, or fetch the file again"
            )
        yield block
