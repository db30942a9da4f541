"""The load scripts, for a few seconds, and that they can fail."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Generator
from runtime.samplers import GreedySampler
from tests.load import jobs as jobs_module
from tests.load import soak as soak_module
from tests.load import storm as storm_module
from tests.load.jobs import KINDS, SAMPLERS, make_jobs
from tests.load.soak import Footprint, SoakReport
from tests.load.storm import storm

needs_proc = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc/self/smaps_rollup"
)


def test_jobs_are_of_every_kind_and_sampler(generator: Generator) -> None:
    jobs = make_jobs(generator, 60)
    assert {(job.kind, job.sampler) for job in jobs} == {
        (kind, sampler) for kind in KINDS for sampler in range(len(SAMPLERS))
    }
    assert jobs == make_jobs(generator, 60)


def test_a_small_storm(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert storm_module.main([str(toy_bundle), "--threads", "4", "--generations", "15"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in lines[2 + len(KINDS)].strip("|").split("|")]
    assert cells == ["all", "60", "60", "0", "0"]
    assert lines[-1] == "cache bytes left: 0"


class Forgetful(GreedySampler):
    """Greedy search that takes another token now and then, as shared state would make it."""

    calls = 0

    def sample(self, logits: Any, generators: Sequence[np.random.Generator]) -> Any:
        Forgetful.calls += 1
        if Forgetful.calls % 7 == 0:
            logits = -logits
        return super().sample(logits, generators)


def test_a_storm_sees_what_is_not_as_alone(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module.samplers, "deserialize", lambda _: Forgetful())
    report = storm(generator, threads=2, generations=8, jobs=10)
    assert report.different.total() > 0
    assert report.broken


def test_a_storm_sees_errors(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    run = jobs_module.Turns.run
    calls: list[int] = []

    def fail_later(self: Any, job: Any) -> Any:
        calls.append(1)
        if len(calls) > 10:
            raise KeyError("lost")
        return run(self, job)

    monkeypatch.setattr(jobs_module.Turns, "run", fail_later)
    report = storm(generator, threads=2, generations=3, jobs=10)
    assert report.errors.total() == 6
    assert "KeyError: 'lost'" in report.first_error
    assert report.broken


@needs_proc
@pytest.mark.slow
def test_a_small_soak(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory may grow by a fifth here: other tests have just left theirs to be used again."""
    arguments = [str(toy_bundle), "--generations", "100", "--abandoned", "20"]
    assert soak_module.main([*arguments, "--growth", "0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| warm-up of 130 |")
    assert lines[8].startswith("| and 20 abandoned streams |")
    assert {line.strip("|").split("|")[-1].strip() for line in lines[2:9]} == {"0"}


def report(**last: int) -> SoakReport:
    first = {"resident": 1000, "anonymous": 500, "files": 5, "threads": 3, "cache_bytes": 0}
    footprints = (Footprint("first", **first), Footprint("last", **{**first, **last}))
    return SoakReport(footprints, growth_allowed=0.01)


@pytest.mark.parametrize(
    ("last", "problems"),
    [
        ({}, []),
        ({"resident": 1009}, []),
        ({"resident": 900, "files": 4, "threads": 2}, []),
        ({"resident": 1010}, ["memory grew by 1.00%, allowed: 1%"]),
        ({"files": 6}, ["1 more open files"]),
        ({"threads": 5}, ["2 more threads"]),
        ({"cache_bytes": 64}, ["64 bytes of KV caches left"]),
    ],
)
def test_what_breaks_a_soak(last: dict[str, int], problems: list[str]) -> None:
    assert report(**last).problems == problems
