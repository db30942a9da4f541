"""`python -m tests.load.storm BUNDLE`: many threads on one generator, each as if alone."""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime import Generator
from tests.load.jobs import KINDS, Job, Turns, make_jobs


@dataclass
class StormReport:
    """What came of the calls, by kind of call."""

    calls: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    first_error: str = ""
    seconds: float = 0.0
    cache_bytes_left: int = 0

    @property
    def broken(self) -> bool:
        """Whether a call gave something else than alone, failed, or left its cache behind."""
        return bool(self.different.total() or self.errors.total() or self.cache_bytes_left)


def storm(generator: Generator, threads: int, generations: int, jobs: int = 60) -> StormReport:
    """Runs jobs one after another, then `generations` of them in each of the threads at once."""
    turns = Turns(generator)
    pool = [(job, turns.run(job)) for job in make_jobs(generator, jobs)]
    report, lock = StormReport(), threading.Lock()
    barrier = threading.Barrier(threads)

    def work(number: int) -> None:
        draws = random.Random(number)
        barrier.wait()
        for job, alone in draws.choices(pool, k=generations):
            _run(turns, job, alone, report, lock)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    report.seconds = time.perf_counter() - started
    report.cache_bytes_left = generator.cache_bytes_in_use
    return report


def _run(turns: Turns, job: Job, alone: Any, report: StormReport, lock: threading.Lock) -> None:
    error, same = "", False
    try:
        same = turns.run(job) == alone
    except Exception as problem:
        error = f"{job}: {type(problem).__name__}: {problem}"
    with lock:
        report.calls[job.kind] += 1
        report.errors[job.kind] += bool(error)
        report.different[job.kind] += not same and not error
        report.first_error = report.first_error or error


def format_report(report: StormReport) -> list[str]:
    """A table of counts, and what else there is to say."""
    lines = ["| call | calls | as alone | different | errors |", "|---|---:|---:|---:|---:|"]
    for kind in (*KINDS, "all"):
        counts = [
            c.total() if kind == "all" else c[kind]
            for c in (report.calls, report.different, report.errors)
        ]
        calls, different, errors = counts
        lines.append(f"| {kind} | {calls} | {calls - different - errors} | {different} | {errors} |")
    rate = report.calls.total() / report.seconds
    lines.append(f"\n{report.seconds:.1f} s, {rate:.1f} calls a second")
    lines.append(f"cache bytes left: {report.cache_bytes_left}")
    return [*lines, f"first error: {report.first_error}"] if report.first_error else lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 if a call did not give what it gives alone."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.storm", description=__doc__)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--threads", type=int, default=16, metavar="N", help="callers (default: 16)")
    parser.add_argument("--generations", type=int, default=50, metavar="N", help="of each caller")
    options = parser.parse_args(arguments)
    generator = Generator.from_bundle(options.bundle, device="cpu")
    report = storm(generator, options.threads, options.generations)
    print("\n".join(format_report(report)))
    return int(report.broken)


if __name__ == "__main__":
    sys.exit(main())
