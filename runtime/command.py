"""What all commands share: how their options are read, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from runtime.sentences import is_expected, legible, sentence
from runtime.system.interrupts import Watch
from runtime.system.standard_streams import (
    flush_out,
    prepare_streams,
    print_error,
    print_out,
    silence,
)

USAGE_ERROR = 2


class CommandParser(argparse.ArgumentParser):
    """Takes options and other arguments in any order, also between several of the others."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The options of a command line; what follows `--` are no options.

        Raises:
            SystemExit: with 0 after `--help`, with 2 after a sentence on what is wrong.
        """
        prepare_streams()
        given = list(sys.argv[1:] if args is None else args)
        at = given.index("--") if "--" in given else len(given)
        # argparse's own ways with "--" differ from version to version. No argument has a NUL.
        marks = {f"\0{i}": text for i, text in enumerate(given[at + 1 :])}
        before = [
            f"{flag}=\0" if flag.startswith("--") and value == "--" else text
            for text in given[:at]
            for flag, _, value in [text.partition("=")]
        ]
        try:
            options = self.parse_intermixed_args([*before, *marks], namespace)
        except OSError as error:  # the help has no place to go
            raise SystemExit(_failed(self.prog, error)) from None
        marks["\0"] = "--"  # the value of an option
        for name, value in vars(options).items():
            if isinstance(value, str):
                setattr(options, name, marks.get(value, value))
            elif isinstance(value, list):
                setattr(options, name, [marks.get(one, one) for one in value])
        return options

    def error(self, message: str) -> NoReturn:
        """Ends the process with the usage and one sentence."""
        super().error(legible(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own ignores what cannot be written.
        if file is sys.stdout:
            print_out(message, end="")
        else:
            print_error(message.removesuffix("\n"))


def run_command(
    name: str,
    run: Callable[[Any], int | None],
    options: Any,
    interrupted: str = "interrupted",
) -> int:
    """Runs a command.

    Args:
        name: of the command.
        run: does it, given the options; returns another exit code than 0 where there is one.
        options: from `CommandParser.parse_args`.
        interrupted: what to tell when a signal has ended it.

    Returns:
        `run`'s; 2 after one sentence on an error; 130 on Ctrl-C and 143 on SIGTERM, about a second
        later at most.
    """
    prepare_streams()
    code = None
    try:
        with Watch(f"{name}: {interrupted}") as watch:
            with contextlib.suppress(KeyboardInterrupt):
                code = _run(name, run, options, watch)
                watch.raising = False
            # Something may have swallowed the interrupt, or made another error of it.
            if code is None or watch.signal is not None:
                return watch.end()
            return code
    except (RuntimeError, MemoryError) as error:  # no memory for the thread that watches
        return _failed(name, error)


def _run(name: str, run: Callable[[Any], int | None], options: Any, watch: Watch) -> int:
    try:
        code = run(options)
        flush_out()
    except Exception as error:
        if watch.signal is None:
            return _failed(name, error)
        return 0
    return code or 0


def _failed(name: str, error: Exception) -> int:
    if isinstance(error, BrokenPipeError):  # the reader of our output has left
        silence(sys.stdout)
        return 0
    if not is_expected(error):
        raise error
    _flush_or_silence()
    print_error(f"{name}: {sentence(error)}")
    return USAGE_ERROR


def _flush_or_silence() -> None:
    try:
        flush_out()
    except (OSError, ValueError):
        silence(sys.stdout)
