"""Every kind of hostile preset ends in an error of ours that says what is wrong, and in no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("h5py")
if sys.platform != "linux":
    pytest.skip("pipes, forks and limits of memory as on Linux", allow_module_level=True)

from tests.faults.good_presets import FORMATS, TINY, write_preset
from tests.faults.hostile_checkpoints import KINDS, OUR_ERRORS
from tests.faults.hostile_folders import HARMLESS
from tests.faults.preset_reading import read_whole_preset

NAMES = [(group, kind.name) for group, kinds in KINDS.items() for kind in kinds]


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process that has no threads, which could not be forked."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=repository,
        env={**os.environ, "RUST_BACKTRACE": "0"},
        capture_output=True,
        text=True,
        timeout=600,  # each kind has a limit of its own
        check=False,
    )


@pytest.fixture(scope="module")
def outcomes(repository):
    done = run(repository, "-m", "tests.faults.hostile_checkpoints", "--json")
    assert done.stdout, done.stderr
    values = json.loads(done.stdout)
    assert done.returncode == any(outcome["problem"] for outcome in values)
    return {(outcome["group"], outcome["kind"]): outcome for outcome in values}


def test_there_are_many_kinds_each_once():
    assert len(set(NAMES)) == len(NAMES) >= 100


@pytest.mark.parametrize("name", NAMES, ids=": ".join)
def test_a_hostile_preset_is_refused(outcomes, name):
    outcome = outcomes[name]
    assert outcome["problem"] is None, outcome
    assert outcome["error"] in OUR_ERRORS
    assert "preset" in outcome["message"] or name[0] == "tokenizer"


@pytest.mark.parametrize("name", [name for name, _ in HARMLESS])
def test_what_is_never_applied_does_no_harm(tmp_path, name):
    preset = write_preset(tmp_path / "preset", "torch")
    dict(HARMLESS)[name](preset)
    assert read_whole_preset(preset) > 0


def test_whole_presets_hold_all_weights(tmp_path):
    sizes = {base: read_whole_preset(write_preset(tmp_path / base, base)) for base in FORMATS}
    layer = 4 * (8 * 8 + 8) + 2 * 8 * 12 + 12 + 8 + 4 * 8
    weights = (TINY.vocabulary_size + TINY.max_sequence_length + 2) * 8 + 2 * layer
    assert sizes == dict.fromkeys(FORMATS, 4 * weights)


BAD_ENDS = """
import tempfile, os, pathlib
from tests.faults import hostile_checkpoints as checkpoints
from tests.faults.hostile_folders import Kind

def end(make, error="", read=checkpoints.read_whole_preset):
    checkpoints.read_whole_preset, checkpoints.SECONDS = read, 3.0
    with tempfile.TemporaryDirectory() as place:
        print(checkpoints.run_kind(Kind("a kind", "h5", make, error), pathlib.Path(place)).problem)

end(lambda folder: None)
end(lambda folder: (folder / "config.json").unlink(), "another reason")
end(lambda folder: None, read=lambda folder: bytearray(2**31))
end(lambda folder: None, read=lambda folder: os.open(folder.parent / "outside" / "pipe", os.O_RDONLY))
end(lambda folder: None, read=lambda folder: os.abort())
def look(folder):
    (folder.parent / "outside" / "config.json").read_text()
    raise ValueError("preset")
end(lambda folder: None, read=look)
"""


def test_the_runner_sees_bad_ends(repository):
    done = run(repository, "-c", BAD_ENDS)
    assert done.returncode == 0, done.stderr
    none, reason, memory, hang, crash, outside = done.stdout.splitlines()
    assert none == "ended in None"
    assert reason == "does not say 'another reason'"
    assert memory == "ended in MemoryError"
    assert hang == "ended in a hang"
    assert crash == "ended in SIGABRT"
    assert outside.startswith("opened ('")
    assert outside.endswith("outside/config.json',)")
