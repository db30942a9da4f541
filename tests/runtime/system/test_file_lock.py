"""Locks on files: one holder, bounded waiting, and nothing planted in a lock's place is taken."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.system.file_lock import LockHeldError, LockStalledError, locked, open_lock, passing_lock

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other modes and locks")
WAYS: dict[str, Callable[[Path], Any]] = {
    "waiting": lambda path: locked(path, patience=60),
    "passing": passing_lock,
}


@pytest.fixture(params=WAYS)
def hold(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    """Each of the two ways to hold a lock."""
    return WAYS[request.param]


def test_a_lock_is_held_by_one_thread(tmp_path: Path) -> None:
    """The tests of packed weights show the same for processes."""
    inside, most = 0, 0
    guard = threading.Lock()

    def enter(path: Path) -> None:
        nonlocal inside, most
        with locked(path, patience=60):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)
            with guard:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, [tmp_path / "lock"] * 16))
    assert most == 1


def test_the_holder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("99999999999999\nof a process that was killed\n")
    for _ in range(2):
        with locked(path, patience=60):
            assert path.read_text() == f"{os.getpid()}\n"
            with pytest.raises(LockHeldError) as held, passing_lock(path):
                pass
            assert held.value.holder == os.getpid()
    assert path.read_text() == ""
    with passing_lock(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


@posix
def test_what_a_killed_holder_has_written_is_gone(hold: Callable[[Path], Any], tmp_path: Path) -> None:
    """Else the rest of its longer number would make the next one's unreadable."""
    path = tmp_path / "lock"
    path.write_text("123456789012345\n")
    path.chmod(0o600)
    with hold(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(LockHeldError) as held, passing_lock(path):
            pass
        assert held.value.holder == os.getpid()


# === Waiting ===


def test_waiting_ends(tmp_path: Path) -> None:
    path, told = tmp_path / "lock", list[str]()
    with locked(path, patience=60):
        started = time.monotonic()
        with (
            pytest.raises(
                LockStalledError, match=rf"process {os.getpid()} has held .*lock for 0 s and"
            ),
            locked(path, patience=0.3, on_wait=lambda: told.append("waits")),
        ):
            pass
        assert 0.3 <= time.monotonic() - started < 5
    assert told == ["waits"]


def test_the_last_progress_counts(tmp_path: Path) -> None:
    path, since = tmp_path / "lock", time.monotonic()

    def progress() -> object:
        return int(10 * min(1.0, time.monotonic() - since))  # for one second, ten times

    with (
        locked(path, patience=60),
        pytest.raises(LockStalledError),
        locked(path, patience=0.4, progress=progress),
    ):
        pass
    assert time.monotonic() - since >= 1.3


def test_a_lock_that_is_free_is_not_waited_for(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", patience=0, on_wait=lambda: pytest.fail("waits")):
        pass


def test_a_lock_whose_file_was_removed_meanwhile(tmp_path: Path) -> None:
    """Whoever waited for the old file must not be beside the one who made a new one."""
    path, inside = tmp_path / "lock", list[str]()

    def enter(waits: threading.Event) -> None:
        with locked(path, patience=60, on_wait=waits.set):
            inside.append("in")
            assert len(inside) == 1
            time.sleep(0.2)
            inside.pop()

    with ThreadPoolExecutor(2) as pool:
        waits = [threading.Event(), threading.Event()]
        with locked(path, patience=60):
            first = pool.submit(enter, waits[0])
            assert waits[0].wait(60)
            path.unlink()
            second = pool.submit(enter, waits[1])
            time.sleep(0.1)
        first.result()
        second.result()


@posix
def test_ctrl_c_ends_waiting_at_once(tmp_path: Path) -> None:
    def interrupt() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    path = tmp_path / "lock"
    with locked(path, patience=60):
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt), locked(path, patience=60, on_wait=interrupt):
            pass
        assert time.monotonic() - started < 5


@posix
def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path, hold: Any) -> None:
    """It has the file open for as long as it runs."""
    read, write = os.pipe()
    with hold(tmp_path / "lock"):
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)  # until the parent closes the other end
            os._exit(0)
    try:
        with locked(tmp_path / "lock", patience=0):
            pass
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


# === Who may hold a lock ===


@posix
def test_others_cannot_even_read_it(tmp_path: Path, hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may read a file may lock it."""
    path = tmp_path / "lock"
    old = os.umask(0)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fchmod", lambda *_: pytest.fail("readable for a moment"))
            with hold(path):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.unlink(missing_ok=True)
        path.touch(0o666)
        path.chmod(0o666)  # as an older version left it
        with hold(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


@posix
def test_a_lock_of_another_user_is_not_taken(tmp_path: Path, hold: Any, monkeypatch: Any) -> None:
    path = tmp_path / "lock"
    path.touch()
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(OSError, match=f"is a lock of another user, with the id {owner}"), hold(path):
        pass


PLANTED: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to(path.with_name("mine")),
    "a link to nothing": lambda path: path.symlink_to(path.with_name("nothing")),
    "a link to a device": lambda path: path.symlink_to("/dev/null"),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
}


@posix
@pytest.mark.parametrize("kind", PLANTED)
def test_what_was_planted_is_not_opened(tmp_path: Path, hold: Any, kind: str) -> None:
    path = tmp_path / "lock"
    (tmp_path / "mine").write_text("mine")
    PLANTED[kind](path)
    with pytest.raises(OSError, match="lock is a link or no regular file; remove it"), hold(path):
        pass
    assert os.path.lexists(path)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


@posix
@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_at_the_last_moment_is_not_opened(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    (tmp_path / "mine").write_text("mine")
    PLANTED[kind](path)
    monkeypatch.setattr("runtime.system.file_lock.is_plain", lambda path: True)
    with pytest.raises(OSError, match="lock"):
        open_lock(path)
    assert not (tmp_path / "nothing").exists()


@posix
@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only the administrator becomes another user"
)
def test_another_user_cannot_hold_the_lock(hold: Any) -> None:
    program = """
import os, sys
os.setuid(65534)
os.open(sys.argv[1], os.O_RDONLY)
print("readable", flush=True)
os.open(sys.argv[2], os.O_RDONLY)
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "readable").touch(0o644)
        with hold(folder / "lock"):
            command = [sys.executable, "-c", program, folder / "readable", folder / "lock"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "readable\n"
    assert "PermissionError" in result.stderr
