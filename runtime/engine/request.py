"""What to do with one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.results import FinishReason


@dataclass(frozen=True)
class Request:
    """One prompt, and when its text ends.

    Attributes:
        prompt: token ids, at least one.
        max_length: tokens of prompt and answer together.
        stop_token_ids: tokens that end the text when drawn.
    """

    prompt: tuple[int, ...]
    max_length: int
    stop_token_ids: frozenset[int] = frozenset()

    @property
    def room(self) -> int:
        """Tokens that a row of the cache must have room for."""
        return max(len(self.prompt), self.max_length)

    def finish_reason(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Why a text with these new tokens has ended, `None` if it goes on."""
        if token_ids and token_ids[-1] in self.stop_token_ids:
            return "stop"
        return "length" if len(self.prompt) + len(token_ids) >= self.max_length else None
