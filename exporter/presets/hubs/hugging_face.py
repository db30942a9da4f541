"""Presets from Hugging Face, through `huggingface_hub`: its cache, proxies, tokens, offline mode."""

from __future__ import annotations

import glob
from pathlib import Path

from exporter.presets.hubs.failure import HubFailure, one_line
from exporter.presets.hubs.needed_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG_FILE,
    HUGGING_FACE_FILES,
    KERAS_FILES,
    check_weights,
    layout_of,
    weight_files,
)

TOKEN = "log in with `hf auth login` or set HF_TOKEN"


def download_repository(
    repository: str, revision: str | None, *, weights: bool, adapter: bool = False
) -> Path:
    """The folder in `huggingface_hub`'s cache that holds a repository's preset.

    Only what a preset needs is downloaded: never the weights of a second framework. A complete copy
    in the cache serves where the hub cannot be reached. A file is in the cache when all of it is.

    Args:
        repository: `user/repository`.
        revision: a branch, tag, commit or `refs/pr/1`; by default the main branch.
        weights: whether to fetch the weights; without, only the small files are.
        adapter: whether only an adapter of `peft` is wanted, and not the weights beside it.

    Raises:
        HubFailure: if it cannot be had.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise HubFailure("huggingface_hub is not installed: pip install 'opt-onnx[export]'") from None
    try:
        names = [CONFIG_FILE, ADAPTER_CONFIG, *KERAS_FILES, *HUGGING_FACE_FILES]
        folder = _download(repository, revision, names)
        has_adapter = (folder / ADAPTER_CONFIG).is_file()
        if adapter and not has_adapter:
            raise HubFailure(f"it holds no adapter: it has no {ADAPTER_CONFIG}")
        if weights and has_adapter:
            _add_adapter(folder, repository)
        if weights and not adapter:
            _add_weights(folder, repository, optional=has_adapter)
        elif not folder.is_dir():
            raise HubFailure("it holds no preset: none of the files of Keras or of Hugging Face")
        return folder
    except HubFailure:
        raise
    except Exception as error:  # HTTP errors, the client's own and OS errors alike
        raise HubFailure(_reason(error, repository, revision)) from error


def _download(repository: str, revision: str | None, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in names]
    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


def _add_adapter(folder: Path, repository: str) -> None:
    """Adds an adapter's weights to a snapshot."""
    for name in ADAPTER_WEIGHTS:
        if not (folder / name).is_file():
            _download(repository, folder.name, [name])
        if (folder / name).is_file():
            return
    raise HubFailure(f"its adapter has no weights: expected {' or '.join(ADAPTER_WEIGHTS)}")


def _add_weights(folder: Path, repository: str, optional: bool) -> None:
    """Adds the weights to a snapshot, of the very commit that its folder is named by."""
    from huggingface_hub import HfApi, hf_hub_download

    if optional and not (folder / CONFIG_FILE).is_file():
        return  # an adapter alone
    layout, commit = layout_of(folder / CONFIG_FILE), folder.name
    try:
        check_weights(folder)
        return
    except HubFailure:
        files = HfApi().model_info(repository, revision=commit).siblings or []

    def locate(name: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=commit))

    try:
        needed = weight_files(layout, {file.rfilename for file in files}, locate)
    except HubFailure:
        if optional:
            return
        raise
    _download(repository, commit, needed)
    check_weights(folder)  # clients before 1.0 return a partial snapshot if the network goes away


def _reason(error: Exception, repository: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    # The client looks into its cache first, and then tells of both in one.
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and the cache {constants.HF_HUB_CACHE} has no complete copy"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        return f"access to it is restricted: accept its conditions at {page} and {TOKEN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private: {TOKEN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        denied = f"access to it is denied ({status}): {TOKEN}"
        return denied if status in (401, 403) else f"the hub answered {one_line(error)}"
    if isinstance(error, ValueError) or type(error).__module__.startswith("huggingface_hub"):
        return one_line(error)
    # What is left comes from below the client: another HTTP library in each of its versions.
    what = f"{type(error).__name__}: {one_line(error)}"
    return f"it cannot be reached, or the download broke off ({what})"
