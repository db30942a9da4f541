"""A folder of packed weights on disk, each signed by the user whose process made it.

ONNX Runtime trusts what a pack holds, and a bundle from a stranger may come with a folder `packed` of
its own. So the name of a pack and the signature in it come from a secret of this user: what does not
fit is neither used nor touched. No link in the folder is followed.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphs.plain_files import hash_file, is_plain, read_plain
from graphs.sealed_json import SEAL, SealError, check_seal, seal, unseal
from runtime.packs.user_secret import UserSecret
from runtime.system.file_lock import locked, open_lock
from runtime.system.interrupts import committing, undone_when_ended

FORMAT = 2  # of a pack's folder: raised when the same key must not find what an older version wrote
MODEL_FILE, DATA_FILE, INFO_FILE = "model.onnx", "weights.bin", "info.json"
LOCK_FILE, BUILDING = ".lock", ".building-"
NAME_LENGTH = 16
MAX_INFO_BYTES = 64 * 1024
SIGNATURE = "signature"


@dataclass(frozen=True)
class PackKey:
    """What a pack was made of and for: it serves only where all of this is the same.

    Attributes:
        graph: SHA-256 of the graph file.
        weights: SHA-256 of the weights file.
        cpu: see `runtime.system.cpu_features`.
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


@dataclass(frozen=True)
class PackFolder:
    """A folder of packs: one bundle's own, or the user's, where packs name the bundle as owner.

    Attributes:
        folder: the folder; made when it is first written to.
        owner: the bundle's path in the user's folder; `None` in the bundle's own.
        secret: signs packs.
    """

    folder: Path
    owner: str | None
    secret: UserSecret

    def path(self, key: PackKey) -> Path:
        """Where the pack of a key is, if there is one: nobody else can tell its name beforehand."""
        return self.folder / self.secret.sign(_text(asdict(key)))[:NAME_LENGTH]

    def prepare(self) -> None:
        """Makes the folder and the lock's file; `OSError` if packs cannot be written here."""
        if self.owner is not None:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir()
        self._check_folder()
        os.close(open_lock(self.folder / LOCK_FILE))

    @contextlib.contextmanager
    def locked(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the folder's lock; see `runtime.system.file_lock`."""
        self._check_folder()
        with locked(self.folder / LOCK_FILE, on_wait):
            yield

    def _check_folder(self) -> None:
        if not _is_folder(self.folder):
            raise NotADirectoryError(f"{self.folder} is a link or no folder")

    def holds(self, key: PackKey, *, verify: bool) -> bool:
        """Whether there is a whole pack of a key, made by this user.

        Args:
            key: of the pack.
            verify: whether to check the hash of its weights too.
        """
        info = self._read(self.path(key))
        return (
            info is not None
            and info["key"] == asdict(key)
            and _is_unaltered(self.path(key), info, MODEL_FILE)
            and (not verify or _is_unaltered(self.path(key), info, DATA_FILE))
        )

    def build(self, key: PackKey, write: Callable[[Path], None]) -> None:
        """Makes a pack in a temporary folder that gets its name when complete; the lock is held.

        Args:
            key: of the pack.
            write: writes `MODEL_FILE` and `DATA_FILE` into a folder.

        Raises:
            OSError: if it cannot be written.
        """
        target = self.path(key)
        temporary = self.folder / f"{BUILDING}{target.name}"
        temporary.mkdir()

        try:
            with undone_when_ended(lambda: _remove(temporary)):
                write(temporary)
                self._write_info(temporary, key)
                with committing():
                    temporary.rename(target)
        finally:
            _remove(temporary)
        sync(self.folder)

    def remove(self, key: PackKey) -> None:
        """Removes the pack of a key, whole or not; the lock is held."""
        _remove(self.path(key))

    def remove_stale(self, keys: Collection[PackKey]) -> None:
        """Removes what a bundle with these keys has no use for any more; the lock is held.

        That is: what a builder that was killed has left of these keys, packs of them that are not
        whole, packs of what the bundle was before, and this CPU's packs by another ONNX Runtime. Those
        of other CPUs stay: they may serve other machines that share the disk. What has no signature of
        this user stays too.
        """
        current = {self.path(key).name: key for key in keys}
        for path in self.folder.iterdir():
            name = path.name.removeprefix(BUILDING)
            if name in current:
                stale = name != path.name or not self.holds(current[name], verify=False)
            else:
                stale = len(name) == NAME_LENGTH and self._is_stale(path, keys)
            if stale:
                _remove(path)

    def _is_stale(self, path: Path, keys: Collection[PackKey]) -> bool:
        info = self._read(path)
        if info is None:
            return False
        made: dict[str, object] = info["key"]
        for key in keys:
            if (made.get("graph"), made.get("weights")) == (key.graph, key.weights):
                return made.get("cpu") == key.cpu
        return self.owner is None or info.get("bundle") == self.owner

    def _read(self, folder: Path) -> dict[str, Any] | None:
        """What a pack says of itself; `None` if it is not whole or not signed by this user."""
        if not (_is_folder(self.folder) and (info := read_info(folder))):
            return None
        signed = {name: value for name, value in info.items() if name not in (SIGNATURE, SEAL)}
        return info if self.secret.has_signed(_text(signed), info.get(SIGNATURE)) else None

    def _write_info(self, folder: Path, key: PackKey) -> None:
        """Completes a pack: everything reaches the disk before the pack gets its name."""
        files = {
            path.name: {"size": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted(folder.iterdir())
        }
        values: dict[str, Any] = {"key": asdict(key), "files": files}
        if self.owner is not None:
            values["bundle"] = self.owner
        values[SIGNATURE] = self.secret.sign(_text(values))
        (folder / INFO_FILE).write_bytes(seal(values).encode())
        for path in (*folder.iterdir(), folder):
            sync(path)


def read_info(folder: Path) -> dict[str, Any] | None:
    """What a pack says of itself, whoever signed it; `None` if its files have other sizes."""
    if not _is_folder(folder):
        return None
    try:
        data = read_plain(folder / INFO_FILE, MAX_INFO_BYTES)
        info = unseal(data)
        check_seal(info, data)
        files = info["files"]
        if not isinstance(info["key"], dict) or set(files) != {MODEL_FILE, DATA_FILE}:
            return None
        paths = {folder / name: entry["size"] for name, entry in files.items()}
        whole = all(is_plain(path) and path.stat().st_size == size for path, size in paths.items())
    except (OSError, SealError, KeyError, TypeError, AttributeError):
        return None
    return info if whole else None


def check_pack(folder: Path, advance: Callable[[int], None] = lambda size: None) -> str | None:
    """What is wrong with a pack, whoever made it; `None` if it is as it was made.

    Args:
        folder: the pack.
        advance: told of the bytes that are hashed.
    """
    info = read_info(folder)
    if info is None or {path.name for path in folder.iterdir()} != {*info["files"], INFO_FILE}:
        return f"{folder} is not a whole pack of weights"
    for name in info["files"]:
        if not _is_unaltered(folder, info, name, advance):
            return f"{folder / name} was altered: its SHA-256 is another"
    return None


def _is_unaltered(
    folder: Path, info: Mapping[str, Any], name: str, advance: Callable[[int], None] = lambda size: None
) -> bool:
    try:
        return bool(hash_file(folder / name, advance) == info["files"][name]["sha256"])
    except (OSError, KeyError, TypeError):
        return False


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk, where the system lets one."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _remove(folder: Path) -> None:
    import shutil  # not at every start

    # What is left where a file is held open is no whole pack and goes the next time.
    shutil.rmtree(folder, ignore_errors=True)


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
