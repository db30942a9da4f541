"""A folder of packed weights on disk, each signed by the user whose process made it.

ONNX Runtime trusts what a pack holds, and a bundle from a stranger may come with a folder `packed` of
its own. So the name of a pack and the signature in it come from a secret of this user: what does not
fit is not used. No link in the folder is followed.

A container that starts with a new home has a new secret, and another version of ONNX Runtime another
key. So of each graph file there may be `MOST_PACKS` packs for this CPU and `MOST_ELSEWHERE` for all
others; whoever makes one removes those beyond that which were used longest ago, also where another
secret signed them. A process that has a pack mapped keeps it: the system frees the room when it ends.
What is no pack in form, or belongs to another user of the system, is never removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import time
from collections import Counter
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
MOST_PACKS, MOST_ELSEWHERE = 3, 6  # of a graph file: for this CPU, and for all others
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

    def _building(self, key: PackKey) -> Path:
        return self.folder / f"{BUILDING}{self.path(key).name}"

    def prepare(self) -> None:
        """Makes the folder and the lock's file; `OSError` if packs cannot be written here."""
        if self.owner is not None:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir()
        self._check_folder()
        os.close(open_lock(self.folder / LOCK_FILE))

    @contextlib.contextmanager
    def locked(self, patience: float, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the folder's lock; see `runtime.system.file_lock`.

        A builder shows progress by what it writes, and by `show_progress` where it only reads.
        """
        self._check_folder()
        lock = self.folder / LOCK_FILE
        with locked(lock, patience=patience, progress=self._progress, on_wait=on_wait):
            yield

    def show_progress(self) -> None:
        """Tells those who wait that the holder of the lock is at work."""
        lock = self.folder / LOCK_FILE
        with contextlib.suppress(OSError):
            # Not more often than needed; a server's clock may go ahead.
            if abs(time.time() - lock.stat().st_mtime) > 1:
                os.utime(lock)

    def _progress(self) -> object:
        found = []
        for path in (self.folder / LOCK_FILE, *self.folder.glob(f"{BUILDING}*/*")):
            with contextlib.suppress(OSError):
                status = path.lstat()
                found.append((path, status.st_size, status.st_mtime_ns))
        return found

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

    def touch(self, key: PackKey) -> None:
        """Notes that a pack was used."""
        with contextlib.suppress(OSError):
            os.utime(self.path(key))

    def build(self, key: PackKey, write: Callable[[Path], None]) -> None:
        """Makes a pack in a temporary folder that gets its name when complete; the lock is held.

        Args:
            key: of the pack.
            write: writes `MODEL_FILE` and `DATA_FILE` into a folder.

        Raises:
            OSError: if it cannot be written.
        """
        target = self.path(key)
        temporary = self._building(key)
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
        """Removes the pack of a key, whole or not, and what was to be one; the lock is held."""
        _remove(self.path(key))
        _remove(self._building(key))

    def remove_stale(self, keys: Collection[PackKey]) -> None:
        """Removes what a bundle with these keys has no use for any more; the lock is held.

        That is: what builders that were killed have left, packs of these keys that are not whole, packs
        of what the bundle was before, and those beyond the bounds at the top of this file.
        """
        current = {self.path(key).name: key for key in keys}
        room: Counter[object] = Counter()
        for path in self._removable():
            if path.name in current:
                stale = not self.holds(current[path.name], verify=False)
            elif path.name.startswith(BUILDING):
                stale = True
            elif (group := self._group(path, keys)) is not None:
                _, here = group
                room[group] += 1
                stale = room[group] > (MOST_PACKS - 1 if here else MOST_ELSEWHERE)
            else:
                stale = not self._is_of_another_bundle(path)
            if stale:
                _remove(path)

    def _removable(self) -> list[Path]:
        """Packs and parts of packs of this user of the system, the last used one first."""
        found = [path for path in self.folder.iterdir() if _is_pack_in_form(path)]
        return sorted(found, key=lambda path: -path.lstat().st_mtime_ns)

    def _group(self, path: Path, keys: Collection[PackKey]) -> tuple[str, bool] | None:
        """The graph file that a pack is of, and whether it is for this CPU; `None` if no key's."""
        if (info := read_info(path)) is None or (self.owner is not None and self._read(path) is None):
            return None
        made: dict[str, object] = info["key"]
        for key in keys:
            if (made.get("graph"), made.get("weights")) == (key.graph, key.weights):
                return key.graph, made.get("cpu") == key.cpu
        return None

    def _is_of_another_bundle(self, path: Path) -> bool:
        """In the user's folder; a bundle's own has no others."""
        return (
            self.owner is not None
            and (info := self._read(path)) is not None
            and info.get("bundle") != self.owner
        )

    def _read(self, folder: Path) -> dict[str, Any] | None:
        """What a pack says of itself; `None` if it is not whole or not signed by this user."""
        if not (_is_folder(self.folder) and (info := read_info(folder))):
            return None
        signed = {name: value for name, value in info.items() if name not in (SIGNATURE, SEAL)}
        return info if self.secret.has_signed(_text(signed), info.get(SIGNATURE)) else None

    def _write_info(self, folder: Path, key: PackKey) -> None:
        """Completes a pack: everything reaches the disk before the pack gets its name."""
        files = {
            path.name: {
                "size": path.stat().st_size,
                "sha256": hash_file(path, lambda size: self.show_progress()),
            }
            for path in sorted(folder.iterdir())
        }
        values: dict[str, Any] = {"key": asdict(key), "files": files}
        if self.owner is not None:
            values["bundle"] = self.owner
        values[SIGNATURE] = self.secret.sign(_text(values))
        (folder / INFO_FILE).write_bytes(seal(values).encode())
        for path in (*folder.iterdir(), folder):
            self.show_progress()
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


def is_pack_name(name: str) -> bool:
    """Whether a folder of that name is a pack, or one that is being made."""
    return re.fullmatch(f"({re.escape(BUILDING)})?[0-9a-f]{{{NAME_LENGTH}}}", name) is not None


def _is_pack_in_form(path: Path) -> bool:
    """Whether a folder is this user's and has a pack's name and nothing but a pack's files."""
    if not (_is_folder(path) and is_pack_name(path.name)):
        return False
    try:
        own = sys.platform == "win32" or path.lstat().st_uid == os.geteuid()
        files = list(path.iterdir())
    except OSError:
        return False
    known = {MODEL_FILE, DATA_FILE, INFO_FILE}
    return own and all(file.name in known and is_plain(file) for file in files)


def _remove(folder: Path) -> None:
    """Removes a folder in a folder of packs, even if somebody puts a link in the place of that."""
    import shutil  # not at every start

    # What is left where a file is held open is no whole pack and goes the next time.
    if not shutil.rmtree.avoids_symlink_attacks:
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            shutil.rmtree(folder.name, ignore_errors=True, dir_fd=parent)
        finally:
            os.close(parent)


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
