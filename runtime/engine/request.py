"""What to do with one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.results import FinishReason

if TYPE_CHECKING:  # which a request without options does not wait for
    from runtime.engine.processors.processor import Processor
    from runtime.engine.text.text_ends import TextEnds


@dataclass(frozen=True)
class Request:
    """One prompt, how its tokens are chosen beside the search, and when its text ends.

    Attributes:
        prompt: token ids, at least one.
        max_length: tokens of prompt and answer together.
        stop_token_ids: tokens that end the text when drawn.
        text_ends: what ends the text beside tokens; `None` where nothing does.
        processor: changes the logits before a token is chosen by them.
        is_complete: whether nothing can follow some new tokens; `None` where something always can.
        logprobs: of how many of the best tokens log-probabilities are kept beside the chosen one's;
            `None` keeps none.
        prompt_logprobs: the same for the prompt.
        sample: which of the texts of its prompt it is.
        kept_samples: how many of these are given.
    """

    prompt: tuple[int, ...]
    max_length: int
    stop_token_ids: frozenset[int] = frozenset()
    text_ends: TextEnds | None = None
    processor: Processor | None = None
    is_complete: Callable[[Sequence[int]], bool] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    sample: int = 0
    kept_samples: int = 1

    @property
    def room(self) -> int:
        """Tokens that a row of the cache must have room for."""
        return max(len(self.prompt), self.max_length)

    def process(self, new_token_ids: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Changes the logits [vocabulary] after some new tokens in place, if there is what does."""
        if self.processor is not None:
            token_ids = [*self.prompt, *new_token_ids]
            self.processor.process(token_ids, len(self.prompt), logits)

    def ended(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Why a text with these new tokens has ended, by a stop string too; decodes all of them."""
        if self.text_ends is not None:
            text = self.text_ends.begin()
            for token_id in token_ids:
                text.push(token_id)
            if text.match is not None:
                return "stop"
        return self.finish_reason(token_ids)

    def finish_reason(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Why a text with these new tokens has ended, `None` if it goes on or a stop string ends it."""
        if token_ids and token_ids[-1] in self.stop_token_ids:
            return "stop"
        if token_ids and self.is_complete is not None and self.is_complete(token_ids):
            return "stop"
        return "length" if len(self.prompt) + len(token_ids) >= self.max_length else None
