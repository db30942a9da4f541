"""The worker's side of the conversation with `bench.compare`: one JSON object a line.

A worker is started with a `Job` as its argument. It loads the model and writes a line with
`load_seconds`, `versions` and `peak_memory_bytes`. For each line
`{"token_ids": [rows, length], "new_tokens": N}` on standard input it then generates exactly N tokens
for each row, greedily, and answers with `seconds`, `token_ids` [rows, N] and `peak_memory_bytes`. It
waits for the next line without using the CPU, and ends when its input does. Anything that goes wrong
is a traceback on standard error and the end of the process.

Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from graphs.versions import package_versions


@dataclass(frozen=True)
class Job:
    """What a worker is to load.

    Attributes:
        checkpoint: folder of the kind that its system reads.
        threads: CPU threads to compute with.
        options: what tells variants of one system apart.
    """

    checkpoint: str
    threads: int
    options: dict[str, Any]


# From prompts [rows, length] and a count to exactly that many new tokens for each row.
Generate = Callable[[list[list[int]], int], list[list[int]]]


def serve(load: Callable[[Job], Generate], packages: Iterable[str]) -> None:
    """Runs a worker until its input ends.

    Args:
        load: imports the system, which so counts as loading, and loads the model.
        packages: whose versions to tell.
    """
    replies = _claim_standard_output()
    job = Job(**json.loads(sys.argv[1]))
    started = time.perf_counter()
    generate = load(job)
    load_seconds = time.perf_counter() - started
    _reply(replies, load_seconds=load_seconds, versions=package_versions(packages))
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        started = time.perf_counter()
        token_ids = generate(request["token_ids"], request["new_tokens"])
        seconds = time.perf_counter() - started
        _reply(replies, seconds=seconds, token_ids=token_ids)


def _claim_standard_output() -> TextIO:
    """A stream to the parent; what libraries print goes to standard error instead."""
    sys.stdout.flush()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(stream: TextIO, **values: Any) -> None:
    print(json.dumps({**values, "peak_memory_bytes": _peak_memory_bytes()}), file=stream, flush=True)


def _peak_memory_bytes() -> int | None:
    """The kernel's mark of this process, as `runtime.memory` reads it; `None` where it has none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return marks[0] if marks else None
