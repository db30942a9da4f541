"""Loading a bundle: its manifest and tokenizer, its files checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graphs.contract import Phase
from graphs.manifest import Manifest, ManifestError, read_manifest
from runtime.errors import BundleError
from runtime.tokenizer import Tokenizer
from runtime.tokenizer_pipeline import Pipeline, check_file_names, read_files


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are there and, but for the weights, unaltered.

    Its tokenizer is read when it is first used, and raises `BundleError` then if it is not valid.
    """

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer | None

    def graph_path(self, phase: Phase) -> Path:
        """The graph file of a phase."""
        return self.folder / self.manifest.graphs[phase].name


def load_bundle(folder: str | Path, *, verify: bool = False) -> Bundle:
    """Reads a bundle folder.

    Args:
        folder: the bundle.
        verify: whether to check the hash of the weights too.

    Raises:
        BundleError: if it is no bundle, is incomplete, altered or of another contract revision.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
        manifest.check_files(folder, weights_hash=verify)
    except ManifestError as error:
        raise BundleError(str(error)) from None
    return Bundle(folder, manifest, _find_tokenizer(folder, manifest))


def _find_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | None:
    names = [entry.name for entry in manifest.tokenizer]
    if not names:
        return None

    def read() -> Pipeline:
        try:
            return read_files({name: (folder / name).read_text(encoding="utf-8") for name in names})
        except ValueError as error:
            raise BundleError(f"{folder}: {error}") from None

    try:
        check_file_names(names)
    except ValueError as error:
        raise BundleError(f"{folder}: {error}") from None
    return Tokenizer.deferred(read)
