"""What a graph is told beside the cache: arrays by the contract's revision, and how to fill them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphs.contract import (
    INPUT_IDS,
    INVERSE_TEMPERATURES,
    LAST_POSITIONS,
    LAST_TOKENS,
    NEW_LENGTHS,
    PAST_LENGTHS,
    POSITIONS,
    Revision,
)
from runtime.decoder import IntArray
from runtime.gpu.packed_arrays import ArrayLayout, PackedArrays


def input_layout(batch: int, sequence: int, revision: Revision) -> ArrayLayout:
    """The inputs of a run, but for the caches and what stays in the host's memory."""
    tokens, rows = (batch, sequence), (batch,)
    if revision is Revision.HOST:
        return ArrayLayout(
            [
                (INPUT_IDS, np.int64, tokens),
                (PAST_LENGTHS, np.int32, rows),
                (NEW_LENGTHS, np.int32, rows),
            ]
        )
    return ArrayLayout(
        [
            (INPUT_IDS, np.int64, tokens),
            (POSITIONS, np.int64, tokens),
            (LAST_TOKENS, np.int64, rows),
            (LAST_POSITIONS, np.int32, rows),
            (INVERSE_TEMPERATURES, np.float32, (batch, 1)),
        ]
    )


def decode_layout(batch: int, revision: Revision) -> ArrayLayout:
    """The inputs of a decode step."""
    return input_layout(batch, 1, revision)


def fill(
    inputs: PackedArrays,
    revision: Revision,
    token_ids: IntArray,
    past_lengths: NDArray[np.int32],
    new_lengths: IntArray,
    temperatures: NDArray[np.float32],
    last_position: int,
) -> None:
    """Writes the inputs of a run into the host's copy.

    Args:
        inputs: of `input_layout`.
        revision: of the contract.
        token_ids: int [batch, sequence].
        past_lengths: tokens of each row that the cache holds.
        new_lengths: valid tokens among the new ones.
        temperatures: of each row.
        last_position: that the model has; padding beyond it is given this one.
    """
    views = inputs.views
    views[INPUT_IDS][...] = token_ids
    if revision is Revision.HOST:
        views[PAST_LENGTHS][...] = past_lengths
        views[NEW_LENGTHS][...] = new_lengths
        return
    batch, sequence = token_ids.shape
    np.divide(1.0, temperatures, out=views[INVERSE_TEMPERATURES][:, 0])
    if sequence == 1:
        views[LAST_TOKENS][...] = np.arange(batch)
        views[LAST_POSITIONS][...] = past_lengths
        np.minimum(past_lengths, last_position, out=views[POSITIONS][:, 0])
        return
    # A row without new tokens writes one entry all the same: past its end, where nothing reads it.
    last = np.maximum(new_lengths, 1) - 1
    np.add(np.arange(batch) * sequence, last, out=views[LAST_TOKENS])
    np.add(past_lengths, last, out=views[LAST_POSITIONS], casting="unsafe")
    positions = past_lengths[:, None] + np.arange(sequence)
    np.minimum(positions, last_position, out=views[POSITIONS])
