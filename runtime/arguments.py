"""Checks of what `generate` is asked for, and prompts brought to token ids."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal

import numpy as np

from graphs.contract import ModelConfig
from runtime.tokenization.tokenizer import Tokenizer

StopTokenIds = Literal["auto"] | Sequence[int] | None


def check_length(length: object, name: str, config: ModelConfig) -> int:
    """A number of tokens that a row of the model may have.

    Raises:
        ValueError: if it is no whole number, less than 1, or more than the model's positions.
    """
    if not isinstance(length, (int, np.integer)) or isinstance(length, bool) or length < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {length!r}")
    positions = config.max_sequence_length
    if length > positions:
        raise ValueError(f"{name} is {length}, more than the model's {positions} positions")
    return int(length)


def encode_prompts(
    texts: Sequence[str], tokenizer: Tokenizer | None, limit: int, config: ModelConfig
) -> list[tuple[int, ...]]:
    """Token ids of texts, each with the start token before it where the tokenizer has one.

    Raises:
        ValueError: if there is no tokenizer, or a prompt has no token or more than `limit`.
    """
    if tokenizer is None:
        raise ValueError(
            "text needs a tokenizer and this model has none; give a dictionary of "
            "'token_ids' and 'padding_mask'"
        )
    start = () if tokenizer.start_token_id is None else (tokenizer.start_token_id,)
    prompts = [(*start, *ids) for ids in tokenizer.encode_batch(texts)]
    if not all(prompts):
        raise ValueError(
            f"prompt {prompts.index(())} has no token, and this tokenizer has no start token to "
            "generate from: give it text"
        )
    longest = max(prompts, key=len)
    if len(longest) > limit:
        positions = config.max_sequence_length
        remedy = (
            f"raise max_length (the model has {positions} positions) or shorten the prompt"
            if len(longest) < positions
            else f"shorten the prompt to below the model's {positions} positions"
        )
        raise ValueError(
            f"a prompt has {len(longest)} tokens{' with the start token' if start else ''}, more "
            f"than max_length={limit}; {remedy}"
        )
    return prompts


def check_prompts(prompts: Sequence[tuple[int, ...]], config: ModelConfig) -> None:
    """Raises `ValueError` if a token id of a prompt is not in the model's vocabulary."""
    size = config.vocabulary_size
    for i, prompt in enumerate(prompts):
        bad = next((token for token in prompt if not 0 <= token < size), None)
        if bad is not None:
            raise ValueError(
                f"token id {bad} of prompt {i} is not in the model's vocabulary (ids 0 to {size - 1})"
            )


def read_stop_ids(
    stop_token_ids: StopTokenIds,
    tokenizer: Tokenizer | None,
    config: ModelConfig,
    end_token_ids: Sequence[int] | None = None,
) -> frozenset[int]:
    """The tokens that end a row, `"auto"` being the model's, or else the tokenizer's end token.

    Raises:
        ValueError: if they are no token ids, or `"auto"` and there is neither of these.
    """
    if stop_token_ids is None:
        return frozenset()
    if isinstance(stop_token_ids, str):
        return _named_stop_ids(stop_token_ids, tokenizer, end_token_ids)
    try:
        stops = frozenset(operator.index(token) for token in stop_token_ids)
    except TypeError:
        raise ValueError(
            f"stop_token_ids must be 'auto', None or token ids, got {stop_token_ids!r}"
        ) from None
    size = config.vocabulary_size
    if any(not 0 <= token < size for token in stops):
        raise ValueError(f"stop_token_ids must be ids from 0 to {size - 1}, got {stop_token_ids}")
    return stops


def _named_stop_ids(
    name: str, tokenizer: Tokenizer | None, end_token_ids: Sequence[int] | None
) -> frozenset[int]:
    if name != "auto":
        raise ValueError(f"stop_token_ids must be 'auto', None or token ids, got {name!r}")
    if end_token_ids is not None:
        return frozenset(end_token_ids)
    if tokenizer is None:
        raise ValueError(
            "stop_token_ids='auto' takes the tokenizer's end token, and this model has no "
            "tokenizer: give stop_token_ids=None to generate until max_length, or a tuple "
            "of the token ids to stop at"
        )
    return frozenset({tokenizer.end_token_id})
