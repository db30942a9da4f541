"""What the tests of packed weights share: bundles that are packed, and programs that pack them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import load_bundle
from runtime.packs.pack_folder import DATA_FILE, INFO_FILE, MODEL_FILE
from runtime.session import SessionDecoder
from tests.runtime.toy import HIDDEN, approve, edit_manifest, flip_byte

PROMPT = [2, 5, 77, 130, 9]
# Prints logits as hexadecimal digits. What comes before may change how packs are made.
PROGRAM = """\
import logging, sys, time
from pathlib import Path
from runtime import session_opener
from runtime.packs import pack_folder
from runtime.packs import packed_weights
from tests.runtime.packs.packing import logits
logging.basicConfig(level=logging.INFO, format="%(message)s")
{change}
print("ready", flush=True)
sys.stdin.readline()
print(logits(Path({folder!r})).tobytes().hex())
"""


def make_cpu_bundle(folder: Path) -> Path:
    """Makes the toy bundle one whose weights are packed, with one graph file for both phases."""

    def edit(values: dict[str, Any]) -> None:
        values["target"] = "cpu"
        values["graphs"]["decode"] = values["graphs"]["prefill"]

    edit_manifest(folder, edit)
    (folder / "decode.onnx").unlink()
    return folder


def alter_weights(folder: Path, token: int = PROMPT[0]) -> None:
    """Exports other weights: those of a token's embedding are changed."""
    flip_byte(folder / "weights.bin", 4 * HIDDEN * token + 3)
    approve(folder, "weights.bin")


def open_decoder(folder: Path, *, verify: bool = False, **options: Any) -> SessionDecoder:
    return SessionDecoder(load_bundle(folder, verify=verify), threads=1, **options)


def logits(folder: Path, **options: Any) -> np.ndarray:
    """Logits [2, vocabulary] after the prompt and after one more token, by a new decoder."""
    decoder = open_decoder(folder, **options)
    cache = decoder.new_cache(1, 8)
    first = decoder.append(cache, np.array([PROMPT]), np.array([5], np.int32)).logits.copy()
    second = decoder.append(cache, np.array([[7]]), np.array([1], np.int32)).logits
    return np.concatenate([first, second])


def packs(place: Path) -> dict[str, Path]:
    """The packs in a place by name; everything in it must be a whole pack or the lock."""
    if not place.is_dir():
        return {}
    found = {path.name: path for path in place.iterdir() if path.name != ".lock"}
    for path in found.values():
        assert {file.name for file in path.iterdir()} == {MODEL_FILE, DATA_FILE, INFO_FILE}
    return found


def stamps(place: Path) -> dict[str, tuple[int, int]]:
    """Which files are in a place: they are others once they have been written anew."""
    files = [path for path in place.rglob("*") if path.is_file() and path.name != ".lock"]
    return {f"{path}": (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def start_program(repository: Path, folder: Path, change: str = "") -> subprocess.Popen[str]:
    """A process that has imported everything and waits for a line before it opens a bundle."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(change=change, folder=str(folder))],
        cwd=repository,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the fixtures of these tests have the user's cache folder, and so its secret.
        env={**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache")},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process
