"""`adapter_config.json` of `peft` (https://github.com/huggingface/peft): what decides the weights.

A setting that would make other weights than LoRA's own rules do is refused by its name; so is one that
is not known here, unless it is off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.adapters.name_patterns import fullmatch, is_plain, matches_end
from exporter.errors import PresetError
from exporter.presets.json_file import read_json
from graphs.shown import listed

CONFIG_FILE = "adapter_config.json"
ALL_LINEAR = "all-linear"
DEFAULT_TARGETS = ("q_proj", "v_proj")  # peft's of OPT
HEAD = "lm_head"
# What says nothing of the weights, or only of how training began.
IGNORED = {
    *("peft_type", "auto_mapping", "peft_version", "inference_mode", "runtime_config", "lora_dropout"),
    *("fan_in_fan_out", "bias", "megatron_core", "qalora_group_size", "velora_config", "r"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config", "rank_pattern"),
}
READ = (
    *("base_model_name_or_path", "revision", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("ensure_weight_tying", "trainable_token_indices", "task_type", "init_lora_weights", "lora_bias"),
)
# Beginnings that leave the base's weights as they are; others take from them what the pairs begin with.
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
MAX_NAMES = 4096  # every module of the largest OPT
MAX_PATTERNS = 16  # that are more than names
MAX_TEXT = 500  # characters
LANGUAGE_TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")


@dataclass(frozen=True)
class PeftConfig:
    """The settings of a LoRA adapter that `peft` wrote.

    Attributes:
        base: name of the base model, a repository or a folder; `None` if it does not say.
        revision: of the base.
        alpha: of pairs that `alpha_patterns` does not match.
        alpha_patterns: alpha by pattern of the module's name, the first match counts.
        rank_scaled: whether the scale is alpha / √rank and not alpha / rank.
        dora: whether each output's weights have a length of their own.
        targets: names of adapted modules or their ends, or a pattern of the whole name.
        excluded: the same of modules that are left out.
        layers: numbers of the adapted layers; `None` for all.
        layer_patterns: what the list of layers may be called; empty for anything.
        saved: modules that were trained whole.
        tied: whether what is done to the token table is done to the head, too.
        tokens: rows of the token table that were trained one by one.
    """

    base: str | None
    revision: str | None
    alpha: float
    alpha_patterns: Mapping[str, float]
    rank_scaled: bool
    dora: bool
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...] | None
    layer_patterns: tuple[str, ...]
    saved: tuple[str, ...]
    tied: bool
    tokens: tuple[int, ...]

    def scale(self, module: str, rank: int) -> float:
        """What the product of a module's pair is multiplied by."""
        found = (alpha for p, alpha in self.alpha_patterns.items() if matches_end(p, module))
        return next(found, self.alpha) / (math.sqrt(rank) if self.rank_scaled else rank)

    def is_saved(self, module: str) -> bool:
        """Whether a module was trained whole."""
        return any(module.endswith(name) for name in self.saved)

    def is_target(self, module: str) -> bool:
        """Whether a linear or embedding module has a pair."""
        if _is_named(self.excluded, module) or self.is_saved(module):
            return False
        if isinstance(self.targets, str) and self.targets.lower() == ALL_LINEAR:
            return module != HEAD and ".embed_" not in module
        if not _is_named(self.targets, module):
            return False
        if self.layers is None:
            return True
        layer = re.match(r"(.+?)\.([0-9]+)\.", module)
        if layer is None or int(layer[2]) not in self.layers:
            return False
        return not self.layer_patterns or any(matches_end(p, layer[1]) for p in self.layer_patterns)


def _is_named(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return fullmatch(names, module)
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_peft_config(folder: Path) -> PeftConfig:
    """Reads a folder's `adapter_config.json`.

    Raises:
        PresetError: naming the setting that is not valid or not read.
    """
    path = folder / CONFIG_FILE
    values = read_json(path)
    try:
        return _parse(values)
    except (TypeError, ValueError) as error:
        raise PresetError(f"{path}: {error}") from None


def base_name(folder: Path) -> tuple[str | None, str | None]:
    """The base model and its revision that a folder's `adapter_config.json` names."""
    path = folder / CONFIG_FILE
    values = read_json(path)
    try:
        return _text(values, "base_model_name_or_path"), _text(values, "revision")
    except ValueError as error:
        raise PresetError(f"{path}: {error}") from None


def _parse(values: dict[str, Any]) -> PeftConfig:
    kind = values.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"an adapter of peft's kind {kind!r:.100} is not read; LORA is")
    if values.get("task_type") not in LANGUAGE_TASKS:
        raise ValueError(
            f"task_type is {values['task_type']!r:.100}, no language model's; CAUSAL_LM is"
        )
    beginning = values.get("init_lora_weights", True)
    if not any(beginning is known or beginning == known for known in PLAIN_BEGINNINGS):
        raise ValueError(
            f"init_lora_weights is {beginning!r:.100}, which changes the base's weights; save the "
            "adapter with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    targets = _names(values, "target_modules", DEFAULT_TARGETS)
    tokens = values.get("trainable_token_indices")
    if isinstance(tokens, dict) and len(tokens) == 1:
        ((name, tokens),) = tokens.items()
        if not "model.decoder.embed_tokens".endswith(name):
            raise ValueError(
                f"trainable_token_indices are of {name!r:.100}, and only embed_tokens' are read"
            )
    layers = values.get("layers_to_transform")
    config = PeftConfig(
        base=_text(values, "base_model_name_or_path"),
        revision=_text(values, "revision"),
        alpha=_number("lora_alpha", values.get("lora_alpha", 8)),
        alpha_patterns={
            p: _number(f"alpha_pattern[{p!r:.100}]", a) for p, a in _mapping(values, "alpha_pattern")
        },
        rank_scaled=_flag(values, "use_rslora"),
        dora=_flag(values, "use_dora"),
        targets=targets,
        excluded=_names(values, "exclude_modules", ()),
        layers=_indices("layers_to_transform", [layers] if type(layers) is int else layers) or None,
        layer_patterns=_as_tuple(_names(values, "layers_pattern", ())),
        saved=_as_tuple(_names(values, "modules_to_save", ())),
        tied=_flag(values, "ensure_weight_tying"),
        tokens=_indices("trainable_token_indices", tokens),
    )
    patterns = [p for p in (*config.alpha_patterns, *config.layer_patterns) if not is_plain(p)]
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"{len(patterns)} patterns are more than names, of at most {MAX_PATTERNS}")
    _flag(values, "lora_bias")
    known = {*IGNORED, *READ}
    unread = sorted(name for name, value in values.items() if name not in known and value)
    if unread:
        raise ValueError(
            f"the settings {listed(unread)} are on, which are not read: they may change the weights"
        )
    return config


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    fits = isinstance(value, str) and value.isprintable() and len(value) <= MAX_TEXT
    if value is not None and not fits:
        raise ValueError(f"{name} must be text, got {value!r:.100}")
    return value or None


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    if not isinstance(value, bool) and value is not None:
        raise ValueError(f"{name} must be true or false, got {value!r:.100}")
    return bool(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e9:
        raise ValueError(f"{name} must be a number up to 1e9, got {value!r:.100}")
    return float(value)


def _mapping(values: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    value = values.get(name) or {}
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        raise ValueError(f"{name} must be an object of at most {MAX_NAMES} names, got {value!r:.100}")
    return list(value.items())


def _names(values: Mapping[str, Any], name: str, default: tuple[str, ...]) -> str | tuple[str, ...]:
    value = values.get(name)
    if value is None:
        return default
    if isinstance(value, str):
        return value
    if (
        not isinstance(value, list)
        or len(value) > MAX_NAMES
        or not all(isinstance(n, str) for n in value)
    ):
        raise ValueError(
            f"{name} must be text or a list of at most {MAX_NAMES} names, got {value!r:.100}"
        )
    return tuple(value)


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _indices(name: str, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value):
        raise ValueError(f"{name} must be whole numbers, got {value!r:.100}")
    if len(set(value)) != len(value):
        raise ValueError(f"{name} gives a number twice")
    return tuple(value)
