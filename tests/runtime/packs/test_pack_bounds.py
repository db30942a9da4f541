"""How many packs there may be, which of them go, and what is never removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import session_opener
from runtime.packs import pack_folder, packed_weights
from runtime.packs.pack_folder import MOST_ELSEWHERE, MOST_PACKS, PackFolder
from tests.runtime.packs.packing import (
    alter_weights,
    logits,
    make_cpu_bundle,
    open_decoder,
    packs,
    stamps,
)
from tests.runtime.toy import edit_manifest

Use = Callable[..., None]


@pytest.fixture
def folder(toy_bundle_copy: Path) -> Path:
    """A bundle whose weights are packed; a test may alter it."""
    return make_cpu_bundle(toy_bundle_copy)


@pytest.fixture(autouse=True)
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Chooses the home, the version of ONNX Runtime and the CPU of the next start."""

    def choose(home: str = "home", version: str = "1", cpu: str = "cpu") -> None:
        monkeypatch.setattr(packed_weights, "user_cache_folder", lambda: tmp_path / home)
        monkeypatch.setattr(session_opener.ort, "__version__", version)
        monkeypatch.setattr(packed_weights, "cpu_features", lambda: cpu)

    choose()
    return choose


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def start(folder: Path) -> set[str]:
    """Opens a bundle; the packs that were made for that."""
    before = packs(folder / "packed").keys()
    open_decoder(folder)
    return packs(folder / "packed").keys() - before


def test_every_start_in_a_new_home(folder: Path, use: Use) -> None:
    """A container's, with the bundle on a volume: its size is bounded, and the last packs are there."""
    made: list[str] = []
    for number in range(6):
        use(f"home {number}")
        made += start(folder)
        assert packs(folder / "packed").keys() == set(made[-MOST_PACKS:])
    kept = stamps(folder / "packed")
    use("home 4")
    assert start(folder) == set()
    assert stamps(folder / "packed") == kept


def test_the_home_that_is_used_most_keeps_its_pack(folder: Path, use: Use) -> None:
    (mine,) = start(folder)
    for number in range(2 * MOST_PACKS):
        use(f"home {number}")
        assert len(start(folder)) == 1
        use()
        assert start(folder) == set()
    assert mine in packs(folder / "packed")


def test_versions_of_onnx_runtime_share_the_bound(folder: Path, use: Use) -> None:
    versions = [str(number) for number in range(MOST_PACKS)]
    for version in versions:
        use(version=version)
        assert len(start(folder)) == 1
    for version in versions * 2:
        use(version=version)
        assert start(folder) == set()
    use(version="another")
    assert len(start(folder)) == 1
    assert len(packs(folder / "packed")) == MOST_PACKS


def test_packs_for_other_cpus_have_a_bound_of_their_own(folder: Path, use: Use) -> None:
    """They may serve other machines that share the disk."""
    others = []
    for number in range(MOST_ELSEWHERE + 1):
        use(cpu=f"cpu {number}")
        others += start(folder)
    assert len(packs(folder / "packed")) == MOST_ELSEWHERE + 1
    here = []
    for version in range(MOST_PACKS + 1):
        use(version=f"{version}")
        here += start(folder)
    assert packs(folder / "packed").keys() == {*others[1:], *here[1:]}


def test_each_graph_file_has_the_bound(toy_bundle_copy: Path, use: Use) -> None:
    edit_manifest(toy_bundle_copy, lambda values: values.update(target="cpu"))
    for number in range(MOST_PACKS + 2):
        use(f"home {number}")
        assert len(start(toy_bundle_copy)) == 2
    assert len(packs(toy_bundle_copy / "packed")) == 2 * MOST_PACKS
    assert start(toy_bundle_copy) == set()


def test_the_users_folder_is_bounded_for_each_bundle(folder: Path, tmp_path: Path, use: Use) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    alter_weights(other)
    cache = tmp_path / "home" / "opt-onnx" / "packed"
    for bundle in (folder, other):
        (bundle / "packed").write_text("no folder")
        for number in range(MOST_PACKS + 2):
            use(version=f"{number}")
            open_decoder(bundle)
    assert len(packs(cache)) == 2 * MOST_PACKS
    kept = stamps(cache)
    for bundle in (folder, other):
        open_decoder(bundle)
    assert stamps(cache) == kept


def test_packs_of_former_weights_go_whoever_made_them(folder: Path, use: Use) -> None:
    """An export into a mount point leaves them there."""
    for home in ("first", "second"):
        use(home)
        start(folder)
    alter_weights(folder)
    assert start(folder) == packs(folder / "packed").keys()
    assert np.array_equal(logits(folder), logits(folder, packed_weights=False))


def test_packs_that_a_lost_secret_signed_go(folder: Path, tmp_path: Path) -> None:
    (folder / "packed").write_text("no folder")
    cache = tmp_path / "home" / "opt-onnx"
    open_decoder(folder)
    old = packs(cache / "packed").keys()
    (cache / "secret").unlink()
    open_decoder(folder)
    (new,) = packs(cache / "packed")
    assert new not in old


@pytest.mark.parametrize("where", ["beside the bundle", "in the user's folder"])
def test_what_killed_builders_left_goes(folder: Path, tmp_path: Path, where: str) -> None:
    """Also where the bundle has changed since, so that nobody knows what it was to be."""
    place = folder / "packed"
    if where != "beside the bundle":
        place.write_text("no folder")
        place = tmp_path / "home" / "opt-onnx" / "packed"
    left = [place / f".building-{'0' * 15}{digit}" for digit in "abc"]
    for path in left:
        path.mkdir(parents=True)
    (left[1] / "weights.bin").write_bytes(bytes(1000))
    (left[2] / "model.onnx").write_bytes(b"")
    open_decoder(folder)
    assert len(packs(place)) == 1


def test_what_killed_builders_left_of_another_bundle_goes(folder: Path, tmp_path: Path) -> None:
    """Complete but for the name, in the user's folder."""
    cache = tmp_path / "home" / "opt-onnx" / "packed"
    (folder / "packed").write_text("no folder")
    open_decoder(folder)
    (pack,) = packs(cache).values()
    pack.rename(cache / (".building-" + "0" * 16))
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    alter_weights(other)
    open_decoder(other)
    (name,) = packs(cache)
    assert not name.startswith(".")


def is_fifo(path: Path) -> None:
    path.rmdir()
    os.mkfifo(path)


KEPT = {
    "a name of another kind": ("notes", lambda path: None),
    "a name that is too long": ("0" * 17, lambda path: None),
    "a file": ("0" * 16, lambda path: (path.rmdir(), path.write_text("mine"))),
    "a pipe": ("0" * 16, is_fifo),
    "a link": ("0" * 16, lambda path: (path.rmdir(), path.symlink_to("elsewhere"))),
    "another file in it": ("0" * 16, lambda path: (path / "notes.txt").write_text("mine")),
    "a folder in it": ("0" * 16, lambda path: (path / "weights.bin").mkdir()),
    "a link in it": ("0" * 16, lambda path: (path / "model.onnx").symlink_to("/elsewhere")),
    "half a pack with a note": (".building-" + "0" * 16, lambda p: (p / "notes.txt").write_text("x")),
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
@pytest.mark.parametrize("kind", KEPT)
def test_what_is_no_pack_in_form_stays(folder: Path, kind: str) -> None:
    name, make = KEPT[kind]
    path = folder / "packed" / name
    path.mkdir(parents=True)
    make(path)
    before = path.lstat()
    open_decoder(folder)
    assert path.lstat() == before
    assert len(list((folder / "packed").iterdir())) == 3


def test_what_belongs_to_another_user_stays(folder: Path, use: Use, monkeypatch: Any) -> None:
    for number in range(MOST_PACKS + 2):
        use(f"home {number}")
        start(folder)
    theirs = packs(folder / "packed")
    in_form = pack_folder._is_pack_in_form
    with monkeypatch.context() as patch:  # where every pack so far is another's
        patch.setattr(pack_folder, "_is_pack_in_form", lambda p: p.name not in theirs and in_form(p))
        for number in range(MOST_PACKS + 2):
            use(f"another {number}")
            start(folder)
    assert theirs.keys() <= packs(folder / "packed").keys()
    assert len(packs(folder / "packed")) == 2 * MOST_PACKS
    (one, *_) = theirs.values()
    assert in_form(one)
    monkeypatch.setattr(os, "geteuid", lambda: one.lstat().st_uid + 1)
    assert in_form(one) == (sys.platform == "win32")


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_nothing_is_removed_through_a_link(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Somebody puts a link in the place of the folder while it is tidied."""
    outside = tmp_path / "outside"
    removable = PackFolder._removable

    def swapped(self: PackFolder) -> list[Path]:
        found = removable(self)
        shutil.copytree(self.folder, outside)
        self.folder.rename(tmp_path / "aside")
        self.folder.symlink_to(outside)
        return found

    (folder / "packed" / (".building-" + "0" * 16)).mkdir(parents=True)
    monkeypatch.setattr(PackFolder, "_removable", swapped)
    open_decoder(folder)
    assert (outside / (".building-" + "0" * 16)).is_dir()


def test_a_pack_that_is_in_use_may_go(folder: Path, use: Use) -> None:
    """Its process has it mapped, and computes on."""
    decoder = open_decoder(folder)
    (mine,) = packs(folder / "packed")
    right = logits(folder)
    for number in range(MOST_PACKS):
        use(f"home {number}")
        start(folder)
    if sys.platform != "win32":
        assert mine not in packs(folder / "packed")
    cache = decoder.new_cache(1, 8)
    found = decoder.append(cache, np.array([[2, 5, 77, 130, 9]]), np.array([5], np.int32)).logits
    assert np.array_equal(found, right[:1])


@pytest.mark.skipif(sys.platform != "linux", reason="finds the paths of open files in /proc")
def test_a_pack_is_on_the_disk_before_it_gets_its_name(folder: Path, monkeypatch: Any) -> None:
    """And its name too, before anybody is told of it."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        events.append(Path(os.path.realpath(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        events.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    (name,) = start(folder)
    events.remove("secret") if "secret" in events else None
    building = f".building-{name}"
    last = [event for event in events if not event.startswith(".secret")]
    assert sorted(last[:-3]) == ["info.json", "model.onnx", "weights.bin"]
    assert last[-3:] == [building, f"{building} -> {name}", "packed"]


@pytest.mark.slow
def test_six_starts_of_processes_with_new_homes(folder: Path, tmp_path: Path, repository: Path) -> None:
    program = "import sys; from tests.runtime.packs.packing import *; open_decoder(Path(sys.argv[1]))"
    sizes = []
    for number in range(6):
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"home {number}")}
        command = [sys.executable, "-c", program, str(folder)]
        subprocess.run(command, cwd=repository, env=environment, check=True)
        sizes.append(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    assert sizes[MOST_PACKS - 1] == pytest.approx(sizes[-1], rel=1e-3)
