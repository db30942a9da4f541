"""Requests that came together."""

from __future__ import annotations

import time
from collections.abc import Sequence as Listed

from runtime.call_limits import CallCut, CallLimits
from runtime.engine.request import Request
from runtime.engine.search.search import Search
from runtime.engine.sequence import Sequence
from runtime.results import CutReason


class Call:
    """The sequences of one call of a generator, or of one client's request.

    Args:
        requests: one for each sequence.
        search: how their tokens are chosen.
        limits: when they end although their texts are not complete.
        priority: of two calls that wait, the one with the lower number is served first; see
            `runtime.engine.scheduler`.

    Attributes:
        sequences: in the order of the requests.
        cut_reason: why the limits ended the call, `None` if they did not.
        error: what ended it, `None` if nothing did: the model's, or its sampler's.
        left: whether nobody wants it any more.
        arrival: time at which it was made, by `time.monotonic`.
    """

    def __init__(
        self, requests: Listed[Request], search: Search, limits: CallLimits, priority: int = 0
    ) -> None:
        self.sequences = [Sequence(request, i) for i, request in enumerate(requests)]
        self.search = search
        self.limits = limits
        self.priority = priority
        self.cut_reason: CutReason | None = None
        self.error: BaseException | None = None
        self.left = False
        self.arrival = time.monotonic()
        for sequence in self.sequences:
            if sequence.finish_reason is not None:
                search.skip(sequence)

    @property
    def ended(self) -> bool:
        """Whether nothing of it is to be done."""
        if self.error is not None or self.left:
            return True
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    def check_limits(self) -> None:
        """Ends what is not complete if the limits say so."""
        try:
            self.limits.check()
        except CallCut as cut:
            self.cut(cut.reason)

    def cut(self, reason: CutReason) -> None:
        """Ends the sequences that are not complete; their tokens so far stay."""
        self.cut_reason = reason
        for sequence in self.sequences:
            if sequence.finish_reason is None:
                self.search.cut(sequence, reason)

    def check_complete(self) -> None:
        """Raises what ended the call before its texts were complete, if something did."""
        self.check_error()
        if self.cut_reason is not None:
            tokens = sum(len(sequence.token_ids) for sequence in self.sequences)
            raise self.limits.error(self.cut_reason, tokens)

    def check_error(self) -> None:
        """Raises the error that ended the call, if one did."""
        if self.error is not None:
            raise self.error


Entry = tuple[Call, Sequence]
