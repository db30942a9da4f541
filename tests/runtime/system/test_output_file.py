"""Files for results, written in place."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.system import file_lock, output_file
from runtime.system.output_file import check_output, open_output, write_output

posix = pytest.mark.skipif(os.name != "posix", reason="files as POSIX has them")


def write(path: Path | str, data: bytes = b"new") -> None:
    check_output("--out", str(path))
    write_output("--out", str(path), data)


# === Files ===


def test_a_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(before)
    assert (tmp_path / "new").read_bytes() == b"new"
    assert os.name != "posix" or stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert len(list(tmp_path.iterdir())) == 1


@posix
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o4755])
def test_a_file_keeps_its_mode_owner_and_inode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "old"
    path.write_text("what was here before")
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    path.chmod(mode)
    before = path.stat()
    write(path)
    after = path.stat()
    assert path.read_bytes() == b"new"
    # A write takes the set-user-ID bit off, as it does for every program.
    assert stat.S_IMODE(after.st_mode) & 0o777 == mode & 0o777
    assert (after.st_uid, after.st_gid, after.st_ino) == (before.st_uid, before.st_gid, before.st_ino)
    assert len(list(tmp_path.iterdir())) == 1


@posix
@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "dangling"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_leads_where_it_leads(tmp_path: Path, exists: bool, relative: bool) -> None:
    (tmp_path / "folder").mkdir()
    target, link, chain = tmp_path / "folder" / "target", tmp_path / "link", tmp_path / "chain"
    if exists:
        target.write_text("old and longer")
    link.symlink_to(Path("folder", "target") if relative else target)
    chain.symlink_to(link)
    write(chain)
    assert (link.is_symlink(), chain.is_symlink()) == (True, True)
    assert target.read_bytes() == b"new"


@posix
def test_a_hard_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"new"


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_in_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    tmp_path.chmod(0o555)
    try:
        write(path)
        with pytest.raises(ValueError, match="may not write to the folder of"):
            check_output("--out", str(tmp_path / "other"))
    finally:
        tmp_path.chmod(0o755)
    assert path.read_bytes() == b"new"


def test_what_was_there_stays_until_there_is_something_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old and longer")
    with open_output("--out", str(path)) as file:
        assert path.read_text() == "old and longer"
        file.write(b"one ")
        assert path.read_text() == "one "
        file.write(b"two")
    assert path.read_text() == "one two"
    with open_output("--out", str(path)):
        pass
    assert path.read_text() == "one two"
    with open_output("--out", str(path)) as file:
        assert file.reader().read() == b"one two"
        file.begin(4)
        file.write(b"three")
    assert path.read_text() == "one three"


@pytest.mark.parametrize("link", [False, True])
def test_a_new_file_that_nothing_was_written_to_goes_again(tmp_path: Path, link: bool) -> None:
    path = tmp_path / "file"
    if link:
        (tmp_path / "link").symlink_to(path)
    with open_output("--out", str(tmp_path / ("link" if link else "file"))):
        assert path.exists()  # and now the bundle cannot be loaded
    assert not path.exists()
    assert (tmp_path / "link").is_symlink() == link


# === What is no file ===


@posix
def test_a_file_that_another_one_has_made_and_filled_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, true = tmp_path / "out", output_file._open_or_make

    def late(name: str) -> tuple[bool, int]:
        path.write_bytes(b"theirs")  # after it was found missing
        return True, true(name)[1]

    monkeypatch.setattr(output_file, "_open_or_make", late)
    with open_output("--output", str(path)):
        pass
    assert path.read_bytes() == b"theirs"


def test_a_device_stays_one() -> None:
    before = os.stat(os.devnull)
    write(os.devnull)
    assert os.path.samestat(before, os.stat(os.devnull))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@posix
def test_a_pipe_gets_what_is_written(tmp_path: Path) -> None:
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    write(path, b"x" * 200_000)  # more than a pipe holds
    reader.join(60)
    assert got == [b"x" * 200_000]
    assert stat.S_ISFIFO(path.stat().st_mode)


PROGRAM = (
    "import sys; from runtime.system.output_file import *; write_output('-o', sys.argv[1], b'new\\n')"
)


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_by_its_name(repository: Path, tmp_path: Path, name: str) -> None:
    """Through a pipe, a socket, and into the file that the shell appends to, from where it is."""
    if name.startswith("/proc") and sys.platform != "linux":
        pytest.skip("has no /proc")
    if name == "link":
        name = str(tmp_path / "link")
        os.symlink("/dev/stdout", name)
    command = [sys.executable, "-c", PROGRAM, name]
    done = subprocess.run(command, cwd=repository, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"new\n"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(command, cwd=repository, stdout=theirs, check=True)
        assert ours.recv(100) == b"new\n"
    log = tmp_path / "log"
    log.write_text("old\n")
    for _ in range(2):
        with log.open("ab") as file:
            subprocess.run(command, cwd=repository, stdout=file, check=True)
    assert log.read_text() == "old\nnew\nnew\n"


# === One writer ===


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "link").symlink_to(path)
    with open_output("--out", str(path)) as file:
        file.write(b"first")
        for other in (path, tmp_path / "link"):
            message = f"--out: another process is writing to {other} right now; wait for it or name"
            with pytest.raises(ValueError, match=message):
                write(other)
        assert path.read_bytes() == b"first"
    write(path)
    assert path.read_bytes() == b"new"


def test_a_file_that_its_writer_removes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking it: what is written would be in a file without a name."""
    path, true = tmp_path / "file", file_lock._try_lock

    def late(descriptor: int) -> bool:
        monkeypatch.setattr(file_lock, "_try_lock", true)
        path.unlink()
        return true(descriptor)

    monkeypatch.setattr(file_lock, "_try_lock", late)
    write(path)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("code", file_lock.NO_LOCKS)
def test_a_disk_without_locks_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    def no_locks(descriptor: int) -> bool:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(file_lock, "_try_lock", no_locks)
    write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"
    told = f"Warning: the disk of {tmp_path / 'file'} has no file locks ({os.strerror(code)}); see to"
    assert capsys.readouterr().err.startswith(told)
    monkeypatch.setattr(
        file_lock, "_try_lock", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "?"))
    )
    with pytest.raises(OSError, match=r"\?"):
        write(tmp_path / "file")


# === Errors ===


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "--out: .* is a folder; name a file in it"),
        ("new/", "--out: .* is a folder; name a file in it"),
        ("missing/file", "--out: there is no folder .*missing to write into"),
        ("link", "--out: there is no folder .*missing to write into"),
        ("file/file", "--out: there is no folder .*file to write into"),
    ],
)
def test_what_can_be_told_before_the_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "missing" / "file")
    with pytest.raises(ValueError, match=message):
        check_output("--out", os.path.join(tmp_path, name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_standard_output_is_always_fine() -> None:
    check_output("--out", None)
    check_output("--out", "-")


def test_a_full_disk_leaves_what_was_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, true = tmp_path / "file", os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) > 5:
            return true(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_output("--out", str(path)) as file:
        file.write(b"whole\n")
        monkeypatch.setattr(output_file.os, "write", full)
        with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
            file.write(b"does not fit")
        monkeypatch.undo()
        file.write(b"more\n")
    assert path.read_bytes() == b"whole\nmore\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_device_that_is_full() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        write("/dev/full")
