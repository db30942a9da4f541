"""Takes from the logits of a request all tokens that its grammar does not allow next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.processor import TokenIds
from runtime.errors import StructuredOutputError
from runtime.structured.grammar import Grammar, error_text

MAX_MATCHERS = 64  # that a request keeps: those of its beams in two steps

# float32 [256, 8]: for each byte of a mask, what its eight logits are at most.
_BITS = np.arange(256)[:, None] >> np.arange(8) & 1
_MOST = np.where(_BITS, np.inf, -np.inf).astype(np.float32)


class GrammarConstraint:
    """A logits processor that keeps one request's texts to a grammar.

    Matchers are kept by the new tokens that they have seen. The next step of a text takes one token
    further; another continuation of the same beginning, as beams and drafted tokens have it, is a copy
    taken back to the beginning. What was not kept is read from the start again.

    Stop tokens are allowed where the text is complete and nowhere else.

    Args:
        grammar: what texts are to be.
        stop_token_ids: tokens that end a text; may be none, see `is_complete`.
    """

    def __init__(self, grammar: Grammar, stop_token_ids: Collection[int] = ()) -> None:
        vocabulary = grammar.vocabulary
        self._grammar = grammar
        self._kind = grammar.description.kind
        self._stops = frozenset(stop_token_ids)
        bits = np.zeros(vocabulary.words * 32, np.uint8)
        bits[sorted(self._stops)] = 1
        self._stop_mask: NDArray[np.uint32] = np.packbits(bits, bitorder="little").view("<u4")
        self._text_mask = vocabulary.allowed & ~self._stop_mask
        self._bytes = -(-vocabulary.size // 8)
        self._most = np.empty((self._bytes, 8), np.float32)
        self._start = grammar.start
        self._kept: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        # Where a matcher went that had seen these tokens.
        self._moved: OrderedDict[tuple[int, ...], tuple[int, ...]] = OrderedDict()

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Sets the logits of all tokens that are not allowed next to -inf.

        Args:
            token_ids: of prompt and text so far.
            prompt_length: tokens of the prompt, which the grammar does not concern.
            logits: float32 [vocabulary], changed in place.

        Raises:
            StructuredOutputError: if the text so far is not the beginning of an allowed one, no token
                can follow it, or following it takes more than llguidance's limits.
        """
        mask = self._mask(tuple(token_ids[prompt_length:]))
        np.take(_MOST, mask.view(np.uint8)[: self._bytes], axis=0, out=self._most, mode="clip")
        np.minimum(logits, self._most.ravel()[: len(logits)], out=logits)

    def accepting(self, token_ids: Sequence[int]) -> bool:
        """Whether these new tokens, with or without a stop token at their end, are a whole text.

        Raises:
            StructuredOutputError: as `process` does.
        """
        return bool(self._matcher(self._without_stop(tuple(token_ids))).is_accepting())

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        """Whether nothing can follow these new tokens but a stop token: the text has ended.

        Where there is no stop token, a step after that raises.
        """
        new = self._without_stop(tuple(token_ids))
        if len(new) < len(token_ids):
            return True
        matcher = self._matcher(new)
        return bool(matcher.is_stopped() and matcher.is_accepting())

    def _without_stop(self, new: tuple[int, ...]) -> tuple[int, ...]:
        return new[:-1] if new and new[-1] in self._stops else new

    def _mask(self, new: tuple[int, ...]) -> NDArray[np.uint32]:
        """The bits of the tokens that may follow `new`, uint32 [words]."""
        if new and new[-1] in self._stops:
            return self._stop_mask
        matcher = self._matcher(new)
        mask = self._text_mask & _found(matcher)
        if matcher.is_error():
            matcher = self._read_again(new)
            mask = self._text_mask & _found(matcher)
            self._check(matcher, new)
        if matcher.is_accepting():
            mask |= self._stop_mask
        if not mask.any():
            raise StructuredOutputError(
                f"the {self._kind} leaves no token to follow {len(new)} new tokens: "
                + (
                    "the text is complete, and there is no token to stop it"
                    if matcher.is_accepting()
                    else "those that could are no part of texts, or stop them"
                )
            )
        return mask

    def _matcher(self, new: tuple[int, ...]) -> Any:
        """The matcher that has seen `new`."""
        matcher = self._kept.get(new) or self._follow(new)
        if matcher.is_error():
            return self._read_again(new)
        return self._keep(new, matcher)

    def _follow(self, new: tuple[int, ...]) -> Any:
        """A matcher that is taken one token further, or one that reads all of `new`."""
        before = new[:-1]
        if new and (matcher := self._kept.pop(before, None)) is not None:
            self._moved[before] = new
            self._moved.move_to_end(before)
            if len(self._moved) > MAX_MATCHERS:
                self._moved.popitem(last=False)
        elif (matcher := self._taken_back(before)) is None:
            return self._read(new)
        matcher.consume_tokens(list(new[len(before) :]))
        return matcher

    def _taken_back(self, before: tuple[int, ...]) -> Any | None:
        """A copy of a matcher that has seen `before` and more, without the rest; `None` if none has."""
        further = self._moved.get(before)
        while further is not None and further not in self._kept:
            further = self._moved.get(further)
        if further is None:
            return None
        matcher = self._kept[further].deep_copy()
        return matcher if matcher.rollback(len(further) - len(before)) else None

    def _read(self, new: tuple[int, ...]) -> Any:
        matcher = self._start.deep_copy()
        matcher.consume_tokens(list(new))
        return matcher

    def _read_again(self, new: tuple[int, ...]) -> Any:
        """A matcher with a new lexer: the one before may be full of the states of other texts."""
        self._kept.clear()
        self._moved.clear()
        self._start = self._grammar.renewed(self._start)
        matcher = self._read(new)
        self._check(matcher, new)
        return self._keep(new, matcher)

    def _keep(self, new: tuple[int, ...], matcher: Any) -> Any:
        self._kept[new] = matcher
        self._kept.move_to_end(new)
        if len(self._kept) > MAX_MATCHERS:
            self._kept.popitem(last=False)
        return matcher

    def _check(self, matcher: Any, new: tuple[int, ...]) -> None:
        if matcher.is_error():
            raise StructuredOutputError(
                f"the {self._kind} cannot be followed through {len(new)} new tokens: "
                f"{error_text(matcher)}"
            )


def _found(matcher: Any) -> NDArray[np.uint32]:
    """The bits of the tokens that a matcher allows, those of the end of a text if it has stopped."""
    return np.frombuffer(matcher.compute_bitmask(), "<u4")
