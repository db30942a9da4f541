"""A decoder as one call sees it: within its limits, and never past a fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.cache_budget import CacheBudget
from runtime.call_limits import CallLimits
from runtime.decoder import BestLogits, Decoder, IntArray, StepOutput
from runtime.errors import LogitsError
from runtime.system.forked_process import check_process


@runtime_checkable
class InterruptibleDecoder(Protocol):
    """A decoder that can end a long step early."""

    def interruptible(self, check: Callable[[], object]) -> Decoder:
        """The same model; a long step of it calls `check` often and ends with what that raises."""


class CallDecoder:
    """A `runtime.decoder.Decoder` for one call of a generator.

    Args:
        decoder: the model.
        budget: what caches may take.
        limits: looked at before each step, and within a long one where the decoder is an
            `InterruptibleDecoder`.
        process: id of the process that opened the model.
    """

    def __init__(self, decoder: Decoder, budget: CacheBudget, limits: CallLimits, process: int) -> None:
        self.config = decoder.config
        check = limits.check
        self._decoder = (
            decoder.interruptible(check) if isinstance(decoder, InterruptibleDecoder) else decoder
        )
        self._budget = budget
        self._check_limits = check
        self._process = process

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache of `batch` rows with room for `capacity` tokens each.

        Raises:
            CacheMemoryError: if it would not fit.
        """
        check_process(self._process)
        self._check_limits()
        return self._budget.new_cache(self._decoder, batch, capacity)

    def append(
        self,
        cache: Any,
        token_ids: IntArray,
        new_lengths: IntArray,
        *,
        hidden_states: bool = False,
    ) -> StepOutput:
        """Appends tokens; see `runtime.decoder.Decoder.append`.

        Raises:
            LogitsError: if a logit of a row with new tokens is NaN or infinite.
        """
        check_process(self._process)
        self._check_limits()
        output = self._decoder.append(cache, token_ids, new_lengths, hidden_states=hidden_states)
        best = output.best
        if best is None or not are_finite(best, new_lengths):
            check_logits(output.logits, new_lengths, cache.lengths)
        return output


def are_finite(best: BestLogits, new_lengths: IntArray) -> bool:
    """Whether the best logits of all rows with new tokens, and their totals, are finite numbers.

    NaN or plus infinity among the other logits makes the total NaN. Minus infinity does not show
    there: its weight is 0, and no sampler takes it.
    """
    # As in `check_logits`: one pass over all.
    sums = np.einsum("ij->", best.logits), np.einsum("i->", best.totals)
    if all(map(math.isfinite, sums)):
        return True
    rows = np.flatnonzero(new_lengths)
    return bool(np.isfinite(best.logits[rows]).all() and np.isfinite(best.totals[rows]).all())


def check_logits(
    logits: NDArray[np.float32], new_lengths: IntArray, lengths: NDArray[np.int32]
) -> None:
    """Raises `LogitsError` if a logit of a row with new tokens is no finite number.

    Args:
        logits: [rows, vocabulary]; rows without new tokens may hold anything.
        new_lengths: tokens that each row has just got.
        lengths: tokens that each row has.
    """
    # One pass over all: NaN and infinities make the sum one. `einsum` sums faster than `sum`, without
    # a warning.
    if np.isfinite(np.einsum("ij->", logits)):
        return
    for row in np.flatnonzero(new_lengths):
        count = int(np.count_nonzero(~np.isfinite(logits[row])))
        if count:
            raise LogitsError(
                f"the model gave {count:,} of {logits.shape[1]:,} logits that are not finite numbers "
                f"(NaN or infinity) in row {row} of {len(logits)}, after {lengths[row]} tokens: its "
                "weights are damaged, or overflow in this precision. Check the bundle with opt-export "
                "--check; if it is whole, export it in another precision (fp32 holds the widest range)"
            )
