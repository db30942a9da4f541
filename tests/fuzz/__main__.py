"""Fuzzes a reader of files.

    python -m tests.fuzz --list
    python -m tests.fuzz NAME --minutes 30 [--artifacts DIR]
    python -m tests.fuzz NAME --replay FILE ...

Coverage-guided by atheris (https://github.com/google/atheris): pip install 'opt-onnx[fuzz]'. An input
that ends in another error than the reader's own, ends the process, takes more than 5 seconds or more
than 2 GB is saved, and the fuzzer starts again. Prints counts; exit code 1 if anything was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.harnesses import HARNESSES, run_once

SECONDS_PER_INPUT = 5
MEGABYTES = 2048
MAX_FINDINGS = 20  # mostly one and the same, found again
_RUNS = re.compile(r"^#(\d+)\s.*?cov: (\d+)", re.MULTILINE)
_ALL_RUNS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_LOG_END = 4000  # characters


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes a file reader.")
    parser.add_argument("name", nargs="?", choices=tuple(HARNESSES))
    parser.add_argument("--list", action="store_true", help="what can be fuzzed")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--artifacts", type=Path, help="where inputs are saved that do harm")
    parser.add_argument("--replay", type=Path, nargs="+", help="read these inputs once instead")
    options = parser.parse_args(arguments)
    if options.list or options.name is None:
        for name, harness in HARNESSES.items():
            print(f"{name:12} {harness.about}")
        return 0
    if options.replay:
        return _replay(options.name, options.replay)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install 'opt-onnx[fuzz]'", file=sys.stderr)
        return 2
    artifacts = options.artifacts or Path(tempfile.mkdtemp(prefix=f"fuzz-{options.name}-"))
    return _fuzz(options.name, 60 * options.minutes, artifacts)


def _replay(name: str, paths: list[Path]) -> int:
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{path}: {run_once(HARNESSES[name], path.read_bytes(), Path(folder))!r}")
    return 0


def _fuzz(name: str, seconds: float, artifacts: Path) -> int:
    artifacts.mkdir(parents=True, exist_ok=True)
    known = set(artifacts.iterdir())
    started = time.monotonic()
    runs = edges = starts = 0
    with tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(HARNESSES[name].seeds()):
            Path(corpus, f"seed-{i}").write_bytes(seed)
        while (left := seconds - (time.monotonic() - started)) > 1:
            log = _run_target(name, Path(corpus), artifacts, int(left))
            starts += 1
            runs += _count(log)
            edges = max([edges, *(int(found[2]) for found in _RUNS.finditer(log))])
            found = sorted(set(artifacts.iterdir()) - known)
            if starts > len(found) and not _count(log):  # it cannot even start
                print(log[-_LOG_END:], file=sys.stderr)
                return 2
            if len(found) >= MAX_FINDINGS:
                break
    hangs = [path for path in found if path.name.startswith("timeout-")]
    taken = time.monotonic() - started
    print(
        f"{name}: {runs} runs in {taken:.0f} s, {runs / taken:.0f} a second, {edges} edges covered, "
        f"{len(found) - len(hangs)} crashes, {len(hangs)} hangs"
    )
    for path in found:
        print(f"- {path}")
    return 1 if found else 0


def _run_target(name: str, corpus: Path, artifacts: Path, seconds: int) -> str:
    """Runs until something is found or time is over; returns libFuzzer's log."""
    limits = {
        "max_total_time": seconds,
        "timeout": SECONDS_PER_INPUT,
        "rss_limit_mb": MEGABYTES,
        "artifact_prefix": f"{artifacts}/",
        "print_final_stats": 1,
    }
    command = [sys.executable, "-m", "tests.fuzz.target", name, *_flags(limits), str(corpus)]
    done = subprocess.run(command, capture_output=True, errors="replace", check=False)
    if done.returncode:  # atheris prints tracebacks to standard output
        print((done.stdout or done.stderr)[-_LOG_END:], file=sys.stderr)
    return done.stderr


def _flags(limits: dict[str, object]) -> Iterator[str]:
    return (f"-{name}={value}" for name, value in limits.items())


def _count(log: str) -> int:
    """Inputs that were run: libFuzzer's own count, or that of its last line of progress."""
    if found := _ALL_RUNS.search(log):
        return int(found[1])
    return max((int(found[1]) for found in _RUNS.finditer(log)), default=0)


if __name__ == "__main__":
    sys.exit(main())
