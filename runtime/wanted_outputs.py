"""Which new tokens a run gives logits of: each row's last one, or those that a caller names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown
from runtime.decoder import IntArray


def last_tokens(new_lengths: IntArray, sequence: int) -> NDArray[np.int64]:
    """Each row's last valid new token, counted over rows times tokens; its first where it has none."""
    rows = np.arange(len(new_lengths), dtype=np.int64)
    last: NDArray[np.int64] = rows * sequence + np.maximum(new_lengths, 1) - 1
    return last


class WantedOutputs:
    """The logits of the new tokens that a caller names, filled in as they are run.

    Args:
        outputs: int [m], counted over rows times tokens, in any order.
        batch, sequence: rows and tokens of each that the call appends.
        vocabulary: of the model.

    Attributes:
        logits: float32 [m, vocabulary]; zeros where a token is padding that nothing runs.

    Raises:
        ValueError: if the outputs are no such list.
    """

    def __init__(self, outputs: IntArray, batch: int, sequence: int, vocabulary: int) -> None:
        outputs = np.asarray(outputs)
        if outputs.ndim != 1 or outputs.dtype.kind not in "iu":
            raise ValueError(
                f"outputs must be a list of whole numbers, got {outputs.dtype} {shown(outputs.shape)}"
            )
        # The graph check rests on this: not every kernel looks where it reads.
        if len(outputs) and not 0 <= int(outputs.min()) <= int(outputs.max()) < batch * sequence:
            raise ValueError(
                f"outputs must be from 0 to {batch * sequence - 1}, as there are {batch} rows of "
                f"{sequence} tokens; got {outputs.min()} to {outputs.max()}"
            )
        self.logits = np.zeros((len(outputs), vocabulary), np.float32)
        self._rows, self._columns = np.divmod(outputs.astype(np.int64), sequence)

    def places(self, rows: slice, columns: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the wanted tokens are among some, and where they are there.

        Returns:
            Places in `logits`, rising, and positions counted over the rows times the columns: one at
            least, as a graph gives the logits of one, be they wanted or not.
        """
        inside = (self._rows >= rows.start) & (self._rows < rows.stop)
        inside &= (self._columns >= columns.start) & (self._columns < columns.stop)
        found = np.flatnonzero(inside)
        width = columns.stop - columns.start
        own_rows, own_columns = self._rows[found] - rows.start, self._columns[found] - columns.start
        positions = own_rows * width + own_columns
        return found, positions if len(found) else np.zeros(1, np.int64)

    def buffer(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Float32 for as many positions: of `logits` themselves, where they lie side by side there."""
        if len(places) and places[-1] - places[0] == len(places) - 1:
            return self.logits[places[0] : places[-1] + 1]
        return np.empty((max(len(places), 1), self.logits.shape[1]), np.float32)

    def put(self, places: NDArray[np.int64], found: NDArray[np.float32]) -> None:
        """Takes what a run has written to the `buffer` of places."""
        if len(places) and not np.may_share_memory(found, self.logits):
            self.logits[places] = found
