"""Where packed weights are kept, when they go, and what happens where they cannot be kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import session_opener
from runtime.bundle import BundleReplacedError
from runtime.packs import pack_folder, packed_weights
from runtime.packs.pack_folder import INFO_FILE
from runtime.packs.packed_weights import user_cache_folder
from runtime.system import cpu_features
from tests.runtime.packs.packing import (
    alter_weights,
    logits,
    make_cpu_bundle,
    open_decoder,
    packs,
    stamps,
)
from tests.runtime.toy import edit_manifest

TOLERANCE = 2e-5


@pytest.fixture
def folder(toy_bundle_copy: Path) -> Path:
    """A bundle whose weights are packed; a test may alter it."""
    return make_cpu_bundle(toy_bundle_copy)


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    """Another bundle, with other weights and its own folder that cannot be written to."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    alter_weights(other)
    (other / "packed").write_text("no folder")
    return other


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder of packs."""
    monkeypatch.setattr(packed_weights, "user_cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "opt-onnx" / "packed"


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def wanted(toy_bundle: Path) -> np.ndarray:
    """Logits of the portable bundle, whose weights are not packed."""
    return logits(toy_bundle)


def assert_right(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= TOLERANCE


def keep_from_writing(folder: Path) -> None:
    """What a read-only disk does, also to the administrator that tests may run as."""
    (folder / "packed").write_text("no folder")


def use_runtime(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(session_opener.ort, "__version__", version)


def use_cpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(packed_weights, "cpu_features", lambda: name)


# === When packs go ===


def test_another_runtime_version_has_a_pack_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wanted: np.ndarray
) -> None:
    """Two that take turns on one bundle find theirs at each start."""
    open_decoder(folder)
    old = packs(folder / "packed")
    use_runtime(monkeypatch, "9.9.9")
    assert_right(logits(folder), wanted)
    both = stamps(folder / "packed")
    ((_, pack),) = packs(folder / "packed").items() - old.items()
    assert json.loads((pack / INFO_FILE).read_text("utf-8"))["key"]["runtime"].startswith("9.9.9 ")
    for version in (session_opener.ort.__version__, "9.9.9", "9.9.9"):
        use_runtime(monkeypatch, version)
        open_decoder(folder)
        monkeypatch.undo()
        monkeypatch.setattr(packed_weights, "user_cache_folder", lambda: folder.parent / "cache")
    assert stamps(folder / "packed") == both


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(session_opener.ort, "get_build_info", lambda: "Debug"),
        lambda patch: patch.setattr(
            session_opener, "EXACT", {**session_opener.EXACT, "session.x64quantprecision": "0"}
        ),
        lambda patch: patch.setattr(packed_weights, "FORMAT", 9),
    ],
    ids=["build", "options", "format"],
)
def test_everything_that_shapes_a_pack_is_in_its_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]
) -> None:
    open_decoder(folder)
    assert len(packs(folder / "packed")) == 1
    change(monkeypatch)
    open_decoder(folder)
    assert len(packs(folder / "packed")) == 2


def test_packs_of_former_weights_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in ("first", "second"):
        use_cpu(monkeypatch, cpu)
        open_decoder(folder)
    old = packs(folder / "packed").keys()
    assert len(old) == 2
    alter_weights(folder)
    assert np.array_equal(logits(folder), logits(folder, packed_weights=False))
    (new,) = packs(folder / "packed")
    assert new not in old


def test_what_others_put_there_stays(folder: Path) -> None:
    (folder / "packed" / "notes").mkdir(parents=True)
    (folder / "packed" / "notes.txt").write_text("text")
    open_decoder(folder)
    names = sorted(path.name for path in (folder / "packed").iterdir())
    assert names[0] == ".lock"
    assert names[-2:] == ["notes", "notes.txt"]
    assert len(names) == 4


# === The user's cache folder ===


def test_a_bundle_that_cannot_be_written_to(folder: Path, cache: Path, wanted: np.ndarray) -> None:
    keep_from_writing(folder)
    assert_right(logits(folder), wanted)
    ((_, pack),) = packs(cache).items()
    assert json.loads((pack / INFO_FILE).read_text("utf-8"))["bundle"] == str(folder.resolve())
    assert {path.name for path in cache.parent.iterdir()} == {"packed", "secret"}
    kept = stamps(cache)
    assert_right(logits(folder), wanted)
    assert stamps(cache) == kept


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="the administrator may write everywhere"
)
def test_a_read_only_folder(folder: Path, cache: Path, wanted: np.ndarray) -> None:
    folder.chmod(0o555)
    try:
        assert_right(logits(folder), wanted)
        assert not (folder / "packed").exists()
        assert len(packs(cache)) == 1
    finally:
        folder.chmod(0o755)


def test_a_pack_beside_the_bundle_is_preferred(folder: Path, cache: Path) -> None:
    open_decoder(folder)
    (folder / "packed" / ".lock").unlink()
    (folder / "packed" / ".lock").mkdir()  # as if the folder had become read-only
    open_decoder(folder)
    assert not cache.exists()


def test_in_the_cache_folder_every_bundle_has_its_own_packs(
    folder: Path, other: Path, cache: Path
) -> None:
    keep_from_writing(folder)
    open_decoder(folder)
    (first,) = packs(cache)
    open_decoder(other)
    (second,) = packs(cache).keys() - {first}
    alter_weights(folder, token=7)
    open_decoder(folder)
    (third,) = packs(cache).keys() - {first, second}
    assert packs(cache).keys() == {second, third}


HOME = Path("/home/someone") if sys.platform != "win32" else Path("C:/Users/someone")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, HOME / ".cache"),
        ("linux", {"XDG_CACHE_HOME": str(HOME / "elsewhere")}, HOME / "elsewhere"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, HOME / ".cache"),
        ("linux", {"XDG_CACHE_HOME": "", "LOCALAPPDATA": str(HOME / "x")}, HOME / ".cache"),
        ("darwin", {"XDG_CACHE_HOME": str(HOME / "x")}, HOME / "Library" / "Caches"),
        ("win32", {"LOCALAPPDATA": str(HOME / "local")}, HOME / "local"),
        ("win32", {}, HOME / "AppData" / "Local"),
    ],
)
def test_the_cache_folder_of_each_system(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: Path
) -> None:
    monkeypatch.setattr(packed_weights, "sys", SimpleNamespace(platform=platform))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: HOME)
    assert user_cache_folder() == expected


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert user_cache_folder() is None


# === Where packs cannot be kept ===


def assert_packed_in_memory(folder: Path, wanted: np.ndarray, *fragments: str) -> None:
    """Right logits, one warning that says what is wrong, and nothing on the disk."""
    with pytest.warns(RuntimeWarning, match="packed in the memory of this process") as caught:
        assert_right(logits(folder), wanted)
    (warning,) = caught
    for fragment in (*fragments, "packed_weights=False"):
        assert fragment in str(warning.message)
    assert packs(folder / "packed") == {}


def test_nowhere_to_write(folder: Path, cache: Path, wanted: np.ndarray) -> None:
    keep_from_writing(folder)
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    places = (str(folder / "packed"), str(cache))
    assert_packed_in_memory(folder, wanted, "no pack of 0 MB can be written", *places)


def test_no_home_for_the_secret(folder: Path, wanted: np.ndarray, monkeypatch: Any) -> None:
    monkeypatch.setattr(packed_weights, "user_cache_folder", lambda: None)
    assert_packed_in_memory(folder, wanted, "this user has no home for the secret that")


def test_no_room_for_the_secret(folder: Path, cache: Path, wanted: np.ndarray) -> None:
    cache.parent.parent.write_text("no folder")
    assert_packed_in_memory(folder, wanted, "the secret that packed weights are signed with: ")


def test_a_full_disk_is_told_before_anything_is_written(
    folder: Path, cache: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=360_000)  # the weights are 148 KB, the graph 21 KB

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(packed_weights, "_in_words", lambda size: f"{size} bytes")
    told = (
        f"no pack of 360489 bytes can be written to {folder / 'packed'}: only 360000 bytes are free; "
        f"or to {cache}: only 360000 bytes are free"
    )
    assert_packed_in_memory(folder, wanted, told)
    assert asked == [folder / "packed", cache]
    assert packs(cache) == {}


@pytest.mark.parametrize("when", ["beforehand", "while it is written to"])
def test_where_the_bundles_disk_is_full_the_users_folder_is_taken(
    folder: Path, cache: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    sync = pack_folder.sync

    def usage(path: Path) -> Any:
        return SimpleNamespace(free=10**9 if cache.parent in path.parents else 1000)

    def fill(path: Path) -> None:
        if folder in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    if when == "beforehand":
        monkeypatch.setattr(shutil, "disk_usage", usage)
    else:
        monkeypatch.setattr(pack_folder, "sync", fill)
    assert_right(logits(folder), wanted)
    assert packs(folder / "packed") == {}
    assert len(packs(cache)) == 1
    kept = stamps(cache)
    assert_right(logits(folder), wanted)
    assert stamps(cache) == kept


def test_room_for_a_pack_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=449_000))
    open_decoder(folder)
    assert len(packs(folder / "packed")) == 1


def test_a_disk_that_fills_up_while_it_is_written_to(
    folder: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pack_folder, "sync", fill)
    assert_packed_in_memory(folder, wanted, "No space left on device", str(folder / "packed"))


def test_a_bundle_that_is_replaced_while_it_is_packed(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack's key has the hashes of the old weights, and the new ones may be in it."""
    write = session_opener.SessionOpener._write_pack

    def replaced(self: Any, graph_path: Path, target: Path) -> None:
        write(self, graph_path, target)
        edit_manifest(folder, lambda values: values["source"].update(note="exported again"))

    monkeypatch.setattr(session_opener.SessionOpener, "_write_pack", replaced)
    with pytest.raises(BundleReplacedError, match="was replaced while it was loaded; load it again"):
        open_decoder(folder)
    assert packs(folder / "packed") == {}
    assert packs(cache) == {}


def test_sizes_in_words() -> None:
    sizes = (0, 17_437_696, 999_000_000, 1_211_498_496, 26_400_000_000)
    words = [packed_weights._in_words(size) for size in sizes]
    assert words == ["0 MB", "17 MB", "999 MB", "1.2 GB", "26.4 GB"]


# === The CPU ===

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 207
model name\t: Some Processor
cpu MHz\t\t: 2300.1
flags\t\t: fpu avx2 avx512_vnni

processor\t: 1
model name\t: Another
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd i8mm\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86, "machine | GenuineIntel | 207 | Some Processor | fpu avx2 avx512_vnni"),
        (
            X86.replace("2300.1", "800.0"),
            "machine | GenuineIntel | 207 | Some Processor | fpu avx2 avx512_vnni",
        ),
        (ARM, "machine | fp asimd i8mm | 0xd40"),
        (None, "machine a processor"),
    ],
    ids=["x86", "x86 at another clock", "Arm", "no Linux"],
)
def test_cpu_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: str
) -> None:
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: "machine")
    monkeypatch.setattr(cpu_features.platform, "processor", lambda: "a processor")
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text, "utf-8")
    assert cpu_features.cpu_features(path) == expected


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "flags : avx2 avx512f avx512bw avx512_vnni amx_int8", True),
        ("x86_64", "flags : avx2 avx_vnni", True),
        ("x86_64", "flags : avx2 fma", False),
        ("AMD64", "flags : avx2 avx512f avx512bw", False),
        ("x86_64", None, False),
        ("aarch64", "Features : asimd", True),
        ("arm64", None, True),
    ],
)
def test_which_cpus_add_products_of_8_bits_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, expected: bool
) -> None:
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: machine)
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"{flags}\n", "utf-8")
    assert cpu_features.sums_8_bit_products_exactly(path) is expected


@pytest.mark.parametrize("exact", [{}, {"session.x64quantprecision": "1"}], ids=["VNNI", "no VNNI"])
def test_the_cpu_decides_how_products_of_8_bits_are_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, exact: dict[str, str], wanted: np.ndarray
) -> None:
    """Both ways on every machine: the one for CPUs without VNNI is right, if slow, on others too."""
    monkeypatch.setattr(session_opener, "EXACT", exact)
    asked = []
    start = session_opener.SessionOpener._start

    def record(self: Any, path: Path, options: Any, **choices: Any) -> Any:
        try:
            asked.append(options.get_session_config_entry("session.x64quantprecision"))
        except RuntimeError:  # it is not set
            asked.append(None)
        return start(self, path, options, **choices)

    monkeypatch.setattr(session_opener.SessionOpener, "_start", record)
    assert_right(logits(folder), wanted)
    assert asked == [exact.get("session.x64quantprecision")] * 2  # making a pack and opening it
    ((_, pack),) = packs(folder / "packed").items()
    key = json.loads((pack / INFO_FILE).read_text("utf-8"))["key"]
    assert exact.items() <= key["options"].items()
