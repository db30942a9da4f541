"""What ends a model's texts: `eos_token_id` of `generation_config.json`, else of `config.json`.

transformers reads the second only where the first is not there, and takes one id or a list of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import PresetError
from exporter.presets.json_file import read_json_if_there

GENERATION_FILE = "generation_config.json"
EOS = "eos_token_id"
MAX_END_IDS = 1000


@dataclass(frozen=True)
class GenerationConfig:
    """What a preset says of generation.

    Attributes:
        end_token_ids: each ends a text; `None` if the preset leaves it to the tokenizer.
        notices: what a user should know of it, a sentence each.
    """

    end_token_ids: tuple[int, ...] | None = None
    notices: tuple[str, ...] = ()


def read_generation(folder: Path, config: Mapping[str, Any], vocabulary_size: int) -> GenerationConfig:
    """The end ids of a preset folder.

    Args:
        folder: of either layout: Keras presets may have a `generation_config.json` too.
        config: `config.json`.
        vocabulary_size: ids from here on end nothing, since the model has no such tokens.

    Raises:
        PresetError: if an `eos_token_id` is neither an id nor a list of some.
    """
    generation = read_json_if_there(folder, GENERATION_FILE)
    notices = []
    found = {}
    for name, values in ((GENERATION_FILE, generation), ("config.json", config)):
        listed = _ids(values.get(EOS), folder / name)
        found[name] = tuple(i for i in listed if 0 <= i < vocabulary_size)
        if len(found[name]) < len(listed):
            notices.append(
                f"{name}: {EOS} lists {_short(i for i in listed if i not in found[name])}, which the "
                f"model's vocabulary (ids 0 to {vocabulary_size - 1}) does not have: left out"
            )
    chosen = found[GENERATION_FILE] or found["config.json"]
    if generation and not found[GENERATION_FILE] and chosen:
        notices.append(
            f"{GENERATION_FILE} names no end: texts end at config.json's {EOS} {_short(chosen)}; "
            "transformers would go on to the length limit"
        )
    elif generation and config.get(EOS) is not None and set(found["config.json"]) != set(chosen):
        notices.append(
            f"{GENERATION_FILE} gives {EOS} {_short(chosen)} and config.json "
            f"{_short(found['config.json'])}: the first counts, as in transformers"
        )
    return GenerationConfig(chosen or None, tuple(notices))


def generation_json(end_token_ids: tuple[int, ...]) -> str:
    """`generation_config.json` that says what ends texts, as transformers writes one id or several."""
    ids = end_token_ids[0] if len(end_token_ids) == 1 else list(end_token_ids)
    return json.dumps({EOS: ids}, indent=2) + "\n"


def _ids(value: Any, path: Path) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if len(ids) > MAX_END_IDS or not all(type(i) is int for i in ids):
        raise PresetError(
            f"{path}: {EOS} must be a token id or a list of up to {MAX_END_IDS}, got {value!r:.200}"
        )
    return tuple(dict.fromkeys(ids))


def _short(ids: Any) -> str:
    listed = [str(i)[:20] for i in ids]
    return ", ".join(listed[:8]) + (" …" if len(listed) > 8 else "") or "none"
