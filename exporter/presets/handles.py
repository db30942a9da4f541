"""Turns what a user names a preset by into a local folder."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import PresetError
from exporter.presets.table import BUILTIN_PRESETS

KAGGLE_PREFIX, HUGGING_FACE_PREFIX = "kaggle://", "hf://"

HANDLE_FORMS = (
    f"a built-in name ({', '.join(BUILTIN_PRESETS)}), "
    "kaggle://user/model/framework/variation[/version], hf://user/repository[@revision], "
    "or the path of a local folder"
)


def resolve_preset(preset: str | Path) -> Path:
    """The local folder of a preset, downloaded into the hub client's cache where it is remote.

    Args:
        preset: a built-in name, a `kaggle://` or `hf://` handle, or the path of a folder.

    Raises:
        PresetError: if it is none of these, or cannot be downloaded.
    """
    text = str(preset)
    builtin = BUILTIN_PRESETS.get(text)
    if builtin is not None and builtin.folder is not None:
        return builtin.folder
    if builtin is not None:
        return _download_kaggle(text, f"{builtin.kaggle_handle}")
    if text.startswith(KAGGLE_PREFIX):
        return _download_kaggle(text, text.removeprefix(KAGGLE_PREFIX))
    if text.startswith(HUGGING_FACE_PREFIX):
        return _download_hugging_face(text, text.removeprefix(HUGGING_FACE_PREFIX))
    folder = Path(preset)
    if not folder.is_dir():
        raise PresetError(f"no preset {text!r}; give {HANDLE_FORMS}")
    return folder


def preset_name(preset: str) -> str:
    """What to call a preset: a handle's model without its version, or a folder's own name."""
    if preset.startswith(KAGGLE_PREFIX):
        return preset.removeprefix(KAGGLE_PREFIX).split("/")[3]
    if preset.startswith(HUGGING_FACE_PREFIX):
        return preset.removeprefix(HUGGING_FACE_PREFIX).partition("@")[0].split("/")[1]
    return Path(preset).name


def _download_kaggle(preset: str, handle: str) -> Path:
    if len(handle.split("/")) not in (4, 5) or not all(handle.split("/")):
        raise PresetError(f"cannot read the handle {preset!r}; give {HANDLE_FORMS}")
    try:
        import kagglehub
    except ImportError:
        raise PresetError(
            f"downloading {preset!r} needs kagglehub: pip install 'opt-onnx[export]'"
        ) from None
    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:  # the client raises requests', its own and OS errors alike
        raise _unreachable(preset, f"kaggle.com model {handle}", error) from error


def _download_hugging_face(preset: str, handle: str) -> Path:
    repository, _, revision = handle.partition("@")
    parts = repository.split("/")
    if len(parts) != 2 or not all(parts) or handle.endswith("@"):
        raise PresetError(f"cannot read the handle {preset!r}; give {HANDLE_FORMS}")
    try:
        import huggingface_hub
    except ImportError:
        raise PresetError(
            f"downloading {preset!r} needs huggingface_hub: pip install 'opt-onnx[export]'"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=["*.json", "*.txt", "*.safetensors", "*.h5", "assets/*"],
        )
    except Exception as error:  # HTTP errors, the client's own and OS errors alike
        raise _unreachable(preset, f"Hugging Face repository {handle}", error) from error
    return Path(folder)


def _unreachable(preset: str, what: str, error: Exception) -> PresetError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return PresetError(
        f"cannot download preset {preset!r} ({what}): {reason[0]}. "
        "Check the network and your access, or give the path of a folder that holds a copy"
    )
