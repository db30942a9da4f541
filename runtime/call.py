"""One call of a generator."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

from runtime.call_limits import CallCut, CallLimits
from runtime.generation import Run
from runtime.samplers import Sampler


@dataclass(frozen=True)
class Call:
    """The arguments of `Generator.generate`, and the sampler that was set when it was called."""

    sampler: Sampler
    max_length: int | None
    stop_token_ids: frozenset[int] | Literal["auto"]
    strip_prompt: bool
    limits: CallLimits

    def steps(self, run: Run) -> Generator[dict[int, int]]:
        """The steps of a run up to its end, or to where the limits cut it, which the rows then tell.

        Left early, it frees the run's cache at once.
        """
        if run.cut_reason is not None:  # before its prompts were read
            return
        with contextlib.closing(run.steps()) as steps:
            try:
                yield from steps
            except CallCut as cut:
                run.cut(cut.reason)

    def check_complete(self, run: Run) -> None:
        """Raises if the limits cut a run: for callers who are given nothing that would tell them."""
        reason = run.cut_reason
        if reason is not None:
            tokens = sum(len(row.token_ids) for row in run.rows)
            raise self.limits.error(reason, tokens)
