"""`opt-generate --input`: a job from a file to a file."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from runtime.generator import Generator
from runtime.jobs.job import Job, Tally
from runtime.jobs.records import to_line
from runtime.jobs.requests import Request, open_input, read_requests
from runtime.jobs.resume import Finished, find_finished
from runtime.option_arguments import as_options
from runtime.system.output_file import OutputFile, check_output, open_output
from runtime.system.standard_streams import is_unicode, print_error, print_out

SOME_ERRORS = 1  # the exit code


def run_job_command(
    options: argparse.Namespace,
    open_generator: Callable[[], Generator],
    settings: Mapping[str, Any],
    generation_options: Mapping[str, Any],
) -> int:
    """Does a job; what can be checked without the bundle is checked before it is loaded.

    Args:
        options: of `opt-generate`.
        open_generator: loads the bundle.
        settings: arguments of `Generator.generate_results`.
        generation_options: `GenerationOptions` of all lines, as plain values.

    Returns:
        The command's exit code, 0 or 1.
    """
    output_name = None if options.output == "-" else options.output
    if options.resume and output_name is None:
        raise ValueError("--resume goes with --output FILE, whose records it keeps")
    if options.resume and output_name is not None and Path(output_name).exists():
        _check_regular(Path(output_name).is_file(), output_name)  # opening a pipe would wait
    check_output("--output", output_name)
    with open_input(options.input) as (file, name), _opened(output_name) as output:
        _check_different(file, output, name)
        requests, tally = read_requests(file, name), Tally()
        if options.resume and output is not None:
            found = _resume(output, requests, name, options, generation_options)
            requests, tally = found.rest, Tally(found.records, found.errors)
        generator = open_generator()
        generator.check_options(
            settings["max_length"],
            settings["stop_token_ids"],
            settings["timeout"],
            as_options(generation_options),
        )
        job = Job(generator, settings, options.batch_size, options.strict, name, generation_options)
        try:
            job.run(requests, _writer(output), tally)
        except ValueError as error:
            if output is None or not tally.records:
                raise
            raise ValueError(
                f"{error}. {output.name} has {_count(tally.records, 'record')}; --resume goes on after "
                f"{'it' if tally.records == 1 else 'them'}"
            ) from None
        if output is not None:
            output.begin()
    if not tally.errors:
        return 0
    count = f"{tally.errors} of {_count(tally.records, 'record')}"
    print_error(f'opt-generate: {count} of {output_name or "standard output"} tell of an "error"')
    return SOME_ERRORS


@contextlib.contextmanager
def _opened(name: str | None) -> Iterator[OutputFile | None]:
    if name is None:
        yield None
        return
    with open_output("--output", name) as file:
        yield file


def _check_different(source: BinaryIO, output: OutputFile | None, name: str) -> None:
    """A job that reads what it writes has no end, or loses its input."""
    try:
        read = os.fstat(source.fileno())
        written = os.fstat(sys.stdout.fileno()) if output is None else output.status
    except (OSError, ValueError):  # no files of the system's
        return
    one_end = stat.S_ISREG(read.st_mode) or stat.S_ISFIFO(read.st_mode)
    if one_end and os.path.samestat(read, written):
        raise ValueError(f"{name} is the input and the output too; name another --output")


def _resume(
    output: OutputFile,
    requests: Iterator[Request],
    name: str,
    options: argparse.Namespace,
    generation_options: Mapping[str, Any],
) -> Finished:
    _check_regular(output.is_regular, output.name)
    with output.reader() as reader:
        found = find_finished(
            reader,
            requests,
            (output.name, name),
            options.max_length,
            bool(options.return_all_beams),
            generation_options,
        )
    output.begin(found.size)
    cut = "; one that was cut off is done again" if found.is_cut else ""
    if found.records or cut:
        print_error(f"{output.name} has {_count(found.records, 'record')}, which are kept{cut}")
    return found


def _check_regular(is_regular: bool, name: str) -> None:
    if not is_regular:
        raise ValueError(f"--resume reads what --output has, and {name} is no regular file")


def _writer(output: OutputFile | None) -> Callable[[dict[str, Any]], None]:
    if output is not None:
        return lambda record: output.write(to_line(record).encode())
    ascii_only = not is_unicode(sys.stdout)  # so that it is UTF-8 wherever it is sent to
    return lambda record: print_out(to_line(record, ascii_only=ascii_only), end="")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
