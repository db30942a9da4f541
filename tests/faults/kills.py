"""Kills exports at random moments, and looks at what stands then and after the next export's start.

    python -m tests.faults.kills --count 200 [--seed 0] [--folder DIR]

A third of the kills fall anywhere in the export, a third in its last phase, when the finished folder is
synchronized and renamed, and a third before a random call that changes folders. Each meets one of
five kinds in turn: a fresh target, a bundle to replace, one to replace on a disk that cannot swap two
folders in one step, one in a folder that cannot be renamed, and one where that turns out at the end.
Exit code 1 if there is ever half a bundle, or something left that the next export does not remove.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from exporter import bundle_folder, output_place
from exporter.cli import main as export_command
from exporter.output_place import WHOLE
from tests.faults.exports import Child, bundle_state, fork, leftovers, write_toy
from tests.faults.killing import kill_before_call

KINDS = ("fresh", "replace", "replace in two steps", "replace within", "replace within at last")
MOMENTS = ("anywhere", "last phase", "before a call")
WHOLE_EXPORT_EVERY = 20
LAST_PHASE = b"Finishing"
ALLOWED = {
    "fresh": ("nothing", "new"),
    "replace": ("old", "new"),
    "replace in two steps": ("old", "new", "nothing"),  # which must be old again afterwards
    "replace within": ("old", "new", "nothing"),  # which must be new afterwards
    "replace within at last": ("old", "new", "nothing"),
}
LAST_CALLS = 45  # that change folders, in the kind with the most


@dataclass(frozen=True)
class Trial:
    """A kill: what it met, and what it left."""

    kind: str
    moment: str
    state: str
    left: tuple[str, ...]
    problem: str | None


class Trials:
    """Exports over and over in one folder.

    Args:
        folder: empty, to work in.
        seed: of the moments.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._presets = {name: write_toy(folder / name, i) for i, name in enumerate(("old", "new"))}
        self._target = folder / "place" / "bundle"
        self._old = folder / "old_bundle"
        self._number = 0
        _check_exit(self._start("fresh", preset="old"), 0)
        self._target.rename(self._old)
        self.seconds, self.last_seconds = self._measure()

    def _measure(self) -> tuple[float, float]:
        """How long an export takes, and its last phase."""
        started = time.monotonic()
        child = self._start("fresh")
        _wait_for_last_phase(child)
        last = time.monotonic()
        _check_exit(child, 0)
        return time.monotonic() - started, time.monotonic() - last

    def run(self, kind: str, moment: str) -> Trial:
        """One kill, and the start of an export after it."""
        self._number += 1
        self._prepare(kind)
        if moment == "before a call":
            child = self._start(kind, "--verify", "graph", kill_at=self._random.randrange(LAST_CALLS))
        else:
            child = self._start(kind, "--verify", "graph" if moment == "last phase" else "full")
            if moment == "last phase":
                _wait_for_last_phase(child)
                time.sleep(self._random.random() ** 2 * self.last_seconds)  # renamed soon
            else:
                time.sleep(self._random.uniform(0, self.seconds))
            with contextlib.suppress(ProcessLookupError):  # it had ended
                os.killpg(child.process_id, signal.SIGKILL)
        child.wait()
        state, left = bundle_state(self._target), tuple(leftovers(self._target))
        problem = None if state in ALLOWED[kind] else f"the target was {state}"
        return Trial(kind, moment, state, left, problem or self._after(kind, state))

    def _prepare(self, kind: str) -> None:
        shutil.rmtree(self._target.parent, ignore_errors=True)
        self._target.parent.mkdir()
        if kind != "fresh":
            shutil.copytree(self._old, self._target)

    def _start(
        self, kind: str, *options: str, preset: str = "new", kill_at: int | None = None
    ) -> Child:
        arguments = ["--preset", str(self._presets[preset]), "--output", str(self._target), "--force"]
        arguments += options

        def work() -> int:
            if kind == "replace in two steps":
                output_place._swap = lambda first, second: False
            elif kind == "replace within":
                bundle_folder.cannot_be_renamed = lambda target: True
            elif kind == "replace within at last":
                output_place._swap = _refuse
            if kill_at is not None:
                kill_before_call(kill_at)
            return export_command(arguments)

        return fork(work)

    def _after(self, kind: str, state: str) -> str | None:
        """What is wrong after the next export's start, or now and then after the whole of it."""
        expected = "old" if kind == "replace in two steps" and state == "nothing" else state
        if (self._target / WHOLE).exists():
            expected = "new"
        if self._number % WHOLE_EXPORT_EVERY == 0:
            expected = "new"
            _check_exit(self._start(kind), 0)
        else:
            with contextlib.suppress(_StartOnlyError), bundle_folder.atomic_folder(self._target):
                raise _StartOnlyError
        found = bundle_state(self._target)
        if found != expected:
            return f"the target was {state}, and {found} after the next export"
        left = leftovers(self._target)
        return f"the next export left {', '.join(left)}" if left else None


def _refuse(first: Path, second: Path) -> bool:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(second))


class _StartOnlyError(Exception):
    """Ends an export that has only begun."""


def _wait_for_last_phase(child: Child) -> None:
    told = b""
    while LAST_PHASE not in told and select.select([child.errors], [], [], 120)[0]:
        piece = os.read(child.errors, 65536)
        if not piece:
            return
        told += piece


def _check_exit(child: Child, expected: int) -> None:
    if (code := child.wait()) != expected:
        raise RuntimeError(f"an export that nobody killed ended with {code}: {child.told}")


def table(trials: list[Trial]) -> str:
    """Counts of what the kills left."""
    lines = ["| kill | old bundle intact | new bundle whole | no bundle | half | with leftovers |"]
    lines.append("|---|---|---|---|---|---|")
    for kind in KINDS:
        for moment in MOMENTS:
            chosen = [t for t in trials if (t.kind, t.moment) == (kind, moment)]
            states = Counter(t.state for t in chosen)
            counts = [states[name] for name in ("old", "new", "nothing", "HALF")]
            counts.append(sum(bool(t.left) for t in chosen))
            lines.append(f"| {kind}, {moment} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the trials; returns 1 if one found a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="opt-kills-", dir=options.folder) as folder:
        trials = Trials(Path(folder), options.seed)
        print(f"An export takes {trials.seconds:.2f} s, its last phase {trials.last_seconds:.3f} s")
        found = [
            trials.run(KINDS[i % len(KINDS)], MOMENTS[i // len(KINDS) % len(MOMENTS)])
            for i in range(options.count)
        ]
    print(table(found))
    problems = [f"{t.kind}, {t.moment}: {t.problem}" for t in found if t.problem]
    print(f"{len(found)} kills, {len(problems)} problems", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
