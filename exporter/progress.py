"""Tells a person how far an export is."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0  # between two lines where the bar of a terminal would be


class Progress:
    """Shows one bar at a time on a terminal, and lines elsewhere; silent if `quiet`."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bar: tqdm | _Lines | None = None

    def phase(self, name: str, total_bytes: int | None = None) -> None:
        """Begins a phase; with a total, bytes are counted towards it by `advance`."""
        self.close()
        if self._quiet:
            return
        if total_bytes is None:
            _print(f"{name} …", self._stream)
        elif self._stream.isatty():
            self._bar = tqdm(
                total=total_bytes,
                desc=name,
                unit="B",
                unit_scale=True,
                file=self._stream,
                mininterval=0.2,
            )
        else:
            self._bar = _Lines(name, total_bytes, self._stream)

    def advance(self, size: int) -> None:
        """Counts bytes of the current phase."""
        if self._bar is not None:
            self._bar.update(size)

    def close(self) -> None:
        """Ends the current phase."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    """A bar for logs: a line when a phase begins, one every `LINE_SECONDS`, and one at its end."""

    def __init__(self, name: str, total: int, stream: TextIO) -> None:
        self._name, self._total, self._stream = name, total, stream
        self._done = 0
        self._started = self._last = time.monotonic()
        _print(f"{name} ({_bytes(total)}) …", stream)

    def update(self, size: int) -> None:
        """Counts bytes."""
        self._done += size
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            self._print(now)

    def close(self) -> None:
        """Tells how far the phase has come when it ends."""
        self._print(time.monotonic())

    def _print(self, now: float) -> None:
        share = self._done / self._total if self._total else 1.0
        seconds = now - self._started
        rate = self._done / seconds if seconds > 0 else 0.0
        left = _duration((self._total - self._done) / rate) if rate > 0 else "?"
        _print(
            f"{self._name}: {share:.0%} of {_bytes(self._total)}, {_bytes(rate)}/s, "
            f"{_duration(seconds)} so far, {left} left",
            self._stream,
        )


def _print(text: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # an export goes on where nobody can be told of it
        print(text, file=stream, flush=True)


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
