"""Exports of toy models in child processes of one that has TensorFlow imported already.

Importing it takes seconds, and the export of a toy model about one. Forking after the import is safe as
long as this process has one thread and TensorFlow has computed nothing in it; `fork` checks the first.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import exporter.export
from bench.make_checkpoint import write_checkpoint
from exporter.cli import main as export_command
from exporter.output_place import WHOLE, WITHIN_NAMES
from graphs.contract import ModelConfig
from graphs.manifest import MANIFEST_FILE, ManifestError, read_manifest

assert exporter.export  # imported for what it imports
TOY = ModelConfig(
    vocabulary_size=288,
    num_layers=2,
    num_heads=4,
    hidden_dim=32,
    intermediate_dim=64,
    max_sequence_length=64,
)


def write_toy(folder: Path, seed: int = 0) -> Path:
    """A preset of two layers with random weights."""
    write_checkpoint(TOY, folder, seed=seed, deviation=0.2)
    return folder


@dataclass
class Child:
    """A process of its own group; what it writes to standard error comes through a pipe."""

    process_id: int
    errors: int

    def wait(self) -> int:
        """Reads what is left, waits; returns the exit code, negative for a signal."""
        self.told = self.read_rest()
        os.close(self.errors)
        return os.waitstatus_to_exitcode(os.waitpid(self.process_id, 0)[1])

    def read_rest(self) -> str:
        """All that is still to come on standard error."""
        pieces = []
        while piece := os.read(self.errors, 65536):
            pieces.append(piece)
        return b"".join(pieces).decode(errors="replace")


def fork(work: Callable[[], int]) -> Child:
    """Runs a function in a forked process; it returns the exit code."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
    # One of pyarrow's, where that is installed and TensorFlow finds it: jemalloc minds forks itself.
    names = [name for name in names if name != "jemalloc_bg_thd"]
    assert len(names) == 1, f"this process has {len(names)} threads and is not safe to fork"
    sys.stdout.flush()
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return Child(child, read)
    code = 70
    try:
        os.setsid()
        os.close(read)
        os.dup2(write, 2)
        os.close(write)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = work()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start_export(preset: Path, target: Path, *options: str) -> Child:
    """Starts `opt-export`."""
    arguments = ["--preset", str(preset), "--output", str(target), *options]
    return fork(lambda: export_command(arguments))


def bundle_state(target: Path) -> str:
    """What is at a target: the name of the preset of a whole bundle, `"nothing"` or `"HALF"`.

    Nothing is also a folder that is no bundle yet, since the next export ends its replacement.
    """
    if not target.exists() or ((target / WHOLE).exists() and not (target / MANIFEST_FILE).exists()):
        return "nothing"
    try:
        manifest = read_manifest(target)
        manifest.check_files(target, weights_hash=True)
    except (ManifestError, OSError):
        return "HALF"
    names = {entry.name for entry in manifest.files} | {MANIFEST_FILE}
    whole = {path.name for path in target.iterdir()} - set(WITHIN_NAMES) == names
    return manifest.source["preset"] if whole else "HALF"


def leftovers(target: Path) -> list[str]:
    """What lies beside a target or in it that an export made and that is no bundle."""
    if not target.parent.exists():
        return []
    within = [path.name for path in target.glob(".export.*")]
    return sorted([*within, *(path.name for path in target.parent.iterdir() if path != target)])
