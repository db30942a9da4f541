"""Signals of processes that tests start."""

from __future__ import annotations

import signal

from runtime.system.interrupts import SIGNALS


def heed_signals() -> None:
    """In a new process: signals do again what they do by default.

    A shell starts what runs in its background with Ctrl-C ignored, and `nohup` with the terminal's end.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
