"""The user's secret, and packs that somebody else made."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import BundleError
from runtime.packs import packed_weights
from runtime.packs.user_secret import UserSecret
from tests.runtime.packs.packing import logits, make_cpu_bundle, open_decoder, packs, stamps
from tests.runtime.toy import flip_byte

posix = pytest.mark.skipif(sys.platform == "win32", reason="rights and links of POSIX")


@pytest.fixture
def folder(toy_bundle_copy: Path) -> Path:
    """A bundle whose weights are packed; a test may alter it."""
    return make_cpu_bundle(toy_bundle_copy)


@pytest.fixture(autouse=True)
def use_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes packs those of another user."""

    def use(name: str) -> Path:
        monkeypatch.setattr(packed_weights, "user_cache_folder", lambda: tmp_path / name)
        return tmp_path / name / "opt-onnx"

    use("first")
    return use


# === The secret ===


def test_signatures(tmp_path: Path) -> None:
    first, again = UserSecret(tmp_path / "a" / "b"), UserSecret(tmp_path / "a" / "b")
    other = UserSecret(tmp_path / "c")
    signature = first.sign("text")
    assert len(signature) == 64
    assert again.has_signed("text", signature)
    assert not first.has_signed("Text", signature)
    assert not other.has_signed("text", signature)
    assert not any(first.has_signed("text", wrong) for wrong in (None, 5, "", "é", signature[1:]))
    path = tmp_path / "a" / "b" / "secret"
    assert path.stat().st_size == 32
    assert [p.name for p in path.parent.iterdir()] == ["secret"]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_those_who_make_it_at_once_have_one(tmp_path: Path) -> None:
    for attempt in range(10):
        place = tmp_path / f"{attempt}"
        with ThreadPoolExecutor(8) as pool:
            made = {s.sign("x") for s in pool.map(lambda _, p=place: UserSecret(p), range(8))}
        assert len(made) == 1
        assert [path.name for path in place.iterdir()] == ["secret"]


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@posix
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.chmod(0o640),
        lambda path: path.write_bytes(b"short"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
        link,
    ],
    ids=["readable by others", "short", "folder", "pipe", "link"],
)
def test_a_secret_that_is_none(tmp_path: Path, change: Any) -> None:
    UserSecret(tmp_path)
    change(tmp_path / "secret")
    with pytest.raises(OSError, match="secret"):
        UserSecret(tmp_path)


# === Packs of others ===


def test_packs_of_others_are_neither_used_nor_touched(folder: Path, use_cache: Any) -> None:
    right = logits(folder)
    ((name, pack),) = packs(folder / "packed").items()
    use_cache("second")
    theirs = stamps(folder / "packed")
    assert np.array_equal(logits(folder), right)
    assert len(packs(folder / "packed")) == 2
    mine = {path: stamp for path, stamp in stamps(folder / "packed").items() if path not in theirs}
    assert len(mine) == 3
    assert theirs.items() <= stamps(folder / "packed").items()
    # Nor are they under the name that this user's pack would have.
    ((own, _),) = [(n, p) for n, p in packs(folder / "packed").items() if n != name]
    shutil.rmtree(folder / "packed" / own)
    pack.rename(folder / "packed" / own)
    flip_byte(folder / "packed" / own / "weights.bin", 5000)
    assert np.array_equal(logits(folder), right)


def test_verify_looks_at_the_packed_weights_too(folder: Path) -> None:
    right = logits(folder)
    ((_, pack),) = packs(folder / "packed").items()
    whole = (pack / "weights.bin").read_bytes()
    for position in range(0, len(whole), 9973):
        flip_byte(pack / "weights.bin", position)
        open_decoder(folder, verify=True)
        assert (pack / "weights.bin").read_bytes() == whole
    assert np.array_equal(logits(folder), right)


def test_altered_weights_are_never_packed(folder: Path) -> None:
    flip_byte(folder / "weights.bin", 100_000)
    with pytest.raises(BundleError, match=r"weights\.bin was altered: its SHA-256 is another"):
        open_decoder(folder)
    assert packs(folder / "packed") == {}
    flip_byte(folder / "weights.bin", 100_000)
    open_decoder(folder)
    assert len(packs(folder / "packed")) == 1


@posix
@pytest.mark.parametrize("place", ["packed", "packed/.lock"])
def test_no_link_is_followed(folder: Path, tmp_path: Path, use_cache: Any, place: str) -> None:
    cache = use_cache("mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).symlink_to(outside / "new" if "lock" in place else outside)
    open_decoder(folder)
    assert list(outside.iterdir()) == []
    assert len(packs(cache / "packed")) == 1


def test_a_process_of_this_user_uses_its_packs(folder: Path, tmp_path: Path, repository: Path) -> None:
    open_decoder(folder)
    before = stamps(folder / "packed")
    program = "import sys; from tests.runtime.packs.packing import *; open_decoder(Path(sys.argv[1]))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "first")}
    command = [sys.executable, "-c", program, str(folder)]
    subprocess.run(command, cwd=repository, env=environment, check=True)
    assert stamps(folder / "packed") == before
