"""Presets from Kaggle, through `kagglehub`: its cache, proxies, credentials and progress bars."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from exporter.presets.hubs.failure import HubFailure, one_line
from exporter.presets.hubs.needed_files import (
    CONFIG_FILE,
    HUGGING_FACE_FILES,
    KERAS_FILES,
    layout_of,
)

DENIED, ABSENT = (401, 403), 404
CREDENTIALS = (
    "log in with kagglehub.login() or set KAGGLE_API_TOKEN (or KAGGLE_USERNAME and KAGGLE_KEY), "
    "and accept the model's terms on its page"
)


def download_model(model: str, version: int | None, *, weights: bool) -> Path:
    """The folder in `kagglehub`'s cache that holds a model, downloaded where it does not yet.

    A version that is in the cache is used without the network. What an interrupted download has left
    is never taken for the whole; the client goes on from there in the next call.

    Args:
        model: `user/model/framework/variation`.
        version: by default the latest, which only the hub knows.
        weights: whether to fetch the weights; without, only the small files are.

    Raises:
        HubFailure: if it cannot be had.
    """
    handle = model if version is None else f"{model}/{version}"
    try:
        import kagglehub
    except ImportError:
        raise HubFailure("kagglehub is not installed: pip install 'opt-onnx[export]'") from None
    with _standard_output_untouched():
        try:
            folder = None if weights else _download_small_files(kagglehub, handle)
            return folder or Path(kagglehub.model_download(handle))
        except HubFailure:
            raise
        except Exception as error:  # the client raises requests', its own and OS errors alike
            raise HubFailure(_reason(error, version)) from error


def _download_small_files(kagglehub: ModuleType, handle: str) -> Path | None:
    """Fetches a preset's files but for the weights, one by one: the client lists none.

    Returns:
        Their folder. `None` if the whole model is to be asked for: the hub is away, and a model that is
        in the cache as a whole is not known there by its files; or it has no configuration, as a
        tokenizer alone.
    """
    import requests

    try:
        if (config_file := _download_file(kagglehub, handle, CONFIG_FILE, absent=(ABSENT,))) is None:
            return None
        for name in KERAS_FILES if layout_of(config_file) == "keras" else HUGGING_FACE_FILES:
            # Kaggle answers 403 too for what is not there, and it gave the configuration.
            _download_file(kagglehub, handle, name, absent=(ABSENT, *DENIED))
    except requests.ConnectionError:
        return None
    return config_file.parent


def _download_file(
    kagglehub: ModuleType, handle: str, name: str, absent: tuple[int, ...]
) -> Path | None:
    """One file of a model; `None` if the hub answers with a status that means that it is absent."""
    import requests

    try:
        return Path(kagglehub.model_download(handle, path=name))
    except requests.HTTPError as error:
        if _status(error) in absent:
            return None
        raise


@contextlib.contextmanager
def _standard_output_untouched() -> Iterator[None]:
    """Sends the client's notices to standard error: standard output belongs to the caller's results."""
    handlers = [h for h in logging.getLogger("kagglehub").handlers if type(h) is logging.StreamHandler]
    streams = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            if stream is not None:
                handler.setStream(stream)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: Exception, version: int | None) -> str:
    import requests

    status = _status(error)
    if status in DENIED:
        return f"there is no such model, or access to it is denied ({status}): {CREDENTIALS}"
    if status == ABSENT:
        return "there is no such model or version (404)"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the download broke off; the next one goes on from there ({_core(error)})"
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        hint = "" if version else "; with its version in the handle, a cached model needs no network"
        return f"it cannot be reached ({_core(error)}){hint}"
    return one_line(error)


def _core(error: Exception) -> str:
    """What went wrong, out of the layers of exceptions that `requests` and `urllib3` wrap it in."""
    inner = error.args[0] if error.args else error
    inner = getattr(inner, "reason", None) or inner
    if isinstance(inner, Exception) and inner.args and isinstance(inner.args[0], str):
        return inner.args[0]
    return one_line(error)
