"""`python -m tests.load.soak BUNDLE`: thousands of generations, and memory, files and threads stay.

Linux only: the figures are those of `/proc/self`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runtime import Generator
from tests.load.jobs import Job, Turns, make_jobs

WARM_UP = 0.1  # of the generations, after every job was run once by every caller
SAMPLES = 5  # while generating
PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Footprint:
    """What the process holds.

    Attributes:
        moment: when.
        resident: bytes in RAM, mapped files included.
        anonymous: those of them that no file backs.
        files: open file descriptors.
        threads: of the operating system.
        cache_bytes: KV caches that the generator counts.
    """

    moment: str
    resident: int
    anonymous: int
    files: int
    threads: int
    cache_bytes: int


@dataclass(frozen=True)
class SoakReport:
    """The footprints from the end of the warm-up on, and how much growth is allowed."""

    footprints: tuple[Footprint, ...]
    growth_allowed: float

    @property
    def growth(self) -> float:
        """Of resident memory since the warm-up, as a share."""
        first, last = self.footprints[0], self.footprints[-1]
        return last.resident / first.resident - 1

    @property
    def problems(self) -> list[str]:
        """The bounds that are broken."""
        first, last = self.footprints[0], self.footprints[-1]
        found = []
        if self.growth >= self.growth_allowed:
            found.append(f"memory grew by {self.growth:.2%}, allowed: {self.growth_allowed:.0%}")
        if last.files > first.files:
            found.append(f"{last.files - first.files} more open files")
        if last.threads > first.threads:
            found.append(f"{last.threads - first.threads} more threads")
        if last.cache_bytes:
            found.append(f"{last.cache_bytes} bytes of KV caches left")
        return found


def measure(moment: str, generator: Generator) -> Footprint:
    """The process now, after a garbage collection."""
    gc.collect()
    rows = (line.split() for line in (PROCESS / "smaps_rollup").read_text().splitlines()[1:])
    sizes = {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}
    return Footprint(
        moment,
        sizes["Rss"],
        sizes["Anonymous"],
        len(os.listdir(PROCESS / "fd")),
        len(os.listdir(PROCESS / "task")),
        generator.cache_bytes_in_use,
    )


def soak(
    generator: Generator,
    generations: int,
    abandoned: int,
    growth_allowed: float = 0.01,
    callers: int = 1,
) -> SoakReport:
    """Runs jobs of every kind, then leaves streams midway.

    Args:
        generator: whose calls.
        generations: jobs; a tenth of them, every job once, and a few streams go before as warm-up.
        abandoned: streams that are left after a piece or two, by closing, by deleting and by an error.
        growth_allowed: share by which memory may grow after the warm-up.
        callers: threads that make the calls.
    """
    turns, jobs = Turns(generator), make_jobs(generator, 120)
    with ThreadPoolExecutor(callers) as pool:

        def run(first: int, last: int) -> None:
            work: Iterator[Job] = (jobs[i % len(jobs)] for i in range(first, last))
            for _ in pool.map(turns.run, work):
                pass

        warm_up = len(jobs) * callers + int(WARM_UP * generations)
        run(0, warm_up)
        list(pool.map(lambda _: _abandon(generator, 8), range(2 * callers)))
        footprints = [measure(f"warm-up of {warm_up}", generator)]
        ends = [generations * i // SAMPLES for i in range(SAMPLES + 1)]
        for first, last in itertools.pairwise(ends):
            run(first, last)
            footprints.append(measure(f"after {last}", generator))
        pool.submit(_abandon, generator, abandoned).result()
        footprints.append(measure(f"and {abandoned} abandoned streams", generator))
    return SoakReport(tuple(footprints), growth_allowed)


class _Left(Exception):  # noqa: N818
    pass


def _abandon(generator: Generator, count: int) -> None:
    """Leaves streams midway; one in four is not even begun."""
    for number in range(count):
        pieces = generator.stream("The import statement", stop_token_ids=None)
        if number % 4:
            next(pieces), next(pieces)
        if number % 4 == 1:
            pieces.close()  # type: ignore[attr-defined]
        elif number % 4 == 2:
            try:
                for _ in pieces:
                    raise _Left
            except _Left:
                pass
        del pieces


def format_report(report: SoakReport) -> list[str]:
    """A table of the footprints, and what is broken."""
    lines = [
        "| generations | resident MB | of it anonymous | open files | threads | KV cache bytes |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for f in report.footprints:
        sizes = f"{f.resident / 1e6:.2f} | {f.anonymous / 1e6:.2f}"
        lines.append(f"| {f.moment} | {sizes} | {f.files} | {f.threads} | {f.cache_bytes} |")
    lines.append(f"\ngrowth after the warm-up: {report.growth:.2%}")
    return [*lines, *(f"BROKEN: {problem}" for problem in report.problems)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 if a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.soak", description=__doc__)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--generations", type=int, default=5000, metavar="N")
    parser.add_argument("--abandoned", type=int, default=200, metavar="N", help="streams")
    parser.add_argument("--callers", type=int, default=1, metavar="N", help="threads that call")
    parser.add_argument("--growth", type=float, default=0.01, metavar="X", help="share allowed")
    options = parser.parse_args(arguments)
    generator = Generator.from_bundle(options.bundle, device="cpu")
    report = soak(generator, options.generations, options.abandoned, options.growth, options.callers)
    print("\n".join(format_report(report)))
    return int(bool(report.problems))


if __name__ == "__main__":
    sys.exit(main())
