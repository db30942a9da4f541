"""Tells a person how far an export is."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Shows one bar at a time on a terminal, one line a phase elsewhere; silent if `quiet`."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None

    def phase(self, name: str, total_bytes: int | None = None) -> None:
        """Begins a phase; with a total, bytes are counted towards it by `advance`."""
        self.close()
        if self._quiet:
            return
        if total_bytes is None:
            print(f"{name} …", file=self._stream, flush=True)
        else:
            self._bar = tqdm(
                total=total_bytes,
                desc=name,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                file=self._stream,
                mininterval=0.2 if self._stream.isatty() else 10.0,
            )

    def advance(self, size: int) -> None:
        """Counts bytes of the current phase."""
        if self._bar is not None:
            self._bar.update(size)

    def close(self) -> None:
        """Ends the current phase."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
