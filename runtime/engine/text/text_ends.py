"""How a request's text is followed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.engine.text.answer_text import AnswerText
from runtime.engine.text.stop_strings import StopStrings
from runtime.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextEnds:
    """What ends a text beside its tokens; for any number of sequences.

    Attributes:
        tokenizer: of their tokens.
        stops: strings that end it.
        min_tokens: of the answer, within which none does.
    """

    tokenizer: Tokenizer
    stops: StopStrings
    min_tokens: int = 0

    def begin(self, prompt: Iterable[int] = ()) -> AnswerText:
        """The text of an answer that has no token yet, after a prompt that is shown with it."""
        return AnswerText(self.tokenizer, self.stops, prompt, min_tokens=self.min_tokens)
