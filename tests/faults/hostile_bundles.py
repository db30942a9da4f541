"""Loads hostile bundles: `python -m tests.faults.hostile_bundles [--json]`.

Each must end in a `BundleError` that says what is wrong, or be harmless, and do no harm: each is loaded
and run in a process of its own, which may use 512 MB more than it begins with and has 20 seconds. What
is beside the bundle must stay as it is and unread: Python's opening of files is watched by an audit
hook, that of native code by a pipe, which blocks who opens it. Prints a table; exits 1 if one ends
otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults import watched_bundle
from tests.faults.bundle_kinds import KINDS, OUTSIDE, Kind

TOY = Path(__file__).parents[1] / "data" / "toy_bundle"
SECONDS = 20


@dataclass(frozen=True)
class Outcome:
    """What loading and running a bundle ended in.

    Attributes:
        kind: the bundle's kind.
        error: class of the error, or how the process ended; `None` if there was none.
        message: of the error, with the folder's path left out; else the text that came.
        problem: why this is not as it should be; `None` if it is.
    """

    kind: str
    error: str | None
    message: str
    problem: str | None


def run_kind(kind: Kind, place: Path, text: str) -> Outcome:
    """Makes a bundle in an empty folder and runs it; `text` is what a whole one says."""
    folder = Path(shutil.copytree(TOY, place / "toy_bundle"))
    outside = Path(shutil.copytree(TOY, place / OUTSIDE))
    os.mkfifo(outside / "pipe")
    before = _listing(outside)
    kind.make(folder)
    error, message, opened = run(folder, place)
    message = message.replace(f"{place}/", "")
    problem = None
    if error != (None if kind.error is None else "BundleError"):
        problem = f"ended in {error}"
    elif (message != text) if kind.error is None else (kind.error not in message):
        problem = f"does not say {kind.error or text!r}"
    elif "\n" in message or len(message) > 2000:
        problem = f"is no sentence: {len(message)} characters"
    elif opened or _listing(outside) != before:
        problem = f"opened or changed what is outside: {opened}"
    return Outcome(kind.name, error, message, problem)


def _listing(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.iterdir()) if path.name != "pipe"]
    return {path.name: path.read_bytes() for path in files}


def run(folder: Path, place: Path) -> tuple[str | None, str, list[str]]:
    """Error, message and forbidden files of a process that runs a bundle."""
    command = [sys.executable, "-W", "ignore", "-m", watched_bundle.__name__, str(folder)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return "a hang", "", []
    if process.returncode < 0:
        return signal.Signals(-process.returncode).name, "", []
    try:
        error, message, opened = json.loads(process.stdout)
    except ValueError:
        return "a crash", process.stderr[-500:], []
    return error, message, opened


def run_all() -> list[tuple[str, Outcome]]:
    """The outcomes of all kinds by group."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="opt-hostile-") as scratch:
        error, text, _ = run(TOY, Path(scratch))
        assert error is None, text
        for group, kinds in KINDS.items():
            for kind in kinds:
                place = Path(scratch, "place")
                place.mkdir()
                outcomes.append((group, run_kind(kind, place, text)))
                shutil.rmtree(place)
    return outcomes


def table(outcomes: Sequence[tuple[str, Outcome]]) -> str:
    """The errors as Markdown."""
    lines = ["| where | kind | ends in |", "|---|---|---|"]
    for group, outcome in outcomes:
        message = " ".join(outcome.message.replace("|", "\\|").split())
        told = f"{outcome.error}: {message}" if outcome.error else "not used; the right text"
        lines.append(f"| {group} | {outcome.kind} | {told[:200]} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print outcomes as JSON")
    options = parser.parse_args(arguments)
    outcomes = run_all()
    if options.json:
        print(json.dumps([{"group": group, **asdict(outcome)} for group, outcome in outcomes]))
    else:
        print(table(outcomes))
    bad = [outcome for _, outcome in outcomes if outcome.problem]
    for outcome in bad:
        print(f"{outcome.kind}: {outcome.problem} ({outcome.message[:300]})", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
