"""How `generation_config.json` has texts written, beside what ends them: its sampler and its options.

Names, meanings and the values of what is not given are those of transformers' `GenerationConfig`
(https://huggingface.co/docs/transformers/main_classes/text_generation). Without `do_sample` it ignores
what says how tokens are drawn, and so does this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import PresetError
from graphs.manifest import OPTION_NAMES
from graphs.shown import cut, shown
from runtime.bundle import MAX_ROWS
from runtime.generation_options import GenerationOptions
from runtime.numbers import read_whole
from runtime.samplers import (
    BeamSampler,
    GreedySampler,
    RandomSampler,
    Sampler,
    TopKSampler,
    TopPSampler,
)

USUAL_TOP_K = 50
MAX_OPTION_IDS = 10_000  # of all options together; a manifest, which holds them, has its limit too

_DRAWING = ("temperature", "top_k", "top_p")
_MORE_DRAWING = ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty")
# These change no text: special ids, which have their own reader or are the tokenizer's, bookkeeping,
# what else is given back, and ways to the same tokens.
_WITHOUT_EFFECT = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("_from_model_config", "_commit_hash", "transformers_version", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
    *("compile_config", "disable_compile", "prefill_chunk_size", "continuous_batching_config"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "use_mtp"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "assistant_ensemble_weight", "speculation_type"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size"),
}
# Values with which what a bundle does not carry asks for nothing.
_NEUTRAL = {
    "min_length": 0,
    "early_stopping": False,
    "length_penalty": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "num_return_sequences": 1,
    "min_p": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
    "guidance_scale": 1,
    "penalty_alpha": 0,
}


@dataclass(frozen=True)
class WritingDefaults:
    """How a model's texts are written unless a caller says otherwise.

    Attributes:
        sampler: chooses the tokens; `None` for the usual one.
        options: `GenerationOptions` by name, as plain JSON values.
        notices: what a user should know of them, a sentence each.
    """

    sampler: Sampler | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def describe(self) -> str | None:
        """One line of the sampler and the options; `None` if there are none."""
        told = [] if self.sampler is None else [_call(self.sampler)]
        told += [f"{name}={shown(value)}" for name, value in self.options.items()]
        return ", ".join(told) or None


def read_writing_defaults(
    values: Mapping[str, Any], path: Path, vocabulary_size: int
) -> WritingDefaults:
    """What a `generation_config.json` asks for.

    Args:
        values: its content; `null` is as good as nothing.
        path: where it is, for errors.
        vocabulary_size: of the model, which has no tokens from this id on.

    Raises:
        PresetError: if a value that counts is of another kind or out of range.
    """
    given = {name: value for name, value in values.items() if value is not None}
    try:
        draws = _flag(given, "do_sample")
        beams = _beams(given, vocabulary_size)
        sampler = _sampler(given, draws, beams, vocabulary_size)
        told: list[str] = []
        options = _options(given, vocabulary_size, path.name, told)
    except ValueError as error:
        raise PresetError(f"{path}: {cut(error)}") from None
    if isinstance(sampler, TopPSampler) and sampler.k is not None:
        told.append(
            f"{path.name}: top_p {sampler.p:g} is taken of the whole distribution, by transformers of "
            f"what top_k {sampler.k} leaves: a few more tokens may be drawn"
        )
    if left := _left(given, draws, beams):
        told.append(
            f"{path.name} asks for {shown(left)[1:-1]}, which a bundle does not carry: left out"
        )
    return WritingDefaults(sampler, options, tuple(told))


def carried_options(options: GenerationOptions | None, vocabulary_size: int) -> dict[str, Any]:
    """Options as plain JSON values, as bundles and `generation_config.json` hold them.

    Args:
        options: a model's own; `None` for none.
        vocabulary_size: of the model.

    Raises:
        ValueError: if they are more than those files carry, or do not fit the model.
    """
    if options is None:
        return {}
    values = options.to_dict()
    if surplus := [name for name in values if name not in OPTION_NAMES]:
        raise ValueError(
            f"{', '.join(surplus)} can be asked for in a call only; a model's files carry "
            f"{', '.join(OPTION_NAMES)}"
        )
    options.check_vocabulary(vocabulary_size)
    if (count := sum(map(len, options.token_ids().values()))) > MAX_OPTION_IDS:
        raise ValueError(f"options name {count} token ids, and a bundle carries up to {MAX_OPTION_IDS}")
    return values


def _call(sampler: Sampler) -> str:
    values = {name: value for name, value in sampler.get_config().items() if value is not None}
    return f"{type(sampler).__name__}({', '.join(f'{name}={value}' for name, value in values.items())})"


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {shown(value)}")
    return value


def _beams(given: Mapping[str, Any], vocabulary_size: int) -> int:
    most = min(MAX_ROWS, vocabulary_size)
    value = given.get("num_beams", 1)
    beams = read_whole(value)
    if beams is None or not 1 <= beams <= most:
        raise ValueError(f"num_beams must be a whole number from 1 to {most}, got {shown(value)}")
    return beams


def _sampler(given: Mapping[str, Any], draws: bool, beams: int, vocabulary_size: int) -> Sampler | None:
    if not draws:
        return BeamSampler(num_beams=beams) if beams > 1 else None
    asked = GenerationOptions.from_dict(
        {"top_k": USUAL_TOP_K, **{name: given[name] for name in _DRAWING if name in given}}
    )
    temperature = 1.0 if asked.temperature is None else asked.temperature
    if not temperature:
        return GreedySampler()
    k = None if asked.top_k is None or asked.top_k >= vocabulary_size else asked.top_k
    if asked.top_p is not None and asked.top_p < 1:
        return TopPSampler(p=asked.top_p, k=k, temperature=temperature)
    return RandomSampler(temperature=temperature) if k is None else TopKSampler(k, None, temperature)


def _options(
    given: Mapping[str, Any], vocabulary_size: int, file_name: str, told: list[str]
) -> dict[str, Any]:
    """The options, without those of their ids that the model does not have."""
    found = {}
    for name in OPTION_NAMES:
        value = given.get(name)
        if isinstance(value, list):
            kept = [
                item
                for item in value
                if all(type(i) is not int or 0 <= i < vocabulary_size for i in _ids(name, item))
            ]
            if len(kept) < len(value):
                told.append(
                    f"{file_name}: {len(value) - len(kept)} of {name} are not of the model's "
                    f"vocabulary (ids 0 to {vocabulary_size - 1}): left out"
                )
            value = kept
        found[name] = value
    return carried_options(GenerationOptions.from_dict(found), vocabulary_size)


def _ids(name: str, item: Any) -> list[Any]:
    """The token ids of an item of an option's list: one, a sequence, or a sequence with its bias."""
    if name == "sequence_bias" and isinstance(item, list):
        item = item[0] if item else []
    return item if isinstance(item, list) else [item]


def _left(given: Mapping[str, Any], draws: bool, beams: int) -> dict[str, Any]:
    """What is asked for and not carried, and what transformers does unasked and a bundle does not."""
    searches = beams > 1
    ignored = {"do_sample", "num_beams", *_DRAWING, *OPTION_NAMES, *_WITHOUT_EFFECT}
    ignored |= set() if draws else set(_MORE_DRAWING)
    ignored |= set() if searches and not draws else set(_OF_BEAMS)
    asked = {"length_penalty": 1.0, **given}
    left = {name: value for name, value in asked.items() if name not in ignored}
    left = {name: value for name, value in left.items() if value != _NEUTRAL.get(name)}
    return {"num_beams": beams, **left} if searches and draws else left
