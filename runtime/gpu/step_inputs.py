"""What a graph is told beside the cache: arrays by the contract's revision, and how to fill them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphs.contract import (
    INPUT_IDS,
    INVERSE_TEMPERATURES,
    LAST_POSITIONS,
    NEW_LENGTHS,
    OUTPUT_POSITIONS,
    PAST_LENGTHS,
    POSITIONS,
    Revision,
)
from runtime.decoder import IntArray
from runtime.gpu.packed_arrays import ArrayLayout, PackedArrays
from runtime.wanted_outputs import last_tokens


def input_layout(batch: int, sequence: int, outputs: int, revision: Revision) -> ArrayLayout:
    """The inputs of a run that gives so many logits, but for caches and what stays with the host."""
    tokens, rows = (batch, sequence), (batch,)
    if revision is Revision.HOST:
        return ArrayLayout(
            [
                (INPUT_IDS, np.int64, tokens),
                (PAST_LENGTHS, np.int32, rows),
                (NEW_LENGTHS, np.int32, rows),
                (OUTPUT_POSITIONS, np.int64, (outputs,)),
            ]
        )
    return ArrayLayout(
        [
            (INPUT_IDS, np.int64, tokens),
            (POSITIONS, np.int64, tokens),
            (OUTPUT_POSITIONS, np.int64, (outputs,)),
            (LAST_POSITIONS, np.int32, rows),
            (INVERSE_TEMPERATURES, np.float32, (outputs, 1)),
        ]
    )


def decode_layout(batch: int, revision: Revision) -> ArrayLayout:
    """The inputs of a decode step."""
    return input_layout(batch, 1, batch, revision)


def fill(
    inputs: PackedArrays,
    revision: Revision,
    token_ids: IntArray,
    past_lengths: NDArray[np.int32],
    new_lengths: IntArray,
    temperatures: NDArray[np.float32],
    last_position: int,
    outputs: NDArray[np.int64] | None = None,
) -> None:
    """Writes the inputs of a run into the host's copy.

    Args:
        inputs: of `input_layout`.
        revision: of the contract.
        token_ids: int [batch, sequence].
        past_lengths: tokens of each row that the cache holds.
        new_lengths: valid tokens among the new ones.
        temperatures: of each token whose logits are wanted.
        last_position: that the model has; padding beyond it is given this one.
        outputs: tokens whose logits are wanted; `None` for the last valid one of each row.
    """
    views = inputs.views
    batch, sequence = token_ids.shape
    views[INPUT_IDS][...] = token_ids
    if outputs is None:
        outputs = np.arange(batch) if sequence == 1 else last_tokens(new_lengths, sequence)
    views[OUTPUT_POSITIONS][...] = outputs
    if revision is Revision.HOST:
        views[PAST_LENGTHS][...] = past_lengths
        views[NEW_LENGTHS][...] = new_lengths
        return
    np.divide(1.0, temperatures, out=views[INVERSE_TEMPERATURES][:, 0])
    if sequence == 1:
        views[LAST_POSITIONS][...] = past_lengths
        np.minimum(past_lengths, last_position, out=views[POSITIONS][:, 0])
        return
    # A row without new tokens writes one entry all the same: past its end, where nothing reads it.
    last = np.maximum(new_lengths, 1) - 1
    np.add(past_lengths, last, out=views[LAST_POSITIONS], casting="unsafe")
    positions = past_lengths[:, None] + np.arange(sequence)
    np.minimum(positions, last_position, out=views[POSITIONS])
