"""Who waits, who is read next and how much of it: the plan of each step.

Calls are served in the order of their arrival, a call of priority p as if it had come p times
`PRIORITY_SECONDS` later: one that waits long enough is first, whatever comes after it, so none starves.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runtime.engine.call import Call, Entry
from runtime.engine.sequence import Sequence

PRIORITY_SECONDS = 10.0
# Prompt tokens that a step reads while others wait for their next token, and while nobody does.
STEP_TOKENS, READ_TOKENS = 64, 2048
LONG_PAST = 512  # tokens before a part, from which on it takes up to twice as long
SCORED_TOKENS = 192  # in one run, of each of which there are all logits


@dataclass(frozen=True)
class Piece:
    """Parts of prompts that are read in one run, by sequences whose first rows lie side by side.

    Attributes:
        sequences: with the call of each.
        start: of the parts, in each prompt.
        stops: where they end.
    """

    sequences: list[Entry]
    start: int
    stops: list[int]

    @property
    def tokens(self) -> int:
        """Of the run, padding counted."""
        return len(self.stops) * (max(self.stops) - self.start)


class Scheduler:
    """Sequences that wait and sequences that run, in the order in which they are served.

    Args:
        block_tokens: prompts are read in parts that end at multiples of this; `None` reads them whole.
        chunk_tokens: most of a prompt in one run.
        step_tokens: prompt tokens that a step reads while others wait for their next token, in whole
            blocks: so many as long as there are no more prompts to read than sequences that wait.
    """

    def __init__(
        self, block_tokens: int | None, chunk_tokens: int, step_tokens: int = STEP_TOKENS
    ) -> None:
        self._block = block_tokens
        self._chunk = chunk_tokens
        self._step_tokens = step_tokens
        self.waiting: list[Entry] = []
        self.running: list[Entry] = []

    def add(self, call: Call) -> None:
        """Puts the sequences of a call among those that wait."""
        for sequence in call.sequences:
            if sequence.finish_reason is None:
                bisect.insort(self.waiting, (call, sequence), key=_turn)

    def start(self, count: int) -> list[Entry]:
        """Moves the first of those that wait to those that run."""
        started, self.waiting = self.waiting[:count], self.waiting[count:]
        for entry in started:
            bisect.insort(self.running, entry, key=_turn)
        return started

    def drop_ended(self) -> list[Entry]:
        """Takes out all that have ended; returns those of them that were running."""
        if any([has_ended(*entry) for entry in self.waiting]):
            self.waiting = [entry for entry in self.waiting if not has_ended(*entry)]
        ended = [entry for entry in self.running if has_ended(*entry)]
        if ended:
            self.running = [entry for entry in self.running if not has_ended(*entry)]
        return ended

    def pieces(
        self, unread: list[Entry], length: Callable[[Call, Sequence], int], *, decoding: int
    ) -> Iterator[Piece]:
        """What to read of the prompts that are not read yet: at least one piece, and one of a prompt.

        Args:
            unread: sequences of one cache in their order.
            length: how much of a sequence's prompt is read, asked when its turn comes.
            decoding: sequences of other calls that wait for their next token.
        """
        # The fewer wait for a token and the more for a prompt, the more is gained by reading.
        budget = READ_TOKENS
        if decoding:
            budget = min(budget, self._step_tokens * max(1, len(unread) // decoding))
        left = budget
        while unread:
            piece = self._piece(unread, length, budget, stalls=bool(decoding))
            if left < budget and piece.tokens > left:
                return
            yield piece
            left -= piece.tokens
            unread = unread[len(piece.sequences) :]

    def _piece(
        self,
        unread: list[Entry],
        length: Callable[[Call, Sequence], int],
        budget: int,
        *,
        stalls: bool,
    ) -> Piece:
        """The next part of the first prompt, with short ones behind it that can be read beside it.

        The graphs take several rows at once only where all of them are empty.
        """
        call, sequence = unread[0]
        scores = call.search.scores
        if scores:
            budget = min(budget, SCORED_TOKENS)
        start = length(call, sequence)
        if stalls and start >= LONG_PAST:
            budget = min(budget, self._step_tokens // 2)
        sequences, stops = [unread[0]], [self._stop(sequence, start, budget, scores)]
        if start or stops[0] < len(sequence.request.prompt):
            return Piece(sequences, start, stops)
        for other_call, other in unread[1:]:
            if (scores or other_call.search.scores) and other_call is not call:
                break
            stop = self._stop(other, 0, budget, scores)
            whole = stop == len(other.request.prompt)
            beside = other.rows[0] == sequences[-1][1].rows[0] + 1
            tokens = max(*stops, stop) * (len(stops) + 1)
            if not (whole and beside) or tokens > budget or length(other_call, other):
                break
            sequences.append((other_call, other))
            stops.append(stop)
        return Piece(sequences, start, stops)

    def _stop(self, sequence: Sequence, start: int, budget: int, scores: bool) -> int:
        """A border, or the prompt's end, which is never one token away from a border."""
        length = len(sequence.request.prompt)
        if self._block is None and not scores:
            return length
        block = self._block or 1
        most = max(block, min(self._chunk, budget) // block * block)
        stop = start + most
        return stop if stop < length - 1 else length


def _turn(entry: Entry) -> tuple[float, int]:
    call, sequence = entry
    return call.arrival + call.priority * PRIORITY_SECONDS, sequence.index


def has_ended(call: Call, sequence: Sequence) -> bool:
    """Whether nothing is to be done for a sequence any more."""
    return sequence.finish_reason is not None or call.left or call.error is not None
