"""A folder that is either whole or not there: replacing, failing, being killed, two at once."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from exporter import output_place
from exporter.bundle_folder import atomic_folder
from exporter.errors import ExportError
from exporter.output_place import Beside

OLD = {"a.txt": "old", "old.txt": "old"}
NEW = {"a.txt": "new", "b/c.txt": "new"}


def contents(folder):
    """Text of every file; `None` for no folder."""
    if not folder.exists():
        return None
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def beside(target):
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def write(folder, texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def put(target, texts, error=None):
    with atomic_folder(target) as folder:
        write(folder, texts)
        if error is not None:
            raise error


def path_of(descriptor):
    """Where an open file is."""
    return os.path.realpath(f"/proc/self/fd/{descriptor}")


@pytest.fixture
def old(tmp_path):
    """A folder that stands at the target."""
    target = tmp_path / "bundle"
    target.mkdir()
    write(target, OLD)
    return target


@pytest.fixture(params=["swap", "two steps"])
def way(request, monkeypatch):
    """With and without a system that swaps two folders."""
    if request.param == "two steps":
        monkeypatch.setattr(output_place, "_swap", lambda first, second: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux swaps two folders")
    return request.param


def test_the_old_folder_stands_until_the_new_one_does(old, way):
    with atomic_folder(old) as folder:
        write(folder, NEW)
        assert contents(old) == OLD
    assert contents(old) == NEW
    assert beside(old) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux swaps two folders")
def test_two_folders_are_swapped_in_one_step(old, monkeypatch):
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("not in one step"))
    put(old, NEW)
    assert contents(old) == NEW


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux swaps two folders")
def test_a_swap_that_fails_for_good_is_an_error(old, tmp_path):
    with pytest.raises(FileNotFoundError, match="not_there"):
        output_place._swap(old, tmp_path / "not_there")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the paths of open files in /proc")
def test_everything_is_synchronized_before_it_is_renamed(old, way, monkeypatch):
    synced, install = [], Beside.install
    fsync = os.fsync

    def note(descriptor):
        synced.append(path_of(descriptor))
        fsync(descriptor)

    def install_after(place):
        names = ("", "/a.txt", "/b", "/b/c.txt")
        assert sorted(synced) == [f"{place.partial}{name}" for name in names]
        synced.clear()
        install(place)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Beside, "install", install_after)
    put(old, NEW)
    assert synced == [str(old.parent)]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the paths of open files in /proc")
def test_new_folders_above_the_target_are_synchronized_first(tmp_path, monkeypatch):
    """A name is on the disk once its folder is."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path_of(descriptor)))
    with atomic_folder(tmp_path / "x" / "y" / "bundle"):
        assert synced == [str(tmp_path / "x"), str(tmp_path)]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_an_error_leaves_everything_as_it_was(old, tmp_path, error, way):
    for target, before in ((old, OLD), (tmp_path / "x" / "y" / "new", None)):
        with pytest.raises(type(error)):
            put(target, NEW, error)
        assert contents(target) == before
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_folders_above_the_target_stay_where_another_has_used_them(tmp_path):
    with contextlib.suppress(KeyError), atomic_folder(tmp_path / "x" / "y" / "b"):
        (tmp_path / "x" / "mine").write_text("")
        raise KeyError
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["mine"]


@pytest.mark.parametrize("error", [OSError("cannot rename"), KeyboardInterrupt()], ids=repr)
def test_failing_between_the_two_renames_brings_the_old_folder_back(old, monkeypatch, error):
    rename = Path.rename

    def rename_once(self, target):
        if self.name.endswith(".partial"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(output_place, "_swap", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", rename_once)
    with pytest.raises(type(error)):
        put(old, NEW)
    assert contents(old) == OLD
    assert beside(old) == []


# === Killed ===


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
@pytest.mark.parametrize("before", [OLD, None], ids=["old", "fresh"])
def test_a_kill_before_every_call_that_changes_folders(tmp_path, way, before):
    """In turn; and the next one with that target finds the old folder or the new one, and cleans."""
    target, outcomes = tmp_path / "bundle", []
    for number in range(40):
        if before:
            target.mkdir()
            write(target, before)
        killed = kill_before(number, lambda: put(target, NEW))
        state = contents(target)
        if way == "two steps" and before and state is None:
            assert (tmp_path / ".bundle.replaced").is_dir()  # whole, and put back below
            state = before
        assert state in (before, NEW)
        with contextlib.suppress(KeyError), atomic_folder(target):
            assert beside(target) == [".bundle.lock", ".bundle.partial"]
            raise KeyError
        assert contents(target) == state
        assert beside(target) == []
        outcomes.append("new" if state == NEW else "old")
        shutil.rmtree(target, ignore_errors=True)
        if not killed:
            break
    assert not killed
    assert len(outcomes) >= 8
    assert outcomes == sorted(outcomes, reverse=True)  # first the old, from some call on the new
    assert set(outcomes) == {"old", "new"}


def kill_before(number, work):
    """Whether work in a process of its own came to that call that changes folders, and died there."""
    child = os.fork()
    if not child:
        try:
            from tests.faults.killing import kill_before_call

            kill_before_call(number)
            work()
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_leftovers_of_another_target_stay(old):
    names = [".other.partial", ".other.lock", ".bundle.partial-old", "bundle.partial"]
    for name in names:
        (old.parent / name).mkdir()
    put(old, NEW)
    assert beside(old) == sorted(names)


def test_what_was_planted_as_a_lock_is_not_followed(old, tmp_path):
    lock = old.parent / ".bundle.lock"
    (tmp_path / "mine").write_text("mine")
    for plant in (lambda: lock.symlink_to(tmp_path / "mine"), lambda: os.mkfifo(lock), lock.mkdir):
        plant()
        with pytest.raises(OSError, match=r"\.bundle\.lock is a link or no regular file; remove it"):
            put(old, NEW)
        assert os.path.lexists(lock)
        lock.rmdir() if lock.is_dir() else lock.unlink()
    assert (tmp_path / "mine").read_text() == "mine"
    assert contents(old) == OLD


def test_a_reused_process_id_in_the_lock_of_a_killed_export_does_not_matter(old):
    (old.parent / ".bundle.lock").write_text(f"{os.getpid()}\n")
    put(old, NEW)
    assert contents(old) == NEW
    assert beside(old) == []


# === Two at once ===


def test_one_of_two_wins_and_the_other_says_so(old):
    with atomic_folder(old) as folder:
        write(folder, NEW)
        with pytest.raises(ExportError) as raised:
            put(old, OLD)
        assert str(raised.value) == (
            f"process {os.getpid()} is writing {old} right now; wait for it or choose another --output"
        )
        assert beside(old) == [".bundle.lock", ".bundle.partial"]
    assert contents(old) == NEW
    assert beside(old) == []


def test_two_names_of_one_target_are_one(old, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with (
        atomic_folder(old),
        pytest.raises(ExportError, match=r"is writing .*/link/bundle right now"),
        atomic_folder(tmp_path / "link" / "bundle"),
    ):
        pass


def test_a_disk_without_locks(old, monkeypatch):
    from runtime.system import file_lock

    def no_locks(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(file_lock, "_try_lock", no_locks)
    with pytest.raises(ExportError, match=r"has no file locks \(No locks available\); choose an"):
        put(old, NEW)
    assert contents(old) == OLD


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_disk_that_is_full_at_once(old, monkeypatch, call):
    def full(*_, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((Path, "mkdir", full) if call == "mkdir" else (os, "open", full)))
    with pytest.raises(ExportError, match=r"is full \(No space left on device\): 0\.00 MB of the"):
        put(old, NEW)
    monkeypatch.undo()
    assert contents(old) == OLD
    assert beside(old) in ([], [".bundle.lock"])
