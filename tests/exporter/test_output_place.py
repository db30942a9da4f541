"""Targets that stay the folders that they are: mount points, working folders, folders of others."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from exporter import bundle_folder, output_place
from exporter.bundle_folder import atomic_folder, check_target
from exporter.errors import ExportError
from exporter.output_place import Within, cannot_be_renamed
from graphs.manifest import read_manifest
from tests.exporter.test_bundle_folder import (
    NEW,
    OLD,
    beside,
    contents,
    kill_before,
    path_of,
    put,
    write,
)
from tests.runtime.toy import edit_manifest

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mounts")


@pytest.fixture
def old(toy_bundle_copy):
    """A bundle that stands at the target, with a file that no export wrote."""
    (toy_bundle_copy / "notes.txt").write_text("mine")
    return toy_bundle_copy


@pytest.fixture
def new(old, tmp_path):
    """A bundle that is to replace it: with another manifest, and one graph file less."""

    def edit(values):
        values["target"] = "cpu"
        values["graphs"]["decode"] = values["graphs"]["prefill"]

    folder = shutil.copytree(old, tmp_path / "new")
    edit_manifest(folder, edit)
    (folder / "decode.onnx").unlink()
    (folder / "notes.txt").unlink()
    return folder


def files(folder):
    """Bytes of every file by name."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def place(target, source):
    with atomic_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


@pytest.fixture(params=["known", "found out at the end"])
def stays(request, monkeypatch):
    """A target that cannot be renamed; told beforehand, or by the system when everything is done."""
    if request.param == "known":
        monkeypatch.setattr(bundle_folder, "cannot_be_renamed", lambda target: target.is_dir())
        monkeypatch.setattr(output_place, "_swap", lambda *_: pytest.fail("renamed"))
    else:
        # Files that no export wrote are kept there, so that nothing is refused for their sake.
        monkeypatch.setattr(bundle_folder, "_other_files", lambda bundle: [])

        def refuse(first, second):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(second))

        monkeypatch.setattr(output_place, "_swap", refuse)
    return request.param


# === How files are replaced ===


@pytest.mark.usefixtures("stays")
def test_a_bundle_is_replaced_within_its_folder(old, new):
    inode, names = old.stat().st_ino, beside(old)
    place(old, new)
    assert files(old) == {**files(new), "notes.txt": b"mine"}
    assert old.stat().st_ino == inode
    assert beside(old) == names


@pytest.mark.usefixtures("stays")
def test_an_empty_folder_is_filled(old, tmp_path):
    target = tmp_path / "empty"
    (target / "lost+found").mkdir(parents=True)
    check_target(target, force=False)
    place(target, old)
    shutil.rmtree(target / "lost+found")
    assert files(target) == files(old)


@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_an_error_leaves_the_folder_as_it_was(old, error):
    before, names = files(old), beside(old)
    with pytest.raises(type(error)):
        put(old, NEW, error)
    assert files(old) == before
    assert beside(old) == names


def test_the_old_bundle_serves_until_the_files_are_replaced(old, monkeypatch):
    monkeypatch.setattr(bundle_folder, "cannot_be_renamed", lambda target: True)
    with atomic_folder(old) as folder:
        assert folder == old / ".export.partial"
        assert read_manifest(old).files
        check_target(old, force=True)
        with pytest.raises(ExportError, match=rf"process {os.getpid()} is writing {old} right now"):
            put(old, NEW)


def test_two_who_see_the_target_differently_do_not_meet(old, monkeypatch):
    """In one container the folder is a mount point, in the other it is not."""
    monkeypatch.setattr(os, "access", lambda *_: False)  # so that the lock beside cannot tell
    with atomic_folder(old) as folder:
        assert folder.parent == old
        monkeypatch.undo()
        with pytest.raises(ExportError, match=r"is writing .* right now"):
            put(old, NEW)
        assert folder.exists()


@linux
@pytest.mark.usefixtures("stays")
def test_the_order_of_renames_reaches_the_disk(old, new, monkeypatch):
    """The old manifest is gone from the disk before a file is moved, and the new one comes last."""
    events = []
    replace, fsync = Path.replace, os.fsync

    def note_sync(descriptor):
        path = path_of(descriptor)
        events.append("sync" if path == str(old) else Path(path).name)
        fsync(descriptor)

    def note_replace(path, target):
        events.append(f"{path.parent.name}/{path.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    place(old, new)
    moved = [f".export.partial/{name}" for name in sorted(files(new)) if name != "manifest.json"]
    names = {*files(new), ".export.partial"}
    first = events.index("sync")
    assert names <= set(events[:first])
    assert events[first : first + len(moved) + 6] == [
        "sync",
        "toy_bundle/manifest.json",
        "sync",
        *moved,
        "sync",
        ".export.partial/manifest.json",
        "sync",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_a_kill_before_every_call(old, new, tmp_path, stays):
    """What is at the target then is the old bundle, the new one, or none; and then it is whole."""
    target, states = tmp_path / "target", []
    wanted = {"old": files(old), "new": {**files(new), "notes.txt": b"mine"}}
    for number in range(80):
        shutil.copytree(old, target)
        killed = kill_before(number, lambda: place(target, new))
        state = "none"
        if (target / "manifest.json").exists():
            found = {name: data for name, data in files(target).items() if not name.startswith(".")}
            (state,) = [name for name, whole in wanted.items() if whole == found]
        ends_as = "old" if state == "old" and not (target / ".export.whole").exists() else "new"
        check_target(target, force=True)
        with pytest.raises(ExportError, match="exists; replace it with --force"):
            check_target(target, force=False)
        with contextlib.suppress(KeyError), atomic_folder(target):
            raise KeyError
        assert files(target) == wanted[ends_as]
        assert not list(target.glob(".*"))
        assert [name for name in beside(target) if name.startswith(".")] == []
        states.append(state)
        shutil.rmtree(target)
        if not killed:
            break
    assert not killed
    assert states == sorted(states, key=["old", "none", "new"].index)
    assert set(states) == {"old", "none", "new"}


def test_a_new_folder_where_folders_cannot_be_renamed(old, tmp_path, monkeypatch):
    """As in the lower layers of a container without rights."""
    rename = os.rename

    def refuse(source, target, **options):
        if Path(source).is_dir():
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refuse)
    target = tmp_path / "a" / "b"
    place(target, old)
    assert files(target) == files(old)
    assert beside(target) == []
    monkeypatch.setattr(Within, "take", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place(tmp_path / "c" / "d", old)
    assert not (tmp_path / "c").exists()


def test_files_that_lie_on_another_disk_are_copied(old, new, monkeypatch):
    """Where even a file cannot be renamed into the target, as it is a mount that nothing tells of."""
    rename = os.rename

    def refuse(source, target, **options):
        if old in Path(target).parents and old not in Path(source).parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **options)

    def busy(first, second):
        raise OSError(errno.EBUSY, "Device or resource busy", str(second))

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(output_place, "_swap", busy)
    place(old, new)
    assert files(old) == {**files(new), "notes.txt": b"mine"}


# === Which folders stay ===


def test_working_folders_stay(old, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(old)
    (old / "packed").mkdir()
    assert not cannot_be_renamed(old)
    for folder in (old, old / "packed", tmp_path / "link"):
        monkeypatch.chdir(folder)
        assert cannot_be_renamed(old)
        assert cannot_be_renamed(tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    assert not cannot_be_renamed(old)
    assert cannot_be_renamed(tmp_path)
    assert not cannot_be_renamed(tmp_path / "nothing")


@pytest.mark.skipif(sys.platform == "win32", reason="a working folder cannot be deleted")
def test_a_working_folder_that_was_deleted(old, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert not cannot_be_renamed(old)


@pytest.mark.parametrize(
    ("working", "output"),
    [("", "."), ("", "./"), ("packed", ".."), ("", "../toy_bundle"), ("", "packed/..")],
)
def test_the_shell_stays_in_the_bundle(old, new, monkeypatch, working, output):
    (old / "packed").mkdir()
    inode = old.stat().st_ino
    monkeypatch.chdir(old / working)
    place(Path(output), new)
    assert Path.cwd() == old / working
    assert old.stat().st_ino == inode
    assert files(old) == {**files(new), "notes.txt": b"mine"}


def test_a_slash_at_the_end(old, new, monkeypatch):
    monkeypatch.chdir(old.parent)
    place(Path(f"{old.name}/"), new)
    assert files(old) == files(new)


def test_a_mount_point_is_found_by_its_path(old, tmp_path, monkeypatch):
    folder = shutil.copytree(old, tmp_path / "ä b")
    mounts = tmp_path / "mountinfo"
    lines = ["22 1 0:20 / / rw - ext4 x rw", "", "short"]
    mounts.write_text("\n".join(lines))
    monkeypatch.setattr(output_place, "MOUNTS", mounts)
    assert not cannot_be_renamed(folder)
    escaped = str(folder).replace(" ", "\\040")
    mounts.write_text("\n".join([*lines, f"23 22 0:21 /x {escaped} rw - ext4 x rw"]))
    assert cannot_be_renamed(folder)
    assert not cannot_be_renamed(old)
    mounts.unlink()
    assert not cannot_be_renamed(folder)


MOUNTS = {
    "a tmpfs": 'mount -t tmpfs none "$1/target"',
    "a folder of the same disk": 'mkdir "$1/other" && mount --bind "$1/other" "$1/target"',
    "a lower layer": 'mount -t tmpfs none "$1/rw" && mkdir "$1/rw/up" "$1/rw/work" && mount -t overlay '
    'none -o "lowerdir=$1/low,upperdir=$1/rw/up,workdir=$1/rw/work" "$1/merged"',
    "a read-only parent": 'mount --bind "$1/target" "$1/target" && mount --rbind "$1" "$1" && '
    'mount -o remount,ro,bind "$1"',
}
PROGRAM = """
import os, sys
from pathlib import Path
from exporter.bundle_folder import check_target
from tests.exporter.test_bundle_folder import NEW, OLD, contents, put, write
target = Path(sys.argv[1])
if not target.joinpath("a.txt").exists():
    write(target, OLD)
before = target.stat().st_ino
put(target, NEW)
found = contents(target)
assert {**OLD, **NEW} == found, found
assert target.stat().st_ino == before
fresh = target.parent / "a" / "fresh"
if os.access(target.parent, os.W_OK):  # where a new folder may not be renamed either
    put(fresh, NEW)
    assert contents(fresh) == NEW
    assert os.listdir(fresh.parent) == ["fresh"]
assert not [name for name in os.listdir(target) + os.listdir(target.parent) if name[0] == "."]
"""


@linux
@pytest.mark.parametrize("kind", MOUNTS)
def test_mounts(tmp_path, repository, kind):
    for name in ("target", "rw", "low/target", "merged"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "low" / "target", OLD)
    script = f'set -e\n{MOUNTS[kind]} || exit 77\nexec "$2" -c "$3" "$4"'
    target = tmp_path / ("merged/target" if kind == "a lower layer" else "target")
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path, sys.executable, PROGRAM, target],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip(f"this system does not let tests mount {kind}: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="the administrator may write everywhere"
)
def test_a_parent_that_may_not_be_written_to(old, new):
    old.parent.chmod(0o555)
    try:
        place(old, new)
        assert files(old) == {**files(new), "notes.txt": b"mine"}
        with pytest.raises(ExportError, match=r"cannot write to .* \(Permission denied\); choose"):
            put(old.parent / "another", NEW)
    finally:
        old.parent.chmod(0o755)


def test_a_folder_that_nobody_may_write_to_is_told_at_once(old, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(bundle_folder, "passing_lock", refuse)
    with pytest.raises(ExportError) as caught:
        put(old, NEW)
    assert str(caught.value) == (
        f"cannot write to {old.parent} (Read-only file system); choose another --output"
    )


# === What is refused, and what is followed ===


def test_a_link_to_a_folder_is_followed(old, new, tmp_path):
    (old / "notes.txt").unlink()
    link = tmp_path / "link"
    link.symlink_to(old)
    check_target(link, force=True)
    place(link, new)
    assert link.is_symlink()
    assert files(old) == files(new)


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(ExportError, match="is a link to nothing; choose another --output"):
        check_target(tmp_path / "link", force=True)


def test_a_manifest_of_another_program_is_no_bundle(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "A web application", "start_url": "/"}')
    for force in (True, False):
        with pytest.raises(ExportError, match="exists and is not a bundle; choose another --output"):
            check_target(tmp_path, force=force)


@pytest.mark.parametrize("inside", ["", "preset", "a/b"])
def test_the_preset_is_not_replaced_with_the_bundle_that_holds_it(old, tmp_path, inside):
    (old / "notes.txt").unlink()
    source = old / inside
    source.mkdir(parents=True, exist_ok=True)
    (tmp_path / "link").symlink_to(source)
    for path in (source, tmp_path / "link"):
        with pytest.raises(ExportError, match=rf"{old} holds the preset .*, which would be replaced"):
            check_target(old, force=True, source=path)
    (tmp_path / "link").unlink()
    if inside:
        shutil.rmtree(old / inside.partition("/")[0])
    check_target(old, force=True, source=tmp_path)
    check_target(source / "new", force=True, source=source)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other modes")
@pytest.mark.parametrize("mode", [0o700, 0o2775, 0o555])
def test_the_folder_keeps_its_mode(tmp_path, mode):
    target = tmp_path / "bundle"
    target.mkdir()
    write(target, OLD)
    target.chmod(mode)
    put(target, NEW)
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert contents(target) == NEW
    assert beside(target) == []
    target.chmod(0o700)


def test_the_names_of_what_lies_within():
    place = Within(Path("x"))
    paths = (place.lock, place.partial, place.whole, place.replaced)
    assert tuple(path.name for path in paths) == output_place.WITHIN_NAMES
