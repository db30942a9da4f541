"""Loading a bundle: its manifest, graphs and tokenizer, its files checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from graphs.contract import Phase
from graphs.manifest import FileEntry, Manifest, ManifestError, read_manifest
from graphs.plain_files import read_plain
from graphs.shown import cut
from runtime.errors import BundleError
from runtime.graph_check.graph_file import check_graph_file
from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.wire_format import GraphFileError
from runtime.samplers import get as get_sampler
from runtime.tokenization.pipeline import Pipeline, check_file_names, read_files
from runtime.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from runtime.generation_options import GenerationOptions

MAX_ROWS = 256  # of one prompt that a bundle's own sampler may ask for: each has a cache

_Opened = TypeVar("_Opened")


class BundleReplacedError(BundleError):
    """An export put another bundle in the place of one that was being loaded."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are there and, but for the weights, unaltered.

    Its tokenizer's files are in memory; they are parsed when it is first used, which raises
    `BundleError` then if they are not valid.

    Attributes:
        folder: where it is.
        manifest: what it holds.
        tokenizer: `None` if it has none.
        verified: whether the hash of the weights was checked too.
        pack_bytes: by the name of a graph file, what its weights take at most, packed.
        options: what it asks of its texts by itself; `None` if nothing.
    """

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer | None
    verified: bool = False
    pack_bytes: Mapping[str, int] = field(default_factory=dict)
    options: GenerationOptions | None = None

    def graph_path(self, phase: Phase) -> Path:
        """The graph file of a phase."""
        return self.folder / self.manifest.graphs[phase].name

    def check_unchanged(self) -> None:
        """Raises `BundleReplacedError` if the folder has another bundle than when it was loaded."""
        try:
            same = read_manifest(self.folder) == self.manifest
        except ManifestError:
            same = False
        if not same:
            raise BundleReplacedError(f"{self.folder} was replaced while it was loaded; load it again")


def load_bundle(folder: str | Path, *, verify: bool = False) -> Bundle:
    """Reads a bundle folder.

    Args:
        folder: the bundle.
        verify: whether to check the hash of the weights too, and of packed weights that are used.

    Raises:
        BundleError: if it is no bundle, is incomplete, altered or of another contract revision, or
            holds what no export of this project writes.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
        for entry in manifest.files:
            entry.check_size(folder)
        _check_sampler(folder, manifest)
        options = _read_options(folder, manifest)
        pack_bytes = _check_graphs(folder, manifest)
        tokenizer = _find_tokenizer(folder, manifest)
        if verify:
            manifest.weights.check_hash(folder)
    except (ManifestError, OSError) as error:
        raise BundleError(str(error)) from None
    return Bundle(folder, manifest, tokenizer, verify, pack_bytes, options)


def open_bundle(
    folder: str | Path, open_model: Callable[[Bundle], _Opened], *, verify: bool = False
) -> tuple[Bundle, _Opened]:
    """Loads a bundle and opens its model; both anew, once, if an export replaces it meanwhile.

    Args:
        folder: the bundle.
        open_model: opens what was loaded; see `runtime.session`.
        verify: see `load_bundle`.

    Raises:
        BundleError: see `load_bundle`; `BundleReplacedError` if it was replaced twice.
    """
    try:
        return _open_once(Path(folder), open_model, verify)
    except BundleReplacedError:
        return _open_once(Path(folder), open_model, verify)


def _open_once(
    folder: Path, open_model: Callable[[Bundle], _Opened], verify: bool
) -> tuple[Bundle, _Opened]:
    try:
        seen = read_manifest(folder)
    except ManifestError as error:
        raise BundleError(str(error)) from None
    try:
        bundle = load_bundle(folder, verify=verify)
        return bundle, open_model(bundle)
    except BundleError:
        # What is wrong with it may be that it is half of this and half of that.
        Bundle(folder, seen, None).check_unchanged()
        raise


def _read_checked(folder: Path, entry: FileEntry) -> bytes:
    """A file's content, whose hash is the manifest's."""
    data = read_plain(folder / entry.name, entry.size)
    entry.check_digest(folder, hashlib.sha256(data).hexdigest())
    return data


def _check_graphs(folder: Path, manifest: Manifest) -> dict[str, int]:
    """Checks the graph files; returns what the weights of each take at most, packed."""
    weights = manifest.weights
    pack_bytes = {}
    # A graph that serves both phases is one of any number of tokens, as prefill's is.
    phases = {manifest.graphs[phase]: phase for phase in (Phase.DECODE, Phase.PREFILL)}
    for entry, phase in phases.items():
        limits = GraphLimits(
            manifest.model,
            phase,
            manifest.cache_dtype,
            weights.name,
            weights.size,
            manifest.contract_revision,
        )
        data = _read_checked(folder, entry)
        try:
            pack_bytes[entry.name] = check_graph_file(data, limits)
        except GraphFileError as error:
            raise BundleError(
                f"{folder / entry.name} {cut(error)}. Do not use this bundle unless you know "
                "who made it; export the model again with this version"
            ) from None
    return pack_bytes


def _check_sampler(folder: Path, manifest: Manifest) -> None:
    try:
        sampler = get_sampler(manifest.generation.sampler)
    except (ValueError, TypeError) as error:
        raise ManifestError(f"{folder}: its sampler is not valid: {cut(error)}") from None
    if sampler.rows > MAX_ROWS:
        raise ManifestError(
            f"{folder}: its sampler asks for {sampler.rows} rows for each prompt, of at most {MAX_ROWS}"
        )


def _read_options(folder: Path, manifest: Manifest) -> GenerationOptions | None:
    values = manifest.generation.options
    if values is None:
        return None
    # A bundle without any does not wait for these to be imported.
    from runtime.generation_options import GenerationOptions

    try:
        options = GenerationOptions.from_dict(values)
        options.check_vocabulary(manifest.model.vocabulary_size)
    except ValueError as error:
        raise ManifestError(f"{folder}: its generation.options are not valid: {cut(error)}") from None
    return options


def _find_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | None:
    if not manifest.tokenizer:
        return None
    try:
        check_file_names([entry.name for entry in manifest.tokenizer])
    except ValueError as error:
        raise BundleError(f"{folder}: {error}") from None
    # Read now, so that the text cannot be that of a bundle which an export puts here later.
    files = {entry.name: _read_checked(folder, entry) for entry in manifest.tokenizer}

    def read() -> Pipeline:
        try:
            return read_files({name: data.decode("utf-8") for name, data in files.items()})
        except ValueError as error:
            raise BundleError(f"{folder}: {error}") from None

    return Tokenizer.deferred(read)
