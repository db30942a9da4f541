"""The pieces in which a text comes."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.engine.text.answer_text import AnswerText
from runtime.tokenization.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool = True) -> list[str]:
    """What each token makes certain of the text, and what its end does."""
    text = AnswerText(tokenizer, skip_special_tokens=skip_special_tokens)
    found = []
    for token_id in ids:
        text.push(token_id)
        found.append(text.take())
    text.finish()
    return [*found, text.take()]
