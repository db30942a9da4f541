"""The bundle manifest: what a bundle holds, and the hashes that prove it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from graphs.contract import CACHE_BYTES, ModelConfig, Phase, Revision
from graphs.plain_files import hash_file, is_plain, read_plain
from graphs.sealed_json import SEAL, SealError, check_seal, seal, unseal
from graphs.shown import cut, listed, shown

MANIFEST_FILE = "manifest.json"
FORMAT = "opt-onnx-bundle"
# What weights may be stored as for each target, the default first.
TARGET_PRECISIONS = {
    "portable": ("fp32",),
    "cpu": ("fp32", "int8", "int4"),
    "cuda": ("fp16", "bf16", "int8", "int4"),
}
TARGETS = tuple(TARGET_PRECISIONS)
PRECISIONS = tuple(dict.fromkeys(name for names in TARGET_PRECISIONS.values() for name in names))
CACHE_DTYPES = tuple(CACHE_BYTES)
# Of the files that are read whole; the largest that are known take a twentieth of it.
MAX_MANIFEST_BYTES = 1024**2
MAX_GRAPH_BYTES = 16 * 1024**2
MAX_TOKENIZER_BYTES = 64 * 1024**2
BITS_OF_A_WEIGHT = 4  # at least
# Of `runtime.generation_options`, what a bundle may ask of its texts by itself.
OPTION_NAMES = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "min_new_tokens",
    "max_new_tokens",
)


class ManifestError(ValueError):
    """A manifest cannot be read, or files differ from what it says."""


def target_revision(target: str) -> Revision:
    """The revision of the contract that a target's graphs follow."""
    return Revision.DEVICE if target == "cuda" else Revision.HOST


def target_cache_dtype(target: str, precision: str) -> str:
    """The dtype of the KV cache of a target's graphs, in NumPy's spelling."""
    if target != "cuda":
        return "float32"
    return "bfloat16" if precision == "bf16" else "float16"


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: plain name, size in bytes, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        plain = isinstance(self.name, str) and self.name not in ("", ".", "..")
        plain = plain and self.name.isprintable()  # an error that names it must be one that prints
        if not plain or any(mark in self.name for mark in "/\\\0:"):
            name = shown(self.name).encode("ascii", "backslashreplace").decode()
            raise ManifestError(f"a bundle's files have plain names, got {name}")
        if type(self.size) is not int or self.size < 0:
            raise ManifestError(f"{self.name}: the size must be a whole number, got {shown(self.size)}")
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ManifestError(f"{self.name}: the hash must have 64 digits, got {shown(self.sha256)}")

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """The entry of a file as it is."""
        return cls(path.name, path.stat().st_size, hash_file(path))

    def check_size(self, folder: Path) -> None:
        """Raises `ManifestError` if the file is missing, is no regular file, or has another size."""
        path = folder / self.name
        if not is_plain(path):
            raise ManifestError(f"{path} is missing or no regular file")
        size = path.stat().st_size
        if size != self.size:
            raise ManifestError(f"{path} was altered: it has {size} bytes, not {self.size}")

    def check_hash(self, folder: Path) -> None:
        """Raises `ManifestError` if the file's content has another hash."""
        self.check_digest(folder, hash_file(folder / self.name))

    def check_digest(self, folder: Path, digest: str) -> None:
        """Raises `ManifestError` if a hash of the file's content is not this one."""
        if digest != self.sha256:
            raise ManifestError(
                f"{folder / self.name} was altered: its SHA-256 is another; copy or export it again"
            )


@dataclass(frozen=True)
class Probe:
    """A short greedy run of the bundle, to be repeated where it is checked.

    Attributes:
        prompt: token ids.
        token_ids: what follows, each the token of the largest logit.
        logits: of each of them at its step.
        tolerance: of the logits; another CPU sums in another order.
    """

    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]
    logits: tuple[float, ...]
    tolerance: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Probe:
        """Reads what JSON made of it."""
        plain: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**plain)

    def check(self, model: ModelConfig) -> None:
        """Raises `ManifestError` if the model cannot have made it."""
        ids = [*self.prompt, *self.token_ids]
        known = all(type(token) is int and 0 <= token < model.vocabulary_size for token in ids)
        numbers = [*self.logits, self.tolerance]
        finite = all(isinstance(number, float) and math.isfinite(number) for number in numbers)
        counts = len(self.prompt) > 0 and 0 < len(self.token_ids) == len(self.logits)
        fits = len(ids) <= model.max_sequence_length
        if not (known and finite and counts and fits and self.tolerance > 0):
            raise ManifestError("probe is not valid: it is no run of the model")


@dataclass(frozen=True)
class GenerationDefaults:
    """What `Generator` does unless told otherwise.

    Attributes:
        max_length: tokens of prompt and answer together.
        sampler: serialized.
        end_token_ids: each ends a text; `None`, as in bundles of older exports, for the tokenizer's.
        options: values of some of `OPTION_NAMES`, checked by the runtime; `None` where there are none.
    """

    max_length: int
    sampler: Mapping[str, object]
    end_token_ids: tuple[int, ...] | None = None
    options: Mapping[str, object] | None = None


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
        probe: a run to compare with; `None` if the export was told to verify nothing.
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
    contract_revision: Revision = Revision.HOST
    probe: Probe | None = None

    @property
    def files(self) -> list[FileEntry]:
        """All files of the bundle but the manifest, each once: one graph may serve both phases."""
        return [*dict.fromkeys(self.graphs.values()), self.weights, *self.tokenizer]

    @property
    def total_bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.size for entry in self.files)

    def write(self, folder: Path) -> None:
        """Writes `manifest.json`, which ends with the hash of itself."""
        values = {"format": FORMAT, **asdict(self), "model": self.model.to_dict()}
        if self.generation.options is None:
            del values["generation"]["options"]
        (folder / MANIFEST_FILE).write_bytes(seal(values).encode())

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


def read_manifest(folder: Path) -> Manifest:
    """Reads a bundle's manifest.

    Raises:
        ManifestError: if the folder is no bundle, or its manifest is of another contract revision,
            incomplete or not valid.
    """
    path = folder / MANIFEST_FILE
    if not is_plain(path):
        what = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise ManifestError(
            f"{folder} is no bundle: it {what}. Make one with: opt-export --preset NAME --output DIR"
        )
    try:
        data = read_plain(path, MAX_MANIFEST_BYTES)
        values = unseal(data)
    except (OSError, SealError) as error:
        told = str(error).removeprefix(f"{path} ")
        raise ManifestError(f"{path} {told}; copy the bundle or export it again") from None
    if values.get("format") != FORMAT:
        raise ManifestError(f"{path} is not the manifest of a bundle (format {FORMAT!r})")
    revision = values.get("contract_revision")
    if type(revision) is not int or revision not in set(Revision):
        known = " and ".join(str(int(one)) for one in Revision)
        raise ManifestError(
            f"{folder} follows revision {shown(revision)} of the graph contract and this runtime knows "
            f"{known}: export the model again with this version, or use the version that wrote the "
            "bundle"
        )
    try:
        check_seal(values, data)
    except SealError as error:
        raise ManifestError(f"{path} {error}; copy the bundle or export it again") from None
    try:
        return _parse(values)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None
    except KeyError as error:
        raise ManifestError(f"{path} lacks the value {shown(error.args[0])}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"{path} is not valid: {cut(error)}") from None


def _parse(values: dict[str, Any]) -> Manifest:
    surplus = sorted(set(values) - {field.name for field in fields(Manifest)} - {"format", SEAL})
    if surplus:
        raise ManifestError(f"unknown names {shown(surplus)}")
    for name, allowed in (
        ("precision", PRECISIONS),
        ("target", TARGETS),
        ("cache_dtype", CACHE_DTYPES),
    ):
        if values[name] not in allowed:
            raise ManifestError(f"{name} must be one of {allowed}, got {shown(values[name])}")
    _check_target(values)
    model = ModelConfig.from_dict(values["model"])
    generation = _parse_generation(values["generation"], model)
    for name in ("source", "versions"):
        mapping = values[name]
        if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
            raise ManifestError(f"{name} is not valid: must map names to strings")
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
        contract_revision=Revision(values["contract_revision"]),
        probe=_parse_probe(values["probe"], model),
    )
    names = [entry.name for entry in manifest.files]
    if len(set(names)) != len(names):
        raise ManifestError(f"files are named twice: {listed(names)}")
    _check_sizes(manifest)
    return manifest


def _parse_generation(values: Mapping[str, Any], model: ModelConfig) -> GenerationDefaults:
    generation = GenerationDefaults(**values)
    if not isinstance(generation.sampler, (str, dict)):
        raise ManifestError(f"generation.sampler is no configuration: {shown(generation.sampler)}")
    options = generation.options
    if options is not None and not isinstance(options, dict):
        raise ManifestError(f"generation.options must be an object or null: {shown(options)}")
    if unknown := [name for name in options or () if name not in OPTION_NAMES]:
        raise ManifestError(
            f"generation.options has {shown(unknown[0])}, and may have {', '.join(OPTION_NAMES)}"
        )
    length, ends = generation.max_length, generation.end_token_ids
    if type(length) is not int or not 1 <= length <= model.max_sequence_length:
        raise ManifestError(
            f"generation.max_length is not within the model's positions: {shown(length)}"
        )
    if ends is None:
        return generation
    size = model.vocabulary_size
    if (
        not isinstance(ends, list)
        or not ends
        or any(type(i) is not int or not 0 <= i < size for i in ends)
    ):
        raise ManifestError(f"generation.end_token_ids must be ids from 0 to {size - 1}: {shown(ends)}")
    return replace(generation, end_token_ids=tuple(ends))


def _check_target(values: Mapping[str, Any]) -> None:
    """What follows from the target is said twice in a manifest, and must be the same."""
    target, precision = values["target"], values["precision"]
    # Plain ONNX may be in any precision of CPUs, of which the exporter makes one.
    known = TARGET_PRECISIONS["cuda" if target == "cuda" else "cpu"]
    if precision not in known:
        raise ManifestError(f"target {shown(target)} has no precision {shown(precision)}")
    for name, wanted in (
        ("contract_revision", target_revision(target)),
        ("cache_dtype", target_cache_dtype(target, precision)),
    ):
        if values[name] != wanted:
            raise ManifestError(
                f"{name} of target {shown(target)} must be {wanted}, got {shown(values[name])}"
            )


def _parse_probe(values: Any, model: ModelConfig) -> Probe | None:
    if values is None:
        return None
    probe = Probe.from_dict(values)
    probe.check(model)
    return probe


def _check_sizes(manifest: Manifest) -> None:
    """What is made in memory for a model, its cache for one, is bounded by the size of its files."""
    model, weights = manifest.model, manifest.weights
    if model.num_parameters * BITS_OF_A_WEIGHT > weights.size * 8:
        raise ManifestError(
            f"a model of {model.num_parameters} parameters cannot be in the {weights.size} bytes of "
            f"{weights.name}"
        )
    graphs = [(entry, MAX_GRAPH_BYTES) for entry in manifest.graphs.values()]
    for entry, most in [*graphs, *((entry, MAX_TOKENIZER_BYTES) for entry in manifest.tokenizer)]:
        if entry.size > most:
            raise ManifestError(f"{entry.name} has {entry.size} bytes, and such a file may have {most}")
