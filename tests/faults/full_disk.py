"""Exports onto disks of fixed sizes: one clear error and an empty folder, or a whole bundle.

    python -m tests.faults.full_disk [--steps 8] [--seed 0]

The disks are tmpfs, mounted in a name space of this process's own (`unshare`), so no rights are needed
where the system allows that. Each size is tried three ways: as it is, where the export sees beforehand
that the disk is too small; with the disk's free space told wrong, so that it fills in the middle; and
the same over a bundle that is to be replaced, which must stay. Exit code 1 if anything else happens,
and 77 where the system allows no such disks.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

INSIDE = "--inside"
SKIPPED = 77
WAYS = ("as it is", "filling", "filling, with a bundle to replace")
CLEAR = re.compile(r"opt-export: the disk of \S+ (has|is full).* free.*free some room")
PAGE = 4096


def main() -> int:
    """Tries all sizes; returns 1 if one ends in another way than it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="sizes from almost nothing to enough")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return _run(options.steps)
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], check=False
    ).returncode:
        print("this system lets nobody mount a tmpfs: unshare -rm does not work")
        return SKIPPED
    command = ["unshare", "-rm", sys.executable, "-m", "tests.faults.full_disk", INSIDE]
    return subprocess.run([*command, "--steps", str(options.steps)], check=False).returncode


def _run(steps: int) -> int:
    from tests.faults.exports import fork, start_export, write_toy

    with tempfile.TemporaryDirectory(prefix="opt-full-disk-") as name:
        folder = Path(name)
        presets = [write_toy(folder / preset, seed) for seed, preset in enumerate(("old", "new"))]
        made = folder / "made"
        assert start_export(presets[0], made).wait() == 0
        size = sum(-(-path.stat().st_size // PAGE) * PAGE for path in made.iterdir()) + 4 * PAGE
        rows, problems = [], []
        for step in range(steps):
            # Most sizes lie between a bare folder and a bundle; the last leaves room for verification.
            room = 4 * PAGE + int((size - 2 * PAGE) * step / max(1, steps - 2))
            counts = Counter()
            for way in WAYS:
                outcome, problem = _try(way, room, folder / "disk", made, presets[1], fork)
                counts[way] = outcome
                if problem:
                    problems.append(f"{room} bytes, {way}: {problem}")
            rows.append((room, *(counts[way] for way in WAYS)))
    print(f"A bundle takes {size} bytes\n| room, bytes | {' | '.join(WAYS)} |\n|---|---|---|---|")
    for row in rows:
        print("|", " | ".join(map(str, row)), "|")
    print(f"{len(rows) * len(WAYS)} exports, {len(problems)} problems", *problems, sep="\n")
    return 1 if problems else 0


def _try(way, room, disk, made, preset, fork):
    """One export onto a new disk; how it ended, and what is wrong about that."""
    from exporter.cli import main as export_command
    from tests.faults.exports import bundle_state, leftovers

    replace = way == WAYS[2]
    disk.mkdir()
    taken = sum(-(-path.stat().st_size // PAGE) * PAGE for path in made.iterdir()) + PAGE
    size = room + taken * replace
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=True)
    try:
        target = disk / "bundle"
        if replace:
            shutil.copytree(made, target)

        def work() -> int:
            if way != WAYS[0]:
                shutil.disk_usage = lambda path: SimpleNamespace(free=10**12)
            options = ["--quiet", "--force", "--verify", "graph"]
            return export_command(["--preset", str(preset), "--output", str(target), *options])

        child = fork(work)
        code = child.wait()
        state, left = bundle_state(target), leftovers(target)
        before = "old" if replace else "nothing"
        lines = [line for line in child.told.splitlines() if line.startswith("opt-export:")]
        if left:
            return "left something", f"{left} was left"
        if code == 0:
            return "whole bundle", None if state == "new" else f"the bundle is {state}"
        if code == 2 and len(lines) == 1 and CLEAR.match(lines[0]) and "Traceback" not in child.told:
            told = "told beforehand" if " has " in lines[0] else "filled, one error"
            return told, None if state == before else f"the target was {before} and is {state}"
        return f"exit {code}", f"exit code {code}: {child.told.strip()[-300:]}"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        os.rmdir(disk)


if __name__ == "__main__":
    sys.exit(main())
