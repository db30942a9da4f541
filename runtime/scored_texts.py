"""What `Generator.score` accepts, brought to token ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphs.contract import ModelConfig
from graphs.shown import shown
from runtime.arguments import check_prompts, encode_prompts
from runtime.call_limits import CallCut, CallLimits
from runtime.engine.call import Call
from runtime.engine.request import Request
from runtime.engine.search.scoring import ScoringSearch
from runtime.inputs import read_batch
from runtime.numbers import read_whole
from runtime.results import Score
from runtime.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class ScoredText:
    """Token ids of what is scored and of what stands before it; at least one of each."""

    context_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ScoredTexts:
    """Some of them; `single` if one was given without a list around it."""

    rows: list[ScoredText]
    single: bool

    def call(self, limits: CallLimits) -> Call:
        """The call of the engine that scores them: it reads all but the last token of each."""
        search = ScoringSearch([text.token_ids for text in self.rows])
        read = [(*text.context_token_ids, *text.token_ids[:-1]) for text in self.rows]
        return Call([Request(row, len(row) + 1) for row in read], search, limits)

    def results(self, call: Call) -> Score | list[Score]:
        """What a complete call found."""
        found = [
            Score(
                text.context_token_ids,
                text.token_ids,
                tuple(sequence.state.log_probabilities),
                tuple(sequence.state.greedy),
            )
            for text, sequence in zip(self.rows, call.sequences, strict=True)
        ]
        return found[0] if self.single else found


def read_scored(
    inputs: Any,
    context: Any,
    tokenizer: Tokenizer | None,
    config: ModelConfig,
    limits: CallLimits,
) -> ScoredTexts:
    """Brings texts and what stands before them to token ids.

    Args:
        inputs: a string, token ids, or a list of either.
        context: of the same kind and number, or `None`.
        tokenizer: turns text into tokens.
        config: sizes of the model.
        limits: when the work ends.

    Raises:
        ValueError: see `runtime.Generator.score`.
        GenerationTimeoutError, GenerationCancelledError: if the limits end it.
    """
    single, rows = _rows(inputs)
    befores: list[Any] = [None] * len(rows)
    if context is not None:
        alone, befores = _rows(context)
        if (alone, len(befores)) != (single, len(rows)):
            raise ValueError(
                f"context must be of the inputs' kind and number, {len(rows)} of them; got "
                f"{shown(context)}"
            )
    try:
        found = [
            _read_text(row, before, tokenizer, config, limits.check)
            if isinstance(row, str)
            else _read_ids(row, before)
            for row, before in zip(rows, befores, strict=True)
        ]
    except CallCut as cut:
        raise limits.error(cut.reason, 0) from None
    check_prompts([(*text.context_token_ids, *text.token_ids) for text in found], config)
    for i, text in enumerate(found):
        count = len(text.context_token_ids) + len(text.token_ids)
        if not text.context_token_ids or not text.token_ids:
            raise ValueError(
                f"text {i} has no token to score after another one: give it a text or, of token ids, "
                "two at least"
            )
        if count > config.max_sequence_length + 1:  # the last token is not read
            raise ValueError(
                f"text {i} has {count} tokens with what stands before it, more than one after the "
                f"model's {config.max_sequence_length} positions; score it in parts"
            )
    return ScoredTexts(found, single)


def _rows(inputs: Any) -> tuple[bool, list[Any]]:
    """Whether it is one text without a list around it, and the texts: strings or lists of ids."""
    if not isinstance(inputs, (str, bytes)) and _are_ids(inputs):
        return True, [inputs]
    if isinstance(inputs, (list, tuple)) and inputs and all(map(_are_ids, inputs)):
        return False, list(inputs)
    batch = read_batch(inputs)
    texts = getattr(batch, "texts", None)
    if texts is None:
        raise ValueError(
            "score() takes a string, a list of strings, or lists of token ids; got a dictionary"
        )
    return batch.single, texts


def _are_ids(value: Any) -> bool:
    """Whether a value is a list or an array of whole numbers."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu"
    return isinstance(value, (list, tuple)) and all(read_whole(item) is not None for item in value)


def _read_ids(row: Any, before: Any) -> ScoredText:
    ids = tuple(int(token) for token in row)
    if before is None:
        return ScoredText(ids[:1], ids[1:])
    if isinstance(before, str):
        raise ValueError("context must be token ids where the inputs are")
    return ScoredText(tuple(int(token) for token in before), ids)


def _read_text(
    text: str,
    before: Any,
    tokenizer: Tokenizer | None,
    config: ModelConfig,
    check: Callable[[], object],
) -> ScoredText:
    if before is not None and not isinstance(before, str):
        raise ValueError("context must be text where the inputs are")
    before = before or ""
    limit = config.max_sequence_length + 1
    (whole,) = encode_prompts([before + text], tokenizer, limit, config, check)
    assert tokenizer is not None
    start = 0 if tokenizer.start_token_id is None else 1
    # Up to the first token that the context alone does not begin with.
    own = tokenizer.encode(before) if before else []
    same = 0
    for one, other in zip(own, whole[start:], strict=False):
        if one != other:
            break
        same += 1
    first = max(1, start + same)  # the first of all has nothing before it
    return ScoredText(whole[:first], whole[first:])
