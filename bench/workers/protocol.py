"""The worker's side of the conversation with `bench.compare`: one JSON object a line.

A worker is started as `serve JOB`. It loads the model and writes a line with `load_seconds` and
`gives_logits`. Each line on standard input then asks for one thing:

- `{"ask": "generate", "token_ids": [rows, length], "new_tokens": N}`: exactly N tokens for each row,
  greedily. The answer has `seconds` and `token_ids` [rows, N], or `refused` with the reason of a worker
  whose system cannot do that.
- `{"ask": "logits", "token_ids": [rows, length], "places": K}`: what the model says after each of the
  last K tokens of each row. The answer has `shape` [rows, K, vocabulary] and `float32` in base 64.
- `{"ask": "serve", "prompts": [[...], ...], "new_tokens": N, "in_flight": K}`: N tokens for each of
  some prompts of any lengths, K at a time. The answer has `requests`, see `bench.workers.closed_loop`.
- `{"ask": "versions"}`: of the system's packages, by name, under `versions`.

Every answer has `peak_memory_bytes`. The worker waits for the next line without using the CPU, and ends
when its input does. Anything that goes wrong is a traceback on standard error and the end of the
process. Started as `convert CONVERSION`, it makes the files that its system reads instead.

Standard library only.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


class RefusalError(Exception):
    """A system cannot do what it was asked for; the message says why."""


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


@dataclass(frozen=True)
class Conversion:
    """What a worker is to convert.

    Attributes:
        source: folder as Hugging Face writes it, without tokenizer files.
        target: empty folder that gets what the worker's system reads.
        options: as the job's.
    """

    source: str
    target: str
    options: dict[str, Any]


# From prompts [rows, length] and a count to exactly that many new tokens for each row.
Generate = Callable[[list[list[int]], int], list[list[int]]]
# From rows [rows, length] and a count to an array, float32 [rows, count, vocabulary], of the logits
# after each of the last `count` tokens.
Logits = Callable[[list[list[int]], int], Any]


# From prompts, tokens of each and requests at a time to what `bench.workers.closed_loop` gives.
ServeRequests = Callable[[list[list[int]], int, int], list[dict[str, Any]]]


@dataclass(frozen=True)
class Model:
    """A loaded model: how it generates, and how it tells logits and serves where it can."""

    generate: Generate
    logits: Logits | None = None
    serve: ServeRequests | None = None


def serve(
    load: Callable[[Job], Model],
    packages: Iterable[str],
    convert: Callable[[Conversion], None] | None = None,
) -> None:
    """Runs a worker until its input ends, or a conversion.

    Args:
        load: imports the system, which so counts as loading, and loads the model.
        packages: whose versions to tell.
        convert: for a system that reads files of its own kind.
    """
    task, values = sys.argv[1], json.loads(sys.argv[2])
    if task == "convert":
        assert convert is not None
        convert(Conversion(**values))
        return
    replies = _claim_standard_output()
    started = time.perf_counter()
    model = load(Job(**values))
    load_seconds = time.perf_counter() - started
    _reply(replies, load_seconds=load_seconds, gives_logits=model.logits is not None)
    answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "generate": lambda request: _generate(model, request),
        "logits": lambda request: _logits(model, request),
        "serve": lambda request: _serve_requests(model, request),
        "versions": lambda request: _versions(packages),
    }
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        _reply(replies, **answers[request["ask"]](request))


def _generate(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        token_ids = model.generate(request["token_ids"], request["new_tokens"])
    except RefusalError as refusal:
        return {"refused": str(refusal)}
    return {"seconds": time.perf_counter() - started, "token_ids": token_ids}


def _logits(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    assert model.logits is not None
    values = model.logits(request["token_ids"], request["places"])
    encoded = base64.b64encode(values.astype("<f4").tobytes()).decode()
    return {"shape": list(values.shape), "float32": encoded}


def _serve_requests(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    assert model.serve is not None
    asked = request["prompts"], request["new_tokens"], request["in_flight"]
    return {"requests": model.serve(*asked)}


def _versions(packages: Iterable[str]) -> dict[str, Any]:
    # Imported when asked for: reading packages' metadata is no part of a system's start.
    from graphs.versions import package_versions

    return {"versions": package_versions(packages)}


def _claim_standard_output() -> TextIO:
    """A stream to the parent; what libraries print goes to standard error instead."""
    sys.stdout.flush()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(stream: TextIO, **values: Any) -> None:
    print(json.dumps({**values, "peak_memory_bytes": _peak_memory_bytes()}), file=stream, flush=True)


def _peak_memory_bytes() -> int | None:
    """The kernel's mark of this process, as `runtime.system.memory` reads it; `None` without one."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return marks[0] if marks else None
