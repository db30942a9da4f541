"""A request on its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.engine.request import Request
from runtime.results import FinishReason


@dataclass(frozen=True)
class Hypothesis:
    """One of the continuations that a search found.

    Attributes:
        token_ids: the new tokens.
        score: sum of their log-probabilities.
        finish_reason: why it ended.
    """

    token_ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True)
class LogProbabilities:
    """What the model finds of a token in its place; natural logarithms.

    Attributes:
        token_id: the token that stands there.
        log_probability: its own.
        best: the most probable tokens there, best first, and theirs.
    """

    token_id: int
    log_probability: float
    best: tuple[tuple[int, float], ...]


class Sequence:
    """One prompt, its new tokens, and the rows of the cache that it has.

    A search keeps what it knows of a sequence in `state`, and says with `feed` and `copies` what the
    next step is to do with its rows.

    Args:
        request: what to do.
        index: its place in the call.

    Attributes:
        token_ids: new tokens that are certain.
        text: of the new tokens, where stop strings are looked for in it.
        finish_reason: why it ended, `None` while it goes on.
        hypotheses: all beams, best first, after a search that was asked for them.
        log_probabilities: of each new token, where they are asked for.
        prompt_log_probabilities: of the prompt's from its second token on, where they are asked for.
        rows: of the cache, none while it waits; the first is the one that reads the prompt.
        feed: the token that each row takes in the next step, `None` for a row that takes none; empty
            until the prompt has been read.
        capacity: tokens that each of its rows has room for.
        copies: before that, which of its rows are copied to which, and from which token on they
            differ: (source, target, first), counted within `rows`.
        cached_prompt_tokens: tokens of the prompt that were in the cache when it came.
        read_seconds: time of the runs that read its prompt.
        decode_seconds: time from then on.
    """

    __slots__ = (
        "cached_prompt_tokens",
        "capacity",
        "copies",
        "decode_seconds",
        "feed",
        "finish_reason",
        "hypotheses",
        "index",
        "log_probabilities",
        "prompt_log_probabilities",
        "read_seconds",
        "request",
        "rows",
        "state",
        "text",
        "token_ids",
    )

    def __init__(self, request: Request, index: int = 0) -> None:
        self.request = request
        self.index = index
        self.token_ids: list[int] = []
        # A prompt whose tokens are scored is read, though it may leave no room for an answer.
        scored = request.prompt_logprobs is not None
        self.finish_reason: FinishReason | None = None if scored else request.finish_reason(())
        self.text = None if request.text_ends is None else request.text_ends.begin()
        self.hypotheses: tuple[Hypothesis, ...] | None = None
        self.log_probabilities: list[LogProbabilities] = []
        self.prompt_log_probabilities: list[LogProbabilities] = []
        self.rows: list[int] = []
        self.capacity = 0
        self.feed: list[int | None] = []
        self.copies: list[tuple[int, int, int]] = []
        self.state: Any = None
        self.cached_prompt_tokens = 0
        self.read_seconds = 0.0
        self.decode_seconds = 0.0

    @property
    def fed_rows(self) -> list[int]:
        """The rows that took tokens in the last run."""
        if not self.feed:
            return self.rows[:1]
        return [row for row, token in zip(self.rows, self.feed, strict=True) if token is not None]

    def push(self, token_id: int) -> None:
        """Takes a token that is certain."""
        self.token_ids.append(token_id)
        self.finish_reason = self.request.finish_reason(self.token_ids)
        if self.text is not None:
            self.text.push(token_id)
            if self.text.match is not None:
                self.finish_reason = "stop"
