"""Graphs with mutations through the check, and those that it takes through ONNX Runtime.

    python -m tests.fuzz.graphs --count 400000 [--minutes 60] [--seed 0] [--artifacts DIR] [--toy]

Mutates real graphs of small models, of all precisions, targets and phases (`--toy`: those of the tests'
bundles alone, which needs no TensorFlow). Each goes through `runtime.graph_check`; what is taken is
loaded by a child process with the runtime's own options, which may use 1 GB of address space beside
what the library has taken for another graph, and then run three times; loading and running may take
10 s each. An exception of ONNX Runtime is an error and no crash. Prints counts as it goes; exit code 1
if a process has crashed, taken too long or too much. Such graphs are saved.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graphs.contract import Phase
from graphs.manifest import read_manifest
from runtime.graph_check.graph_file import check_graph_file
from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.wire_format import GraphFileError
from tests.fuzz.graph_mutations import Seed, mutate
from tests.fuzz.graph_process import Answer, Request

DATA = Path(__file__).parents[1] / "data"
COMMAND: tuple[str, ...] = ("-m", "tests.fuzz.graph_process")
SECONDS = 10.0
GRAPHS_PER_PROCESS = 2000
TOLD_EVERY = 60.0  # seconds
TOLD_END, MOST_ERRORS = 160, 12
HARM = ("crash", "time", "memory", "check crashed")


def toy_seeds() -> list[Seed]:
    """The graphs of the tests' bundles."""
    found = []
    for name in ("toy_bundle", "toy_bundle_cuda"):
        manifest = read_manifest(DATA / name)
        phases = {manifest.graphs[phase].name: phase for phase in (Phase.DECODE, Phase.PREFILL)}
        for file, phase in phases.items():
            weights, revision = manifest.weights, manifest.contract_revision
            limits = GraphLimits(
                manifest.model, phase, manifest.cache_dtype, weights.name, weights.size, revision
            )
            found.append(Seed(f"{name}/{file}", (DATA / name / file).read_bytes(), limits))
    return found


def traced_seeds() -> list[Seed]:
    """Graphs of one layer with every switch, for every target; and those of the tests' bundles."""
    from tests.graphs.real_graphs import MODELS, graphs

    found = toy_seeds()
    with tempfile.TemporaryDirectory() as folder:
        for model, config in MODELS.items():
            for i, (path, limits) in enumerate(graphs(Path(folder), config)):
                found.append(Seed(f"{model}/{i}", path.read_bytes(), limits))
    return found


class Child:
    """A process of `tests.fuzz.graph_process`, started again when it has ended."""

    def __init__(self, scratch: Path, warm_up: Request) -> None:
        self._scratch = scratch
        self._warm_up = warm_up
        self._process: subprocess.Popen[bytes] | None = None
        self._left = 0

    def ask(self, request: Request) -> Answer:
        """How a graph ended; `crash` or `time` if it did not."""
        if self._process is None or not self._left:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", *COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(self._scratch / "stderr").open("wb"),
            )
            self._left = GRAPHS_PER_PROCESS
            warm = self._exchange(self._warm_up, 6 * SECONDS)
            assert warm.ended == "ran", warm
        self._left -= 1
        return self._exchange(request, 2 * SECONDS)

    def _exchange(self, request: Request, seconds: float) -> Answer:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(request, process.stdin)
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            if not ready:
                self.close()
                return Answer("time")
            answer: Answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError):
            code = process.wait()
            told = (self._scratch / "stderr").read_bytes()[-200:].decode(errors="replace")
            self._process = None
            return Answer("memory" if "bad_alloc" in told else "crash", f"exit code {code}: {told}")
        return Answer("time", "") if max(answer.load_seconds, answer.run_seconds) > SECONDS else answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def fuzz(
    seeds: list[Seed],
    count: int,
    source: random.Random,
    artifacts: Path | None = None,
    seconds: float = math.inf,
) -> Counter[str]:
    """Counts of how mutated graphs ended, at most for some seconds: refused, accepted and how."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    told = started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=place, prefix="opt-graphs-") as name:
        scratch = Path(name)
        folders = {seed.name: _folder(scratch, i, seed) for i, seed in enumerate(seeds)}
        first = seeds[0]
        child = Child(scratch, Request(folders[first.name], first.data, first.limits, True))
        try:
            for number in range(count):
                if time.monotonic() - started > seconds:
                    break
                seed = source.choice(seeds)
                data = mutate(seed, seeds, source)
                answer = _try(seed, data, child, folders[seed.name], source.random() < 0.7)
                counts["graphs"] += 1
                counts[answer.ended] += 1
                counts["accepted"] += answer.ended != "refused"
                if answer.ended in ("load", "run"):
                    errors[answer.told[-TOLD_END:]] += 1
                if answer.ended in HARM:
                    _save(artifacts, f"{source.randrange(10**9)}-{number}", seed, data, answer)
                if time.monotonic() - told > TOLD_EVERY:
                    told = time.monotonic()
                    print(f"{told - started:7.0f} s  {line(counts)}", flush=True)
        finally:
            child.close()
    for told, times in errors.most_common(MOST_ERRORS):
        print(f"{times:7} {told}")
    return counts


def _folder(scratch: Path, number: int, seed: Seed) -> Path:
    """A folder with weights that are small floats where they are read as such."""
    folder = scratch / str(number)
    folder.mkdir()
    drawn = np.random.default_rng(number).standard_normal(seed.limits.weights_size // 4 + 1)
    data = (0.05 * drawn).astype(np.float32).tobytes()[: seed.limits.weights_size]
    (folder / seed.limits.weights_name).write_bytes(data)
    return folder


def _try(seed: Seed, data: bytes, child: Child, folder: Path, packed: bool) -> Answer:
    try:
        check_graph_file(data, seed.limits)
    except GraphFileError as error:
        return Answer("refused", str(error))
    except Exception as error:
        return Answer("check crashed", repr(error))
    return child.ask(Request(folder, data, seed.limits, packed))


def _save(artifacts: Path | None, name: str, seed: Seed, data: bytes, answer: Answer) -> None:
    print(f"{answer.ended}: {seed.name} {answer.told}", flush=True)
    if artifacts is not None:
        artifacts.mkdir(parents=True, exist_ok=True)
        (artifacts / f"{name}.onnx").write_bytes(data)
        (artifacts / f"{name}.txt").write_text(f"{seed.name}\n{answer}\n", "utf-8")


def line(counts: Counter[str]) -> str:
    """The counts in words."""
    names = ("graphs", "refused", "accepted", "ran", "load", "run", *HARM)
    told = {"load": "load errors", "run": "run errors", "time": "over time", "memory": "over memory"}
    return ", ".join(f"{counts[name]} {told.get(name, name)}" for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.graphs", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--artifacts", type=Path, help="where graphs are saved that do harm")
    parser.add_argument("--toy", action="store_true", help="begin with the tests' bundles alone")
    options = parser.parse_args(arguments)
    seeds = toy_seeds() if options.toy else traced_seeds()
    source = random.Random(options.seed)
    counts = fuzz(seeds, options.count, source, options.artifacts, 60 * options.minutes)
    print(line(counts))
    return 1 if any(counts[name] for name in HARM) else 0


if __name__ == "__main__":
    sys.exit(main())
