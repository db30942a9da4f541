"""The packed-weights cache: a bundle's weights as the kernels of this CPU want them, on disk.

ONNX Runtime's kernels repack weights when a session is opened: seconds, and a private copy in every
process. A pack keeps the result in a folder, from which later sessions map it; processes share it.
What it holds depends on the CPU and on ONNX Runtime, so it is a cache beside the bundle and no part of
it: `BUNDLE/packed/<name>/`, or `opt-onnx/packed/<name>/` in the user's cache folder where the bundle
cannot be written to or its disk is full. Deleting it is always safe.

A pack is used by the user who made it alone, see `runtime.packs.pack_folder`. Its gigabytes are hashed
when it is made and where a bundle is loaded with `verify=True`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from graphs.manifest import FileEntry, ManifestError
from graphs.native_path import path_text
from graphs.plain_files import hash_file
from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.log import tell
from runtime.packs.pack_folder import FORMAT, MODEL_FILE, PackFolder, PackKey
from runtime.packs.user_secret import UserSecret
from runtime.system.cpu_features import cpu_features
from runtime.system.file_lock import LockStalledError

# How long to wait for another builder that shows no progress. While ONNX Runtime packs, and while the
# system writes to the disk, nothing of it shows: as long as slow ones take for the size of the pack.
PATIENCE_SECONDS, SLOW_BYTES_PER_SECOND = 30, 25e6

# ONNX Runtime saves the original weights beside the packed ones, which may be padded; a table that is
# both looked up and multiplied with is there three times.
DISK_FACTOR = 2.3

_Session = TypeVar("_Session")


class PackError(Exception):
    """There is no pack and none can be made; the message says why."""


class WeightsAlteredError(BundleError):
    """The weights that were to be packed are not those of the manifest."""


class PackedWeights:
    """The packs of one bundle.

    Args:
        bundle: whose weights.
        runtime: version and build of ONNX Runtime.
        options: configuration entries that shape a session's kernels or weights.
        write: packs a graph file: writes `MODEL_FILE` and `DATA_FILE` into a folder.

    Raises:
        PackError: if there is no place for the secret that packs are signed with.
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
        if (cache := user_cache_folder()) is None:
            raise PackError("this user has no home for the secret that packed weights are signed with")
        try:
            secret = UserSecret(cache / "opt-onnx")
        except OSError as error:
            raise PackError(f"the secret that packed weights are signed with: {error}") from error
        self._places = [
            PackFolder(bundle.folder / "packed", None, secret),
            PackFolder(cache / "opt-onnx" / "packed", path_text(bundle.folder.resolve()), secret),
        ]

    def open(self, graph: FileEntry, open_model: Callable[[Path], _Session]) -> _Session:
        """Opens the packed model of one of the bundle's graph files, made if there is none.

        Of several that ask at the same time, threads or processes, one packs and the others wait. A
        pack that does not load is made anew, once.

        Args:
            graph: the graph file.
            open_model: opens a model file; `BundleError` if it does not load.

        Raises:
            BundleError: if the weights were altered.
            PackError: if it cannot be made, for want of a folder to write to or of room, if what was
                made does not load, or if another builder has shown no progress for too long.
        """
        try:
            return self._open(graph, open_model)
        except LockStalledError as error:
            raise PackError(str(error)) from error

    def _open(self, graph: FileEntry, open_model: Callable[[Path], _Session]) -> _Session:
        path = self._model_path(graph)
        try:
            return open_model(path)
        except BundleError:
            self._drop(graph)
        path = self._model_path(graph)
        try:
            return open_model(path)
        except BundleError as error:
            self._drop(graph)
            raise PackError(f"the pack that was made does not load: {error}") from error

    def _model_path(self, graph: FileEntry) -> Path:
        key = self._keys[graph]
        for place in self._places:
            if place.holds(key, verify=self._bundle.verified):
                place.touch(key)
                return place.path(key) / MODEL_FILE
        problems = []
        for place in self._places:
            try:
                place.prepare()
                return self._make(place, graph)
            except (WeightsAlteredError, LockStalledError):
                raise
            except (OSError, BundleError, ManifestError) as error:
                self._bundle.check_unchanged()
                problems.append(f"to {place.folder}: {error}")
        size = _in_words(self._needed(graph))
        raise PackError(f"no pack of {size} can be written {'; or '.join(problems)}")

    def _drop(self, graph: FileEntry) -> None:
        key = self._keys[graph]
        for place in self._places:
            if place.holds(key, verify=False):
                with contextlib.suppress(OSError), place.locked(self._patience(graph)):
                    place.remove(key)

    def _make(self, place: PackFolder, graph: FileEntry) -> Path:
        key = self._keys[graph]
        with place.locked(self._patience(graph), lambda: tell("Waiting for packed weights ...")):
            if not place.holds(key, verify=self._bundle.verified):
                place.remove(key)
                place.remove_stale(self._keys.values())
                self._check_room(place, graph)
                self._check_weights(place)
                place.build(key, lambda folder: self._write_into(folder, graph))
        return place.path(key) / MODEL_FILE

    def _check_room(self, place: PackFolder, graph: FileEntry) -> None:
        import shutil  # not at every start

        free = shutil.disk_usage(place.folder).free
        if free < self._needed(graph):
            raise OSError(f"only {_in_words(free)} are free")

    def _check_weights(self, place: PackFolder) -> None:
        """A pack of altered weights would outlive them: nobody would look at those again."""
        if self._bundle.verified:
            return
        folder, weights = self._bundle.folder, self._bundle.manifest.weights
        digest = hash_file(folder / weights.name, lambda size: place.show_progress())
        try:
            weights.check_digest(folder, digest)
        except ManifestError as error:
            self._bundle.check_unchanged()
            raise WeightsAlteredError(str(error)) from None

    def _write_into(self, folder: Path, graph: FileEntry) -> None:
        size = _in_words(self._bundle.manifest.weights.size)
        tell(f"Packing weights for this CPU (once): {size} ...")
        self._write(self._bundle.folder / graph.name, folder)
        # The hashes in the key are the manifest's: they must still be those of what was read.
        self._bundle.check_unchanged()

    def _patience(self, graph: FileEntry) -> float:
        return PATIENCE_SECONDS + self._needed(graph) / SLOW_BYTES_PER_SECOND

    def _needed(self, graph: FileEntry) -> int:
        usual = int(self._bundle.manifest.weights.size * DISK_FACTOR)
        return max(usual, self._bundle.pack_bytes[graph.name]) + graph.size


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


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
