"""A preset with adapters merged into it: those that are given, and one that lies in its own folder."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.adapters.adapter import merge, merged_config
from exporter.adapters.opening import AdapterChoice, chosen, open_adapter
from exporter.adapters.peft_config import CONFIG_FILE, base_name
from exporter.checkpoints.readers import has_weights
from exporter.errors import PresetError
from exporter.foreign_files import find_file
from exporter.presets.folder import PresetFolder, read_preset
from exporter.presets.handles import HUGGING_FACE_PREFIX, resolve_preset
from exporter.presets.json_file import read_json
from exporter.presets.tokenizer_files import hugging_face_tokenizer_files
from exporter.weights import WeightSource

_logger = logging.getLogger(__name__)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def open_preset(
    preset: str | Path, adapters: Sequence[AdapterChoice] = (), *, weights: bool = True
) -> PresetFolder:
    """A preset, and the adapters to merge into it.

    Where the preset's folder holds an adapter of `peft` beside weights, it is merged into them, as
    transformers does; where it holds an adapter alone, the base is the one that the adapter names.

    Args:
        preset: a built-in name, handle or folder.
        adapters: what else is merged, in turn.
        weights: whether the weights are needed; without, adapters are not looked at.

    Raises:
        PresetError: if the preset or an adapter is unknown, incomplete or not supported.
        CheckpointError: if an adapter does not fit.
    """
    choices = chosen(adapters)
    folder = resolve_preset(preset, weights)
    base, own = _base(folder, weights)
    read = read_preset(base)
    if own:
        choices.insert(0, (str(folder), 1.0))
    if not choices or not weights:
        return read
    if own:
        _logger.warning("%s holds an adapter, which is merged into the weights of %s", folder, base)
    opened = [open_adapter(place, weight, read.config) for place, weight in choices]
    config = merged_config(read.config, [adapter for adapter, _ in opened])
    text: dict[str, Any] = next((t for _, place in reversed(opened) if (t := _text(place, read))), {})
    return replace(
        read,
        config=config,
        base_config=read.config,
        adapters=tuple(adapter for adapter, _ in opened),
        **text,
    )


def merged(source: WeightSource, preset: PresetFolder) -> WeightSource:
    """A preset's weights with its adapters merged."""
    return merge(source, preset.config, preset.adapters) if preset.adapters else source


def _base(folder: Path, weights: bool) -> tuple[Path, bool]:
    """The folder of the base model, and whether the given folder holds an adapter for it."""
    if find_file(folder, CONFIG_FILE, PresetError) is None:
        return folder, False
    has_config = find_file(folder, "config.json", PresetError) is not None
    if has_config and (has_weights(folder, "huggingface") or not weights):
        return folder, True
    name, revision = base_name(folder)
    if name is None:
        raise PresetError(
            f"{folder} holds an adapter that does not name its base; give the base as the preset and "
            "this as the adapter"
        )
    for place in (Path(name), folder / name):  # as peft does; then as its maker may have meant it
        if place.is_dir() and place.resolve() != folder.resolve():
            return place, True
    if not _REPOSITORY.fullmatch(name):
        raise PresetError(
            f"{folder} holds an adapter for the base {name!r:.200}, which is neither a folder here nor "
            "a repository; give the base as the preset and this as the adapter"
        )
    handle = HUGGING_FACE_PREFIX + name + (f"@{revision}" if revision else "")
    try:
        return resolve_preset(handle, weights), True
    except PresetError as error:
        raise PresetError(f"the base of the adapter {folder} is not to be had: {error}") from error


def _text(folder: Path, base: PresetFolder) -> dict[str, Any]:
    """The tokenizer of an adapter's folder, as values of a preset; nothing where it has none."""
    if folder.resolve() == base.folder.resolve():
        return {}
    config = read_json(base.folder / "config.json") if base.format == "huggingface" else {}
    ends = {"eos_token_id": list(base.generation.end_token_ids or ())}
    files = hugging_face_tokenizer_files(folder, {**config, **ends})
    return {} if files is None else {"tokenizer_files": files, "tokenizer_options": {}}
