"""Logits that are no numbers: found before a sampler sees them, row by row."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import BestLogits, StepOutput
from runtime.errors import LogitsError


def bad_rows(output: StepOutput, rows: list[int]) -> dict[int, int]:
    """Rows whose logits are not all finite numbers, and how many are not.

    Args:
        output: of the step.
        rows: those with new tokens; others may hold anything.
    """
    best = output.best
    if best is not None and _are_finite(best, rows):
        return {}
    logits = output.logits
    chosen = logits if len(rows) == len(logits) else logits[min(rows) : max(rows) + 1]
    # One pass over all: NaN and infinities make the sum one. `einsum` sums faster than `sum`, without
    # a warning.
    if math.isfinite(np.einsum("ij->", chosen)):
        return {}
    counts = {row: int(np.count_nonzero(~np.isfinite(logits[row]))) for row in rows}
    return {row: count for row, count in counts.items() if count}


def logits_error(count: int, vocabulary: int, row: int, rows: int, tokens: int) -> LogitsError:
    """What the call gets whose row has such logits, after so many tokens."""
    return LogitsError(
        f"the model gave {count:,} of {vocabulary:,} logits that are not finite numbers (NaN or "
        f"infinity) in row {row} of {rows}, after {tokens} tokens: its weights are damaged, or "
        "overflow in this precision. Check the bundle with opt-export --check; if it is whole, export "
        "it in another precision (fp32 holds the widest range)"
    )


def _are_finite(best: BestLogits, rows: list[int]) -> bool:
    """Whether the best logits of all rows with new tokens, and their totals, are finite numbers.

    NaN or plus infinity among the other logits makes the total NaN. Minus infinity does not show
    there: its weight is 0, and no sampler takes it.
    """
    # One pass over all, too.
    sums = np.einsum("ij->", best.logits), np.einsum("i->", best.totals)
    if all(map(math.isfinite, sums)):
        return True
    found: NDArray[np.float32] = best.logits[rows]
    return bool(np.isfinite(found).all() and np.isfinite(best.totals[rows]).all())
