"""The bundle manifest: what a bundle holds, and the hashes that prove it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from graphs.contract import CONTRACT_REVISION, ModelConfig, Phase

MANIFEST_FILE = "manifest.json"
FORMAT = "opt-onnx-bundle"
PRECISIONS = ("fp32", "int8", "int4")
TARGETS = ("portable", "cpu")
CACHE_DTYPES = ("float32",)
_HASH_BLOCK = 1024 * 1024


class ManifestError(ValueError):
    """A manifest cannot be read, or files differ from what it says."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: plain name, size in bytes, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        plain = isinstance(self.name, str) and self.name not in ("", ".", "..")
        if not plain or any(mark in self.name for mark in "/\\\0:"):
            raise ManifestError(f"a bundle's files have plain names, got {self.name!r}")
        if type(self.size) is not int or self.size < 0:
            raise ManifestError(f"{self.name}: the size must be a whole number, got {self.size!r}")
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ManifestError(f"{self.name}: the hash must have 64 digits, got {self.sha256!r}")

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """The entry of a file as it is."""
        return cls(path.name, path.stat().st_size, hash_file(path))

    def check_size(self, folder: Path) -> None:
        """Raises `ManifestError` if the file is missing, is no regular file, or has another size."""
        path = folder / self.name
        if path.is_symlink() or not path.is_file():
            raise ManifestError(f"{path} is missing")
        size = path.stat().st_size
        if size != self.size:
            raise ManifestError(f"{path} was altered: it has {size} bytes, not {self.size}")

    def check_hash(self, folder: Path) -> None:
        """Raises `ManifestError` if the file's content has another hash."""
        if hash_file(folder / self.name) != self.sha256:
            raise ManifestError(f"{folder / self.name} was altered: its SHA-256 is another")


@dataclass(frozen=True)
class GenerationDefaults:
    """What `Generator` does unless told otherwise: length limit and serialized sampler."""

    max_length: int
    sampler: Mapping[str, object]


@dataclass(frozen=True)
class Manifest:
    """All that is known of a bundle.

    Attributes:
        model: sizes of the model.
        precision: how weights are stored, one of `PRECISIONS`.
        target: what the graphs were made for, one of `TARGETS`.
        cache_dtype: NumPy name of the KV cache's dtype.
        graphs: the graph file of each phase; both may have the same one.
        weights: the file that both graphs point into.
        tokenizer: `vocabulary.json` and `merges.txt`, or `tokenizer.json` and `special_tokens.json`, or
            nothing.
        generation: defaults.
        source: where the weights came from, for people.
        versions: of the packages that wrote the bundle, for people.
        contract_revision: see `graphs.contract`.
    """

    model: ModelConfig
    precision: str
    target: str
    cache_dtype: str
    graphs: Mapping[Phase, FileEntry]
    weights: FileEntry
    tokenizer: tuple[FileEntry, ...]
    generation: GenerationDefaults
    source: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    contract_revision: int = CONTRACT_REVISION

    @property
    def files(self) -> list[FileEntry]:
        """All files of the bundle but the manifest, each once: one graph may serve both phases."""
        return [*dict.fromkeys(self.graphs.values()), self.weights, *self.tokenizer]

    @property
    def total_bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.size for entry in self.files)

    def write(self, folder: Path) -> None:
        """Writes `manifest.json`."""
        values = {"format": FORMAT, **asdict(self), "model": self.model.to_dict()}
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")

    def check_files(self, folder: Path, *, weights_hash: bool) -> None:
        """Compares the files with the manifest: sizes and hashes, the weights' hash if asked for.

        Raises:
            ManifestError: naming the first file that is missing or differs.
        """
        for entry in self.files:
            entry.check_size(folder)
        for entry in self.files:
            if entry is not self.weights or weights_hash:
                entry.check_hash(folder)


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Reads a bundle's manifest.

    Raises:
        ManifestError: if the folder is no bundle, or its manifest is of another contract revision,
            incomplete or not valid.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        what = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise ManifestError(
            f"{folder} is no bundle: it {what}. Make one with: opt-export --preset NAME --output DIR"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ManifestError(f"{path} is not the manifest of a bundle (format {FORMAT!r})")
    revision = values.get("contract_revision")
    if revision != CONTRACT_REVISION:
        raise ManifestError(
            f"{folder} follows revision {revision} of the graph contract and this runtime revision "
            f"{CONTRACT_REVISION}: export it again with this version, or use the version that wrote it"
        )
    try:
        return _parse(values)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None
    except KeyError as error:
        raise ManifestError(f"{path} lacks the value {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"{path} is not valid: {error}") from None


def _parse(values: dict[str, Any]) -> Manifest:
    for name, allowed in (
        ("precision", PRECISIONS),
        ("target", TARGETS),
        ("cache_dtype", CACHE_DTYPES),
    ):
        if values[name] not in allowed:
            raise ManifestError(f"{name} must be one of {allowed}, got {values[name]!r}")
    model = ModelConfig.from_dict(values["model"])
    generation = GenerationDefaults(**values["generation"])
    if not isinstance(generation.sampler, (str, dict)):
        raise ManifestError(f"generation.sampler is no configuration: {generation.sampler!r}")
    for name in ("source", "versions"):
        mapping = values[name]
        if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
            raise ManifestError(f"{name} is not valid: must map names to strings")
    length = generation.max_length
    if type(length) is not int or not 1 <= length <= model.max_sequence_length:
        raise ManifestError(f"generation.max_length is not within the model's positions: {length!r}")
    entries = {Phase(phase): FileEntry(**entry) for phase, entry in values["graphs"].items()}
    missing = sorted(set(Phase) - set(entries))
    if missing:
        raise ManifestError(f"graphs lacks {missing}")
    manifest = Manifest(
        model=model,
        precision=values["precision"],
        target=values["target"],
        cache_dtype=values["cache_dtype"],
        graphs=entries,
        weights=FileEntry(**values["weights"]),
        tokenizer=tuple(FileEntry(**entry) for entry in values["tokenizer"]),
        generation=generation,
        source=dict(values["source"]),
        versions=dict(values["versions"]),
    )
    names = [entry.name for entry in manifest.files]
    if len(set(names)) != len(names):
        raise ManifestError(f"files are named twice: {names}")
    return manifest
