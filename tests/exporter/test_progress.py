"""What a person is told of an export: a bar at a terminal, lines in a log, nothing if quiet."""

from __future__ import annotations

import io

import pytest

from exporter import progress
from exporter.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_in_a_log(clock):
    log = io.StringIO()
    shown = Progress(stream=log)
    shown.phase("Tracing")
    shown.phase("Writing weights", 8_000_000_000)
    for seconds, size in ((4.0, 10**9), (6.5, 10**9), (9.5, 10**9), (10.0, 10**9)):
        clock[0] += seconds
        shown.advance(size)
    clock[0] += 4000
    shown.advance(4 * 10**9)
    shown.close()
    shown.close()
    assert log.getvalue().splitlines() == [
        "Tracing …",
        "Writing weights (8.0 GB) …",
        "Writing weights: 25% of 8.0 GB, 190.5 MB/s, 0:10 so far, 0:32 left",
        "Writing weights: 50% of 8.0 GB, 133.3 MB/s, 0:30 so far, 0:30 left",
        "Writing weights: 100% of 8.0 GB, 2.0 MB/s, 1:07:10 so far, 0:00 left",
        "Writing weights: 100% of 8.0 GB, 2.0 MB/s, 1:07:10 so far, 0:00 left",
    ]


def test_a_phase_that_ends_before_it_began(clock):
    log = io.StringIO()
    shown = Progress(stream=log)
    shown.phase("Smoothing", 0)
    shown.close()
    shown.phase("Hashing", 2_000)
    shown.close()
    assert log.getvalue().splitlines() == [
        "Smoothing (0 kB) …",
        "Smoothing: 100% of 0 kB, 0 kB/s, 0:00 so far, ? left",
        "Hashing (2 kB) …",
        "Hashing: 0% of 2 kB, 0 kB/s, 0:00 so far, ? left",
    ]


def test_a_bar_at_a_terminal():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    shown = Progress(stream=terminal)
    shown.phase("Writing weights", 1000)
    shown.advance(1000)
    shown.close()
    last = terminal.getvalue().rstrip().rpartition("\r")[2]
    assert "Writing weights: 100%" in last
    assert "1.00k/1.00k" in last


def test_quiet():
    log = io.StringIO()
    shown = Progress(quiet=True, stream=log)
    shown.phase("Writing weights", 1000)
    shown.advance(1000)
    shown.close()
    assert log.getvalue() == ""
