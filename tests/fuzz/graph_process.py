"""A process that loads and runs graphs that the check has taken: `python -m tests.fuzz.graph_process`.

It may use a gigabyte of address space more than it has once it has loaded and run one graph; who
started it watches the time. Reads pickled requests from standard input and writes how each one ended.
"""

from __future__ import annotations

import pickle
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from graphs.contract import Phase, graph_inputs, graph_outputs
from runtime.errors import BundleError
from runtime.graph_check.limits import GraphLimits
from runtime.onnx_runtime import ort
from runtime.session_opener import SessionOpener

MEMORY = 1024**3
MOST_TOLD = 300
CAPACITY = 8
_ELEMENTS = {"float16": np.float16, "bfloat16": 16}


@dataclass(frozen=True)
class Request:
    """A graph to load and run.

    Attributes:
        folder: has the weights file, and gets the graph.
        data: the graph; `None` if it lies there.
        limits: what the check was told.
        packed: whether weights are packed.
    """

    folder: Path
    data: bytes
    limits: GraphLimits
    packed: bool


@dataclass(frozen=True)
class Answer:
    """How that ended: `ran`, or the error of loading or running; each in seconds."""

    ended: str
    told: str = ""
    load_seconds: float = 0.0
    run_seconds: float = 0.0


def run_graph(request: Request) -> Answer:
    """Loads a graph with the runtime's own options and runs it a few times, its caches in place."""
    (request.folder / "model.onnx").write_bytes(request.data)
    opener = SessionOpener(SimpleNamespace(folder=request.folder), 1)  # type: ignore[arg-type]
    entry: Any = SimpleNamespace(name="model.onnx")
    started = time.perf_counter()
    try:
        session = opener.packed_in_memory(entry) if request.packed else opener.unpacked(entry)
    except BundleError as error:
        return _failed("load", error, time.perf_counter() - started)
    loaded = time.perf_counter()
    try:
        for past, new in _calls(request.limits):
            _run(session, request.limits, past, new)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        return _failed("run", error, loaded - started, time.perf_counter() - loaded)
    return Answer("ran", "", loaded - started, time.perf_counter() - loaded)


def _failed(where: str, error: Exception, *seconds: float) -> Answer:
    told = str(error)
    full = "bad_alloc" in told or "Failed to allocate" in told or isinstance(error, MemoryError)
    return Answer("memory" if full else where, " ".join(told.split())[:MOST_TOLD], *seconds)


def _calls(limits: GraphLimits) -> list[tuple[list[int], list[int]]]:
    """Pasts and new tokens of rows: ragged, after a past, and at the end of their room."""
    if limits.phase is Phase.DECODE:
        return [([3, 0, 5], [1, 1, 1]), ([CAPACITY - 1], [1]), ([2, 4], [1, 0])]
    return [([0, 0, 0], [4, 1, 0]), ([3], [2]), ([CAPACITY - 2], [2])]


def _run(session: Any, limits: GraphLimits, past: list[int], new: list[int]) -> None:
    config, cache_dtype, revision = limits.config, limits.cache_dtype, limits.revision
    batch, sequence = len(past), max(new)
    sizes = {"batch": batch, "sequence": sequence, "capacity": CAPACITY, "outputs": batch + 2}
    last = np.maximum(new, 1) - 1
    positions = np.array(past)[:, None] + np.arange(sequence)
    total = CAPACITY if sequence == 1 else sequence + max(past)
    numbers = {
        "input_ids": np.arange(batch * sequence).reshape(batch, sequence) % config.vocabulary_size,
        "past_lengths": np.array(past),
        "new_lengths": np.array(new),
        "positions": np.minimum(positions, config.max_sequence_length - 1),
        "output_positions": [*(np.arange(batch) * sequence + last), batch * sequence - 1, 0],
        "last_positions": np.array(past) + last,
        "total_length": np.array([total]),
        "inverse_temperatures": 1,
    }
    binding = session.io_binding()
    kept = []

    def value(spec: Any) -> Any:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        wide = {"bfloat16": "uint16"}.get(spec.dtype, spec.dtype)
        array = np.ascontiguousarray(np.broadcast_to(numbers.get(spec.name, 0), shape).astype(wide))
        kept.append(array)
        if spec.dtype == "bfloat16":
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, 16)
        return ort.OrtValue.ortvalue_from_numpy(array)

    caches: dict[str, Any] = {}
    for spec in graph_inputs(config, limits.phase, cache_dtype, revision):
        made = value(spec)
        binding.bind_ortvalue_input(spec.name, made)
        caches[spec.name.replace("past_key_values", "present")] = made
    for spec in graph_outputs(config, limits.phase, cache_dtype, revision):
        binding.bind_ortvalue_output(spec.name, caches.get(spec.name) or value(spec))
    session.run_with_iobinding(binding)


def main() -> None:
    source, target = sys.stdin.buffer, sys.stdout.buffer
    first = True
    ort.set_default_logger_severity(4)
    while True:
        try:
            request = pickle.load(source)
        except EOFError:
            return
        pickle.dump(run_graph(request), target)
        target.flush()
        if first:  # everything that the library itself needs is there
            used = int(Path("/proc/self/statm").read_text("ascii").split()[0])
            most = used * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            first = False


if __name__ == "__main__":
    from tests.fuzz import graph_process  # whose classes are those of who started it

    graph_process.main()
