"""How a call can be ended from outside: a time limit, and an event that any thread may set."""

from __future__ import annotations

import math
import time
from typing import Protocol

from graphs.shown import shown
from runtime.errors import GenerationCancelledError, GenerationTimeoutError
from runtime.numbers import positive_number
from runtime.results import CutReason


class CancelEvent(Protocol):
    """What `cancel` needs to be: a `threading.Event`, or another thing that can be set and asked."""

    def is_set(self) -> bool:
        """Whether the call is to end."""


class CallCut(Exception):  # noqa: N818 (it carries a reason to the caller and is never seen outside)
    """Ends a run at its next step."""

    def __init__(self, reason: CutReason) -> None:
        super().__init__(reason)
        self.reason = reason


class CallLimits:
    """When a call ends although its texts are not complete.

    Args:
        timeout: seconds from now.
        cancel: ends the call once it is set.

    Raises:
        ValueError: if the timeout is no positive number of seconds, or `cancel` no event.
    """

    def __init__(self, timeout: float | None = None, cancel: CancelEvent | None = None) -> None:
        if timeout is not None:
            timeout = positive_number("timeout", timeout, unit="seconds", none="no limit")
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise ValueError(f"cancel must be a threading.Event or None, got {shown(cancel)}")
        self._timeout = timeout
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._cancel = cancel

    def check(self) -> None:
        """Raises `CallCut` if the call is to end now."""
        if self._cancel is not None and self._cancel.is_set():
            raise CallCut("cancelled")
        if self._timeout is not None and time.monotonic() >= self._deadline:
            raise CallCut("timeout")

    def error(self, reason: CutReason, tokens: int) -> Exception:
        """What a caller gets where the result cannot say that it is cut."""
        state = (
            f"after {tokens} new token{'' if tokens == 1 else 's'}; "
            "generate_results() gives the text so far with its finish_reason"
        )
        if reason == "cancelled":
            return GenerationCancelledError(f"the call was cancelled {state}")
        return GenerationTimeoutError(f"the call reached its timeout of {self._timeout:g} s {state}")
