"""Turns what a user names a preset by into a local folder."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import PresetError
from exporter.presets.hubs.failure import HubFailure
from exporter.presets.hubs.hugging_face import download_repository
from exporter.presets.hubs.kaggle import download_model
from exporter.presets.table import BUILTIN_PRESETS, BuiltinPreset

KAGGLE_PREFIX, HUGGING_FACE_PREFIX = "kaggle://", "hf://"

HANDLE_FORMS = (
    f"a built-in name ({', '.join(BUILTIN_PRESETS)}), "
    "kaggle://user/model/framework/variation[/version], hf://user/repository[@revision], "
    "or the path of a local folder"
)
COPY_HINT = (
    "Or put a copy into a local folder and give its path as the preset: config.json, the weights and "
    "the tokenizer's files, as Keras or Hugging Face writes them"
)

# A revision may hold slashes.
_KAGGLE = re.compile(rf"{KAGGLE_PREFIX}([^/]+(?:/[^/]+){{3}})(?:/([1-9][0-9]*))?/?")
_HUGGING_FACE = re.compile(rf"{HUGGING_FACE_PREFIX}([^/@]+/[^/@]+)(?:@([^/].*?))?/?")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltinHandle:
    """A name of the table of built-in presets."""

    preset: BuiltinPreset

    @property
    def name(self) -> str:
        """What to call the preset."""
        return self.preset.name


@dataclass(frozen=True)
class KaggleHandle:
    """A model on Kaggle; `model` is `user/model/framework/variation`."""

    model: str
    version: int | None = None

    @property
    def name(self) -> str:
        """What to call the preset: the variation."""
        return self.model.rpartition("/")[2]

    def __str__(self) -> str:
        return f"Kaggle model {self.model}" + (f"/{self.version}" if self.version else "")


@dataclass(frozen=True)
class HuggingFaceHandle:
    """A repository on Hugging Face, `user/repository`, at a branch, tag, commit or `refs/pr/1`."""

    repository: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """What to call the preset: the repository without its owner."""
        return self.repository.rpartition("/")[2]

    def __str__(self) -> str:
        return f"Hugging Face repository {self.repository}" + (
            f"@{self.revision}" if self.revision else ""
        )


@dataclass(frozen=True)
class FolderHandle:
    """A folder on this machine."""

    folder: Path

    @property
    def name(self) -> str:
        """What to call the preset."""
        return self.folder.name


RemoteHandle = KaggleHandle | HuggingFaceHandle
Handle = BuiltinHandle | RemoteHandle | FolderHandle


def parse_handle(preset: str | Path) -> Handle:
    """Reads what a user names a preset by; looks neither at the disk nor at the network.

    Args:
        preset: a built-in name, a `kaggle://` or `hf://` handle (a slash at the end does no harm), or
            the path of a folder.

    Raises:
        PresetError: if it has the prefix of a hub, and the rest cannot be read.
    """
    text = str(preset)
    if text in BUILTIN_PRESETS:
        return BuiltinHandle(BUILTIN_PRESETS[text])
    if text.startswith((KAGGLE_PREFIX, HUGGING_FACE_PREFIX)):
        return _parse_remote(text)
    return FolderHandle(Path(preset))


def resolve_preset(preset: str | Path, weights: bool = True) -> Path:
    """The local folder of a preset, downloaded into the hub client's cache where it is remote.

    A built-in preset comes from Kaggle, or from Hugging Face where Kaggle does not give it.

    Args:
        preset: a built-in name, a `kaggle://` or `hf://` handle, or the path of a folder.
        weights: whether the weights are needed; without, only configuration and tokenizer are
            downloaded.

    Raises:
        PresetError: if it is none of these, or cannot be downloaded.
    """
    handle = parse_handle(preset)
    if isinstance(handle, FolderHandle):
        if not handle.folder.is_dir():
            raise PresetError(f"no preset {str(preset)!r}; give {HANDLE_FORMS}")
        return handle.folder
    if isinstance(handle, BuiltinHandle):
        if (folder := handle.preset.folder) is not None:
            if not folder.is_dir():  # the package is in a zip file
                raise PresetError(f"{folder} is no folder; install opt-onnx with pip, which unpacks it")
            return folder
        named = (handle.preset.kaggle_handle, handle.preset.hugging_face_handle)
        return _download(str(preset), [_parse_remote(source) for source in named if source], weights)
    return _download(str(preset), [handle], weights)


def resolve_adapter(adapter: str) -> Path:
    """The local folder or file of an adapter; a repository on Hugging Face is downloaded.

    Raises:
        PresetError: if there is none.
    """
    if not adapter.startswith(HUGGING_FACE_PREFIX):
        try:
            there = Path(adapter).exists()
        except (OSError, ValueError):  # a name that no file can have
            there = False
        if not there:
            raise PresetError(f"there is no adapter {adapter!r:.500}: no such folder or file")
        return Path(adapter)
    source = _parse_remote(adapter)
    assert isinstance(source, HuggingFaceHandle)
    try:
        return download_repository(source.repository, source.revision, weights=True, adapter=True)
    except HubFailure as failure:
        raise PresetError(f"cannot download adapter {adapter!r}: {failure}") from failure


def preset_name(preset: str) -> str:
    """What to call a preset: a handle's model without its version, or a folder's own name."""
    return parse_handle(preset).name


def _parse_remote(text: str) -> RemoteHandle:
    if found := _KAGGLE.fullmatch(text):
        return KaggleHandle(found[1], int(found[2]) if found[2] else None)
    if found := _HUGGING_FACE.fullmatch(text):
        return HuggingFaceHandle(found[1], found[2])
    raise PresetError(f"cannot read the handle {text!r}; give {HANDLE_FORMS}")


def _download(preset: str, sources: list[RemoteHandle], weights: bool) -> Path:
    """The folder that the first source gives that gives one."""
    reasons: list[str] = []
    cause: HubFailure | None = None
    for source in sources:
        try:
            return _fetch(source, weights)
        except HubFailure as failure:
            reasons.append(f"{source}: {failure}")
            cause = failure
            if source is not sources[-1]:
                _logger.warning("%s; trying the next source of %s", reasons[-1], preset)
    lines = [f"cannot download preset {preset!r}:", *(f"  {reason}" for reason in reasons), COPY_HINT]
    raise PresetError("\n".join(lines)) from cause


def _fetch(source: RemoteHandle, weights: bool) -> Path:
    if isinstance(source, KaggleHandle):
        return download_model(source.model, source.version, weights=weights)
    return download_repository(source.repository, source.revision, weights=weights)
