"""Log-probabilities of a sequence's tokens, as results give them."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.engine.sequence import LogProbabilities
from runtime.engine.sequence import Sequence as Row
from runtime.engine.text.answer_text import AnswerText
from runtime.engine.text.token_text import token_text
from runtime.results import TokenLogProbability
from runtime.tokenization.tokenizer import Tokenizer

Found = tuple[TokenLogProbability, ...]


def log_probabilities(
    row: Row, tokenizer: Tokenizer | None, text: AnswerText | None, strip_prompt: bool
) -> tuple[Found | None, tuple[TokenLogProbability | None, ...] | None]:
    """Those of the new tokens, and those of the prompt, the first of which has none.

    Args:
        row: the sequence.
        tokenizer: of its tokens, `None` if there is none.
        text: what was written; its offsets are given.
        strip_prompt: whether the text begins after the prompt.

    Returns:
        `None` for what was not asked for.
    """
    prompt = len(row.request.prompt)
    before: Sequence[int | None] = [None] * prompt
    after: Sequence[int | None] = [None] * len(row.token_ids)
    if text is not None:
        offsets = text.offsets
        if not strip_prompt:
            before, offsets = offsets[:prompt], offsets[prompt:]
        after = offsets
    new = old = None
    if row.request.logprobs is not None:
        pairs = zip(row.log_probabilities, after, strict=True)
        new = tuple(_shown(found, offset, tokenizer) for found, offset in pairs)
    if row.request.prompt_logprobs is not None:
        pairs = zip(row.prompt_log_probabilities, before[1:], strict=False)
        old = (None, *(_shown(found, offset, tokenizer) for found, offset in pairs))
    return new, old


def _shown(
    found: LogProbabilities, offset: int | None, tokenizer: Tokenizer | None
) -> TokenLogProbability:
    best = tuple(_token(token_id, value, tokenizer) for token_id, value in found.best)
    return _token(found.token_id, found.log_probability, tokenizer, offset, best)


def _token(
    token_id: int,
    value: float,
    tokenizer: Tokenizer | None,
    offset: int | None = None,
    best: Found = (),
) -> TokenLogProbability:
    if tokenizer is None:
        return TokenLogProbability(token_id, value, best=best)
    text, data = token_text(tokenizer, token_id)
    return TokenLogProbability(token_id, value, text, tuple(data), offset, best)
