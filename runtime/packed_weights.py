"""The packed-weights cache: a bundle's weights as the kernels of this CPU want them, on disk.

ONNX Runtime's kernels repack weights when a session is opened: seconds, and a private copy in every
process. A pack keeps the result in a folder, from which later sessions map it; processes share it.
What it holds depends on the CPU and on ONNX Runtime, so it is a cache beside the bundle and no part of
it: `BUNDLE/packed/<key>/`, or `opt-onnx/packed/<key>/` in the user's cache folder where the bundle
cannot be written to. Deleting it is always safe.

A pack is loaded without hashing gigabytes. Whoever can write to its folder can change what the model
says, as whoever can write to the bundle can.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from graphs.manifest import FileEntry, ManifestError, read_manifest
from runtime.bundle import Bundle
from runtime.cpu_features import cpu_features
from runtime.errors import BundleError
from runtime.file_lock import locked

FORMAT = 1  # of a pack's folder: raised when the same key must not find what an older version wrote
MODEL_FILE, DATA_FILE, INFO_FILE = "model.onnx", "weights.bin", "info.json"
LOCK_FILE, BUILDING = ".lock", ".building-"
KEY_LENGTH = 16
# ONNX Runtime saves the original weights beside the packed ones, which may be padded.
DISK_FACTOR = 2.1

_Session = TypeVar("_Session")
_logger = logging.getLogger("runtime")


class PackError(Exception):
    """There is no pack and none can be made; the message says why."""


@dataclass(frozen=True)
class PackKey:
    """What a pack was made of and for: it serves only where all of this is the same.

    Attributes:
        graph: SHA-256 of the graph file.
        weights: SHA-256 of the weights file.
        cpu: see `runtime.cpu_features`.
        runtime: version and build of ONNX Runtime.
        options: the session's configuration entries that shape its kernels or weights.
        format: `FORMAT`.
    """

    graph: str
    weights: str
    cpu: str
    runtime: str
    options: Mapping[str, str]
    format: int

    @property
    def name(self) -> str:
        """The name of the pack's folder."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class PackedWeights:
    """The packs of one bundle.

    Args:
        bundle: whose weights.
        runtime: version and build of ONNX Runtime.
        options: configuration entries that shape a session's kernels or weights.
        write: packs a graph file: writes `MODEL_FILE` and `DATA_FILE` into a folder.
    """

    def __init__(
        self,
        bundle: Bundle,
        runtime: str,
        options: Mapping[str, str],
        write: Callable[[Path, Path], None],
    ) -> None:
        self._bundle = bundle
        self._write = write
        weights, cpu = bundle.manifest.weights.sha256, cpu_features()
        self._keys = {
            graph: PackKey(graph.sha256, weights, cpu, runtime, options, FORMAT)
            for graph in bundle.manifest.graphs.values()
        }
        self._places = [_Place(bundle.folder / "packed", None)]
        if (cache := user_cache_folder()) is not None:
            owner = os.fspath(bundle.folder.resolve())
            self._places.append(_Place(cache / "opt-onnx" / "packed", owner))

    def open(self, graph: FileEntry, open_model: Callable[[Path], _Session]) -> _Session:
        """Opens the packed model of one of the bundle's graph files, made if there is none.

        Of several that ask at the same time, threads or processes, one packs and the others wait. A
        pack that does not load is made anew, once.

        Args:
            graph: the graph file.
            open_model: opens a model file; `BundleError` if it does not load.

        Raises:
            PackError: if it cannot be made, for want of a folder to write to or of room, or if what
                was made does not load.
        """
        try:
            return open_model(self._model_path(graph))
        except BundleError:
            self._drop(self._keys[graph])
        try:
            return open_model(self._model_path(graph))
        except BundleError as error:
            self._drop(self._keys[graph])
            raise PackError(f"the pack that was made does not load: {error}") from error

    def _model_path(self, graph: FileEntry) -> Path:
        key = self._keys[graph]
        for place in self._places:
            if place.holds(key):
                return place.folder / key.name / MODEL_FILE
        problems = []
        for place in self._places:
            try:
                place.prepare()
            except OSError as error:
                problems.append(f"{error}")
                continue
            return self._make(place, graph)
        size = _in_words(self._needed(graph))
        raise PackError(f"no pack of {size} can be written: {'; '.join(problems)}")

    def _drop(self, key: PackKey) -> None:
        for place in self._places:
            if place.holds(key):
                with contextlib.suppress(OSError), locked(place.lock):
                    _remove(place.folder / key.name)

    def _make(self, place: _Place, graph: FileEntry) -> Path:
        key = self._keys[graph]
        try:
            with locked(place.lock, on_wait=lambda: _logger.info("Waiting for packed weights ...")):
                if not place.holds(key):
                    place.remove_stale(self._keys.values())
                    self._build(place, graph, key)
        except (OSError, BundleError, ManifestError) as error:
            size = _in_words(self._needed(graph))
            raise PackError(f"no pack of {size} can be written to {place.folder}: {error}") from error
        return place.folder / key.name / MODEL_FILE

    def _build(self, place: _Place, graph: FileEntry, key: PackKey) -> None:
        """Makes a pack in a temporary folder that gets its name when complete; the lock is held."""
        free = shutil.disk_usage(place.folder).free
        if free < self._needed(graph):
            raise OSError(f"only {_in_words(free)} are free")
        size = _in_words(self._bundle.manifest.weights.size)
        _logger.info("Packing weights for this CPU (once): %s ...", size)
        temporary = place.folder / f"{BUILDING}{key.name}"
        temporary.mkdir()
        try:
            self._write(self._bundle.folder / graph.name, temporary)
            # The hashes in the key are the manifest's: they must still be those of what was read.
            if read_manifest(self._bundle.folder) != self._bundle.manifest:
                raise OSError(f"{self._bundle.folder} was replaced meanwhile")
            _write_info(temporary, key, place.owner)
            temporary.rename(place.folder / key.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(place.folder)

    def _needed(self, graph: FileEntry) -> int:
        return int(self._bundle.manifest.weights.size * DISK_FACTOR) + graph.size


@dataclass(frozen=True)
class _Place:
    """A folder of packs: one bundle's own, or the user's, where packs name the bundle as owner."""

    folder: Path
    owner: str | None

    @property
    def lock(self) -> Path:
        return self.folder / LOCK_FILE

    def prepare(self) -> None:
        """Makes the folder and the lock's file; `OSError` if packs cannot be written here."""
        self.folder.mkdir(parents=self.owner is not None, exist_ok=True)
        os.close(os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o666))

    def holds(self, key: PackKey) -> bool:
        info = _read_whole(self.folder / key.name)
        return info is not None and info["key"] == asdict(key)

    def remove_stale(self, keys: Iterable[PackKey]) -> None:
        """Removes what a bundle with these keys has no use for any more; the lock is held.

        That is: what a builder that was killed has left, packs that are not whole, packs of what the
        bundle was before, and this CPU's packs by another ONNX Runtime. Those of other CPUs stay: they
        may serve other machines that share the disk.
        """
        current = {key.name: key for key in keys}
        for path in self.folder.iterdir():
            leftover = path.name.startswith(BUILDING)
            pack = len(path.name) == KEY_LENGTH and path.is_dir()
            if leftover or (pack and self._is_stale(path, current)):
                _remove(path)

    def _is_stale(self, path: Path, current: Mapping[str, PackKey]) -> bool:
        info = _read_whole(path)
        if info is None:
            return True
        made: dict[str, object] = info["key"]
        if path.name in current:
            return made != asdict(current[path.name])
        for key in current.values():
            if (made.get("graph"), made.get("weights")) == (key.graph, key.weights):
                return made.get("cpu") == key.cpu
        return self.owner is None or info.get("bundle") == self.owner


def user_cache_folder() -> Path | None:
    """Where this system keeps what programs cache for a user; `None` for a user without a home."""
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    given = Path(os.environ.get(variable, ""))
    if given.is_absolute():
        return given
    try:
        home = Path.home()
    except RuntimeError:
        return None
    folders = {"win32": "AppData/Local", "darwin": "Library/Caches"}
    return home / folders.get(sys.platform, ".cache")


def _write_info(folder: Path, key: PackKey, owner: str | None) -> None:
    """Completes a pack: everything reaches the disk before the pack gets its name."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    values: dict[str, Any] = {"key": asdict(key), "files": sizes}
    if owner is not None:
        values["bundle"] = owner
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (folder / INFO_FILE).write_text(text, encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _read_whole(folder: Path) -> dict[str, Any] | None:
    """What a pack says of itself; `None` if it is not there or its files have other sizes."""
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        files = info["files"]
        if not isinstance(info["key"], dict) or not {MODEL_FILE, DATA_FILE} <= set(files):
            return None
        whole = all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return info if whole else None


def _remove(folder: Path) -> None:
    # What is left where a file is held open is no whole pack and goes the next time.
    shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk, where the system lets one."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
