"""Presets from a stranger who means harm: each kind must end in an error of ours, and in no harm.

    python -m tests.faults.hostile_checkpoints [--json]

Prints a table of what each ends in; exit code 1 if one does not end as it should. Each is read in a
process of its own, which may use 256 MB more than it begins with and has ten seconds. Files that a
preset points to outside its folder are watched: Python's own opening of files by an audit hook, that of
the HDF5 library by pipes, which block who opens them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoints.h5_check import check_in_child
from exporter.errors import CheckpointError, PresetError
from tests.faults.good_presets import FORMATS, write_preset
from tests.faults.hostile_files import H5, SAFETENSORS, TORCH
from tests.faults.hostile_folders import CONFIGS, FOLDERS, OUTSIDE, TOKENIZERS, Kind
from tests.faults.preset_reading import read_whole_preset

KINDS: dict[str, tuple[Kind, ...]] = {
    "folder": FOLDERS,
    "configuration": CONFIGS,
    "tokenizer": TOKENIZERS,
    "safetensors": SAFETENSORS,
    "torch": TORCH,
    "HDF5": H5,
}
OUR_ERRORS = (CheckpointError.__name__, PresetError.__name__, ValueError.__name__)
MEMORY = 256 * 1024**2
SECONDS = 30.0  # many times what any kind takes, also beside other tests


@dataclass(frozen=True)
class Outcome:
    """What reading a preset ended in.

    Attributes:
        kind: the preset's kind.
        error: class of the error; `None` if there was none, a signal's name if it ended the process.
        message: of the error, with the folder's path left out.
        opened: files outside the preset's folder that Python opened.
        problem: why this is not as it should be; `None` if it is.
    """

    kind: str
    error: str | None
    message: str
    opened: tuple[str, ...]
    problem: str | None


def run_kind(kind: Kind, folder: Path) -> Outcome:
    """Makes a hostile preset in an empty folder and reads it in a child."""
    preset = write_preset(folder / "preset", kind.base)
    shutil.copytree(preset, folder / OUTSIDE)
    os.mkfifo(folder / OUTSIDE / "pipe")
    kind.make(preset)
    error, message, opened = _in_child(lambda: read_whole_preset(preset), folder)
    message = message.replace(f"{folder}/", "")
    problem = None
    if error not in OUR_ERRORS:
        problem = f"ended in {error}"
    elif kind.error not in message:
        problem = f"does not say {kind.error!r}"
    elif opened:
        problem = f"opened {opened}"
    elif len(message) > 20_000:
        problem = f"says {len(message)} characters"
    return Outcome(kind.name, error, message, opened, problem)


def _in_child(read: Callable[[], object], folder: Path) -> tuple[str | None, str, tuple[str, ...]]:
    """Error, message and outside files of a call in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            json.dump(_limited(read, folder), pipe)
        os._exit(0)
    os.close(writer)
    data = _read_all(reader, time.monotonic() + SECONDS)
    if data is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if data is None:
        return "a hang", "", ()
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name, "", ()
    error, message, opened = json.loads(data)
    return error, message, tuple(opened)


def _limited(
    read: Callable[[], object], folder: Path
) -> tuple[str | None, str, list[str]]:  # runs in the child
    opened: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(f"{folder}/{OUTSIDE}"):
            opened.append(str(arguments[0]))
        starts = event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn")
        if starts and f"'-m', {check_in_child.__module__!r}" not in " ".join(map(str, arguments[1])):
            opened.append(event)

    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.addaudithook(audit)
    try:
        read()
    except BaseException as error:
        return type(error).__name__, str(error), opened
    return None, "", opened


def _read_all(descriptor: int, until: float) -> str | None:
    data = bytearray()
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0, until - time.monotonic()))[0]:
            if not (part := pipe.read(65536)):
                return data.decode()
            data += part
    return None


def run_all() -> list[tuple[str, Outcome]]:
    """The outcomes of all kinds by group, after a look that whole presets are read."""
    outcomes = []
    with tempfile.TemporaryDirectory() as place:
        for base in FORMATS:
            preset = write_preset(Path(place, f"good-{base}"), base)
            assert _in_child(lambda p=preset: read_whole_preset(p), preset)[0] is None, base  # type: ignore[misc]
        for group, kinds in KINDS.items():
            for i, kind in enumerate(kinds):
                folder = Path(place, f"{group}-{i}")
                folder.mkdir()
                outcomes.append((group, run_kind(kind, folder)))
                shutil.rmtree(folder)
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print outcomes as JSON")
    options = parser.parse_args(arguments)
    outcomes = run_all()
    if options.json:
        print(json.dumps([{"group": group, **asdict(outcome)} for group, outcome in outcomes]))
    else:
        print("| where | kind | error |\n|---|---|---|")
        for group, outcome in outcomes:
            message = " ".join(outcome.message.replace("|", "\\|").split())
            print(f"| {group} | {outcome.kind} | {outcome.error}: {message[:160]} |")
        bad = [outcome for _, outcome in outcomes if outcome.problem]
        print(f"\n{len(outcomes)} kinds, {len(bad)} that do not end as they should")
        for outcome in bad:
            print(f"- {outcome.kind}: {outcome.problem} ({outcome.message[:300]})")
    return 1 if any(outcome.problem for _, outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
