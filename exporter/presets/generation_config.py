"""`generation_config.json`: how a model's texts are written, and what ends them.

They end at its `eos_token_id`, else at that of `config.json`: transformers reads the second only where
the first is not there, and takes one id or a list of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import PresetError
from exporter.presets.generation_defaults import WritingDefaults, read_writing_defaults
from exporter.presets.json_file import read_json_if_there

GENERATION_FILE = "generation_config.json"
EOS = "eos_token_id"
MAX_END_IDS = 1000


@dataclass(frozen=True)
class GenerationConfig:
    """What a preset says of generation.

    Attributes:
        end_token_ids: each ends a text; `None` if the preset leaves it to the tokenizer.
        writing: how texts are written.
        notices: what a user should know of all this, a sentence each.
    """

    end_token_ids: tuple[int, ...] | None = None
    writing: WritingDefaults = field(default_factory=WritingDefaults)
    notices: tuple[str, ...] = ()


def read_generation(folder: Path, config: Mapping[str, Any], vocabulary_size: int) -> GenerationConfig:
    """What a preset folder says of generation.

    Args:
        folder: of either layout: Keras presets may have a `generation_config.json` too.
        config: `config.json`.
        vocabulary_size: ids from here on are left out, since the model has no such tokens.

    Raises:
        PresetError: if an `eos_token_id` is neither an id nor a list of some, or for another value that
            is not valid; see `read_writing_defaults`.
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
    writing = read_writing_defaults(generation, folder / GENERATION_FILE, vocabulary_size)
    return GenerationConfig(chosen or None, writing, (*notices, *writing.notices))


def generation_values(
    end_token_ids: Sequence[int] | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What `generation_config.json` says of a model, as transformers writes it; empty if nothing."""
    values = dict(options)
    if end_token_ids is not None:
        values[EOS] = end_token_ids[0] if len(end_token_ids) == 1 else list(end_token_ids)
    return values


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
