"""`opt-export --check`: whether a bundle is what its export wrote, and runs as it did there."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from exporter.bundle_folder import PACKED
from exporter.output_place import DISKS_OWN, WITHIN_NAMES
from exporter.progress import Progress
from graphs.contract import Phase
from graphs.manifest import MANIFEST_FILE, Manifest, ManifestError, read_manifest
from graphs.plain_files import hash_file
from runtime.bundle import Bundle, load_bundle
from runtime.errors import BundleError
from runtime.packs.pack_folder import BUILDING, LOCK_FILE, check_pack
from runtime.system.child_process import python_command, python_environment

REPEAT = "repeat"  # the request to `runtime.probe`
MAX_TOLD = 500  # characters of an error
NFS_REMOVED = ".nfs"  # begins the names of such files
COPY_AGAIN = "copy the bundle again from where it came, or export it again"


class UnsoundBundleError(Exception):
    """A bundle is not what its export wrote; the message names the file and what to do."""


def check_bundle(
    folder: Path, tell: Callable[[str], None] = lambda line: None, progress: Progress | None = None
) -> None:
    """Checks everything that there is to check, and stops at the first thing that is wrong.

    Args:
        folder: the bundle.
        tell: given a line for each check that was passed.
        progress: shows the hashing; silent by default.

    Raises:
        UnsoundBundleError: saying what is wrong.
        RuntimeMissingError: if ONNX Runtime, which runs the probe, is not installed.
    """
    started = time.perf_counter()
    for found in _sound_parts(folder, progress or Progress(quiet=True)):
        tell(f"ok {time.perf_counter() - started:7.2f} s  {found}")
        started = time.perf_counter()


def _sound_parts(folder: Path, progress: Progress) -> Iterator[str]:
    """What was found sound, check by check; `UnsoundBundleError` at the first that is not."""
    seen: Manifest | None = None
    try:
        seen = read_manifest(folder)
        yield from _checks(folder, seen, progress)
        _check_unchanged(folder, seen)
    except (ManifestError, BundleError, OSError, UnsoundBundleError) as error:
        if seen is not None:
            _check_unchanged(folder, seen)  # what is wrong may be half of one and half of the other
        raise UnsoundBundleError(str(error)) from error


def _check_unchanged(folder: Path, seen: Manifest) -> None:
    try:
        same = read_manifest(folder) == seen
    except ManifestError:
        same = False
    if not same:
        raise UnsoundBundleError(f"{folder} was replaced while it was checked; check it again")


def _checks(folder: Path, manifest: Manifest, progress: Progress) -> Iterator[str]:
    """Says what was checked, check by check."""
    model = f"{manifest.model.num_parameters} parameters, {manifest.precision} for {manifest.target}"
    yield f"manifest: its own SHA-256; {model}"
    packs = _check_names(folder, manifest)
    yield f"files: {len(manifest.files)} of the manifest's sizes, no others"
    _check_hashes(folder, manifest, progress)
    yield f"SHA-256 of all files, {manifest.total_bytes / 1e6:.1f} MB"
    bundle = load_bundle(folder)
    checked = _check_onnx(bundle)
    yield f"graphs: the contract, known operators, weights within {manifest.weights.name}{checked}"
    if bundle.tokenizer is not None:
        yield f"tokenizer: {bundle.tokenizer.vocabulary_size()} tokens"
    if packs:
        yield _check_packs(packs, progress)
    yield _run_probe(folder, manifest)


def _check_names(folder: Path, manifest: Manifest) -> list[Path]:
    """Sizes and names of all that is in the folder; returns the packs of weights beside them."""
    for entry in manifest.files:
        entry.check_size(folder)
    known = {entry.name for entry in manifest.files} | {MANIFEST_FILE, *DISKS_OWN, *WITHIN_NAMES}
    packed = folder / PACKED
    for path in sorted(folder.iterdir()):
        if not (path.name in known or path == packed or path.name.startswith(NFS_REMOVED)):
            raise UnsoundBundleError(f"{path} is no part of the bundle; remove it")
    if not os.path.lexists(packed):
        return []
    if packed.is_symlink() or not packed.is_dir():
        raise UnsoundBundleError(f"{packed} is a link or no folder; remove it")
    # What a builder is writing, or one that was killed has left, is never read; nor what was removed
    # and is still in use.
    unread = (LOCK_FILE, BUILDING, NFS_REMOVED)
    packs = [path for path in sorted(packed.iterdir()) if not path.name.startswith(unread)]
    return [path for path in packs if not _is_removed(path)]


def _is_removed(pack: Path) -> bool:
    """Whether nothing is left of a folder but what an NFS server keeps for those who have it open."""
    left = [path.name for path in pack.iterdir()] if pack.is_dir() and not pack.is_symlink() else []
    return bool(left) and all(name.startswith(NFS_REMOVED) for name in left)


def _check_hashes(folder: Path, manifest: Manifest, progress: Progress) -> None:
    progress.phase("Hashing", manifest.total_bytes)
    for entry in manifest.files:
        entry.check_digest(folder, hash_file(folder / entry.name, progress.advance))
    progress.close()


def _check_onnx(bundle: Bundle) -> str:
    """Runs ONNX's own checker where it is installed; says so."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnx_ir")):
        return ""
    from graphs.checks import ContractError, check_graph

    manifest = bundle.manifest
    phases = {bundle.graph_path(phase): phase for phase in (Phase.DECODE, Phase.PREFILL)}
    for path, phase in phases.items():
        try:
            check_graph(
                path,
                manifest.model,
                phase,
                manifest.weights.name,
                manifest.cache_dtype,
                manifest.contract_revision,
            )
        except ContractError as error:
            raise BundleError(f"{error}; {COPY_AGAIN}") from None
        except Exception as error:  # the ONNX checker raises its own kinds
            told = " ".join(str(error).split())
            raise BundleError(f"{path} is not valid ONNX: {told}; {COPY_AGAIN}") from None
    return ", valid for the ONNX checker"


def _check_packs(packs: list[Path], progress: Progress) -> str:
    size = sum(path.stat().st_size for pack in packs for path in pack.glob("*") if path.is_file())
    progress.phase("Hashing packed weights", size)
    for pack in packs:
        if (problem := check_pack(pack, progress.advance)) is not None:
            raise UnsoundBundleError(f"{problem}; remove {pack}: packed weights are made anew")
    progress.close()
    return f"SHA-256 of {len(packs)} packs of weights, {size / 1e6:.1f} MB"


def _run_probe(folder: Path, manifest: Manifest) -> str:
    if manifest.probe is None:
        return "no run: the export stored none; --verify full, the default up to 2 GiB, or run does"
    import runtime.onnx_runtime  # noqa: F401  (says what to install where it is missing)

    answer = _repeat_in_child(folder)
    if "problem" in answer:
        raise BundleError(
            f"{folder} does not run as it did at export: {answer['problem']}; {COPY_AGAIN}"
        )
    count = len(manifest.probe.token_ids)
    return f"a run of {count} tokens: those of the export, logits within {answer['difference']:.1e}"


def _repeat_in_child(folder: Path) -> dict[str, Any]:
    """What `runtime.probe` says of the stored run, in a process that a kernel may crash."""
    result = subprocess.run(
        python_command("-m", "runtime.probe", str(folder.absolute()), untrusted=[folder]),
        input=json.dumps(REPEAT).encode(),
        capture_output=True,
        env=python_environment(untrusted=[folder]),
        check=False,
    )
    if result.returncode < 0:
        return {"problem": f"the process was ended by {signal.Signals(-result.returncode).name}"}
    if result.returncode:
        told = result.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        return {"problem": told[-1][:MAX_TOLD]}
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer
