"""Checks of what `generate` is asked for, and prompts brought to token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from graphs.contract import ModelConfig
from graphs.shown import shown
from runtime.numbers import is_iterable, read_whole, whole_number
from runtime.tokenization.tokenizer import Tokenizer

StopTokenIds = Literal["auto"] | Iterable[int] | None


def check_length(length: object, name: str, config: ModelConfig) -> int:
    """A number of tokens that a row of the model may have.

    Raises:
        ValueError: if it is no whole number, less than 1, or more than the model's positions.
    """
    number = whole_number(name, length)
    positions = config.max_sequence_length
    if number > positions:
        raise ValueError(f"{name} is {shown(number)}, more than the model's {positions} positions")
    return number


def encode_prompts(
    texts: Sequence[str],
    tokenizer: Tokenizer | None,
    limit: int,
    config: ModelConfig,
    check: Callable[[], object] | None = None,
) -> list[tuple[int, ...]]:
    """Token ids of texts, each with the start token before it where the tokenizer has one.

    Args:
        texts: the prompts; none of them is encoded if one is too long by its bytes alone.
        tokenizer: turns text into tokens.
        limit: most tokens of a prompt.
        config: sizes of the model.
        check: called every now and then; what it raises ends the work.

    Raises:
        ValueError: if there is no tokenizer, or a prompt has no token or more than `limit`.
    """
    if tokenizer is None:
        raise ValueError(
            "text needs a tokenizer and this model has none; give a dictionary of "
            "'token_ids' and 'padding_mask'"
        )
    for text in texts:
        try:
            tokenizer.check_size(text, limit)
        except ValueError as error:
            remedy = _shorter(limit + 1, limit, config)
            raise ValueError(f"a prompt has {error} (max_length={limit}); {remedy}") from None
    start = () if tokenizer.start_token_id is None else (tokenizer.start_token_id,)
    prompts = [(*start, *ids) for ids in tokenizer.encode_batch(texts, check)]
    if not all(prompts):
        raise ValueError(
            f"prompt {prompts.index(())} has no token, and this tokenizer has no start token to "
            "generate from: give it text"
        )
    longest = max(prompts, key=len)
    if len(longest) > limit:
        raise ValueError(
            f"a prompt has {len(longest)} tokens{' with the start token' if start else ''}, more "
            f"than max_length={limit}; {_shorter(len(longest), limit, config)}"
        )
    return prompts


def _shorter(tokens: int, limit: int, config: ModelConfig) -> str:
    """What to do about a prompt of too many tokens."""
    positions = config.max_sequence_length
    if tokens < positions:
        return f"raise max_length (the model has {positions} positions) or shorten the prompt"
    return f"shorten the prompt to below the model's {positions} positions"


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
    stop_token_ids: StopTokenIds, config: ModelConfig
) -> frozenset[int] | Literal["auto"]:
    """The tokens that end a row, or `"auto"`; an iterator is read once, here.

    Raises:
        ValueError: if they are no token ids.
    """
    if stop_token_ids is None:
        return frozenset()
    if isinstance(stop_token_ids, str) and stop_token_ids == "auto":
        return "auto"
    if isinstance(stop_token_ids, str) or not is_iterable(stop_token_ids):
        raise ValueError(
            f"stop_token_ids must be 'auto', None or token ids, got {shown(stop_token_ids)}"
        )
    stops: set[int] = set()
    size = config.vocabulary_size
    for value in stop_token_ids:
        token = read_whole(value)
        if token is None:
            raise ValueError(f"stop_token_ids must be 'auto', None or token ids, got {shown(value)}")
        if not 0 <= token < size:
            raise ValueError(f"stop_token_ids must be ids from 0 to {size - 1}, got {shown(token)}")
        stops.add(token)
    return frozenset(stops)


def default_stop_ids(
    end_token_ids: Sequence[int] | None, tokenizer: Tokenizer | None
) -> frozenset[int]:
    """What `stop_token_ids="auto"` means: the model's own ends, or else the tokenizer's end token.

    Raises:
        ValueError: if there is neither.
    """
    if end_token_ids is not None:
        return frozenset(end_token_ids)
    if tokenizer is None:
        raise ValueError(
            "stop_token_ids='auto' takes the tokenizer's end token, and this model has no "
            "tokenizer: give stop_token_ids=None to generate until max_length, or a tuple "
            "of the token ids to stop at"
        )
    return frozenset({tokenizer.end_token_id})
