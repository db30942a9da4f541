"""Where a job that ended early is to go on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from runtime.jobs.records import begins_record_of, is_error, is_record_of
from runtime.jobs.requests import MAX_LINE_BYTES, OPTIONS, Request

_MOST_BYTES = 4 * MAX_LINE_BYTES  # of a record: the line's own and a text


@dataclass(frozen=True)
class Finished:
    """What an output holds of a job.

    Attributes:
        size: bytes of its whole records.
        records: how many these are.
        errors: how many of them tell of an error.
        is_cut: whether a part of another record comes after them.
        rest: the requests that have no record.
    """

    size: int
    records: int
    errors: int
    is_cut: bool
    rest: Iterator[Request]


def find_finished(
    output: BinaryIO,
    requests: Iterator[Request],
    names: tuple[str, str],
    max_length: int | None = None,
    all_beams: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Finished:
    """Compares an output with the input, record by record.

    Args:
        output: what is there, from its beginning.
        requests: of the input; those that have a record are taken from it.
        names: of the output and of the input, for messages.
        max_length: what the job is told to make texts of; `None` for the bundle's default.
        all_beams: whether the job gives all beams.
        options: `GenerationOptions` of all lines, as plain values.

    Raises:
        ValueError: naming the first line that no job with this input and these options has written.
    """
    size = records = errors = 0
    while line := output.readline(_MOST_BYTES):
        request, number = next(requests, None), records + 1
        if request is None:
            raise _other(names, number, f"{names[1]} has only {records} lines to do")
        record = _parse(line)
        if record is None:  # what a process was writing when it was killed, or the machine lost power
            if output.readline(1) or not begins_record_of(line, request):
                raise _other(names, number, "it is no record of a job")
            return Finished(size, records, errors, True, itertools.chain([request], requests))
        if not is_record_of(record, request):
            raise _other(names, number, f"it is not from line {request.line} of {names[1]}")
        own = request.fields.get(OPTIONS)
        asked = {**(options or {}), **(own if isinstance(own, dict) else {})}
        if problem := _other_options(record, max_length, all_beams, asked):
            raise _other(names, number, problem)
        size += len(line)
        records += 1
        errors += is_error(record)
    return Finished(size, records, errors, False, requests)


def _parse(line: bytes) -> Any | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _other_options(
    record: Mapping[str, Any], max_length: int | None, all_beams: bool, asked: Mapping[str, Any]
) -> str | None:
    """How a record shows that it was written with other options; `None` if it does not."""
    if is_error(record):
        return None
    if ("beams" in record) != all_beams:
        return f"it was written {'without' if all_beams else 'with'} --all-beams"
    samples = len(record.get("samples", [record]))
    if samples != (asked.get("n") or 1):
        return f"it was written with --n {samples}"
    for name in ("logprobs", "prompt_logprobs"):
        if asked.get(name) is not None and name not in record:
            return f"it was written without --{name.replace('_', '-')}"
    if record["finish_reason"] != "length":
        return None
    new, most = record.get("generated_tokens", 0), asked.get("max_new_tokens")
    length = record.get("prompt_tokens", 0) + new
    if most is not None and new > most:
        return f"it was written with --max-new-tokens {new}"
    if max_length is not None and length != max_length and new != most:
        return f"it was written with --max-length {length}"
    return None


def _other(names: tuple[str, str], number: int, why: str) -> ValueError:
    return ValueError(
        f"--resume cannot go on with {names[0]}: line {number}: {why}; give the input and options that "
        "it was begun with, or name another --output"
    )
