"""The files that a manifest names: their sizes and hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from graphs.contract import Phase
from graphs.manifest import FileEntry, Manifest, ManifestError
from graphs.plain_files import hash_file
from tests.graphs.test_manifest import MANIFEST


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"weights")
    return path


def test_the_entry_of_a_file(file: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    found = FileEntry.of(file)
    assert found == FileEntry("weights.bin", 7, digest)
    found.check_size(file.parent)
    found.check_hash(file.parent)
    assert hash_file(file) == digest


def test_hashes_of_long_and_empty_files(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000  # more than two of the blocks that files are read in
    (tmp_path / "long").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    assert hash_file(tmp_path / "long") == hashlib.sha256(data).hexdigest()
    assert hash_file(tmp_path / "empty") == hashlib.sha256(b"").hexdigest()


def test_an_altered_file(file: Path) -> None:
    found = FileEntry.of(file)
    file.write_bytes(b"Weights")
    found.check_size(file.parent)
    with pytest.raises(ManifestError, match=r"weights\.bin was altered: its SHA-256 is another"):
        found.check_hash(file.parent)
    file.write_bytes(b"weight")
    with pytest.raises(ManifestError, match=r"weights\.bin was altered: it has 6 bytes, not 7"):
        found.check_size(file.parent)
    file.unlink()
    with pytest.raises(ManifestError, match=r"weights\.bin is missing or no regular file"):
        found.check_size(file.parent)


@pytest.mark.parametrize("weights_hash", [True, False])
def test_check_files(tmp_path: Path, weights_hash: bool) -> None:
    for name in ("prefill.onnx", "decode.onnx", "weights.bin"):
        (tmp_path / name).write_bytes(name.encode())
    manifest = Manifest(
        model=MANIFEST.model,
        precision="fp32",
        target="portable",
        cache_dtype="float32",
        graphs={phase: FileEntry.of(tmp_path / f"{phase}.onnx") for phase in Phase},
        weights=FileEntry.of(tmp_path / "weights.bin"),
        tokenizer=(),
        generation=MANIFEST.generation,
    )
    manifest.check_files(tmp_path, weights_hash=weights_hash)
    (tmp_path / "weights.bin").write_bytes(b"WEIGHTS.bin")
    if weights_hash:
        with pytest.raises(ManifestError, match=r"weights\.bin was altered"):
            manifest.check_files(tmp_path, weights_hash=True)
    else:
        manifest.check_files(tmp_path, weights_hash=False)
    (tmp_path / "decode.onnx").write_bytes(b"DECODE.onnx")
    with pytest.raises(ManifestError, match=r"decode\.onnx was altered"):
        manifest.check_files(tmp_path, weights_hash=weights_hash)
