"""What all commands share: how they end."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable

from runtime.system.interrupts import Watch

USAGE_ERROR = 2


def run_command(
    name: str,
    run: Callable[[argparse.Namespace], None],
    options: argparse.Namespace,
    interrupted: str = "interrupted",
) -> int:
    """Runs a command.

    Returns:
        0; 2 after one sentence on an error; 130 on Ctrl-C and 143 on SIGTERM, about a second later at
        most.
    """
    code = None
    with Watch(f"{name}: {interrupted}") as watch:
        with contextlib.suppress(KeyboardInterrupt):
            code = _run(name, run, options, watch)
            watch.raising = False
        # Something may have swallowed the interrupt, or made another error of it.
        if code is None or watch.signal is not None:
            return watch.end()
        return code


def _run(
    name: str, run: Callable[[argparse.Namespace], None], options: argparse.Namespace, watch: Watch
) -> int:
    try:
        run(options)
        sys.stdout.flush()
    except Exception as error:
        if watch.signal is None:
            return _failed(name, error)
    return 0


def _failed(name: str, error: Exception) -> int:
    if isinstance(error, BrokenPipeError):  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if not isinstance(error, (ValueError, OSError, ImportError, RuntimeError)):
        raise error
    print(f"{name}: {error}", file=sys.stderr)
    return USAGE_ERROR
