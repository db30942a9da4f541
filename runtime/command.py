"""What all commands share: how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

USAGE_ERROR, INTERRUPTED = 2, 130


def run_command(
    name: str,
    run: Callable[[argparse.Namespace], None],
    options: argparse.Namespace,
    interrupted: str = "interrupted",
) -> int:
    """Runs a command; returns 0, 2 after one sentence on an error, and 130 on Ctrl-C."""
    try:
        run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{name}: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0
