"""Which adapter is meant, where its base is, and what it is: from a path or handle to an `Adapter`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from exporter.adapters.adapter import Adapter
from exporter.adapters.keras_adapter import read_keras_adapter
from exporter.adapters.peft_adapter import read_peft_adapter
from exporter.adapters.peft_config import CONFIG_FILE
from exporter.errors import PresetError
from exporter.foreign_files import find_file
from exporter.opt.lora_file import SUFFIX
from exporter.presets.handles import HUGGING_FACE_PREFIX, resolve_adapter
from graphs.contract import ModelConfig

# A path or handle, with a weight where it is not 1.
AdapterChoice: TypeAlias = str | Path | tuple[str | Path, float]

FORMS = (
    f"a folder with {CONFIG_FILE} as peft saves it, a file that ends in {SUFFIX}, or "
    f"{HUGGING_FACE_PREFIX}user/repository[@revision]"
)


def chosen(choices: Sequence[AdapterChoice]) -> list[tuple[str, float]]:
    """Paths or handles with their weights.

    Raises:
        ValueError: if a choice is none, or a weight is no finite number.
    """
    if isinstance(choices, (str, Path)):
        choices = [choices]
    found = []
    for choice in choices:
        place, weight = choice if isinstance(choice, tuple) and len(choice) == 2 else (choice, 1.0)
        if not isinstance(place, (str, Path)):
            raise ValueError(f"an adapter is a path, or a path with its weight; got {choice!r:.200}")
        try:
            number = float(weight)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(weight, bool) or not math.isfinite(number):
            raise ValueError(
                f"the weight of adapter {place} must be a finite number, got {weight!r:.100}"
            )
        found.append((str(place), number))
    return found


def open_adapter(place: str, weight: float, config: ModelConfig) -> tuple[Adapter, Path]:
    """Opens an adapter for a base model; gives it and its folder.

    Raises:
        PresetError: if there is none, or it is of a kind that is not read.
        CheckpointError: if it does not fit the base, or is damaged.
    """
    path = resolve_adapter(place)
    if path.is_dir():
        if find_file(path, CONFIG_FILE, PresetError) is None:
            files = sorted(path.glob(f"*{SUFFIX}"))
            if len(files) != 1:
                raise PresetError(f"{path} is no adapter; give {FORMS}")
            path = files[0]
        else:
            return read_peft_adapter(path, place, config).weighted(weight), path
    if not path.name.endswith(SUFFIX):
        raise PresetError(f"{place} is no adapter; give {FORMS}")
    return read_keras_adapter(path, place, config).weighted(weight), path.parent
