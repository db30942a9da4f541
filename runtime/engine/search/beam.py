"""Beam search; see `runtime.samplers.BeamSampler` for what it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence as Listed
from dataclasses import dataclass, replace

from runtime.decoder import StepOutput
from runtime.engine.request import Request
from runtime.engine.search.search import Search, logits_of
from runtime.engine.sequence import Hypothesis, Sequence
from runtime.probabilities import Floats, largest, log_probabilities, log_softmax
from runtime.results import CutReason, FinishReason


class BeamSearch(Search):
    """A search of its own for each sequence, in `num_beams` rows of the cache.

    A prompt is read once and its row copied for each beam. Tokens are pushed as soon as all beams of a
    sequence agree on them, since nothing can change those any more.

    Args:
        num_beams: continuations to follow of each prompt.
        temperature: divides the logits.
        all_beams: whether to search until all beams have ended and keep them as the sequence's
            `hypotheses`; otherwise a sequence ends when nothing can overtake its best beam.
    """

    def __init__(self, num_beams: int, temperature: float, all_beams: bool) -> None:
        self.rows = num_beams
        self._temperature = temperature
        self._all_beams = all_beams

    def accept(self, output: StepOutput, sequences: Listed[Sequence]) -> None:
        """Continues the beams of each sequence by one token."""
        for sequence in sequences:
            beams = self._beams(sequence)
            rows = [sequence.rows[beam.slot] for beam in beams.live]
            beams.advance(logits_of(output.logits, rows), self._temperature)
            for token_id in beams.certain(len(sequence.token_ids)):
                sequence.push(token_id)
            sequence.copies = beams.take_copies()
            sequence.feed = beams.feed()
            if self._all_beams and beams.ended:
                sequence.hypotheses = beams.hypotheses("length")

    def cut(self, sequence: Sequence, reason: CutReason) -> None:
        """Ends a sequence with the best beams so far."""
        beams = self._beams(sequence)
        sequence.token_ids[:] = beams.beams[0].token_ids
        sequence.finish_reason = beams.beams[0].finish_reason or reason
        if self._all_beams:
            sequence.hypotheses = beams.hypotheses(reason)

    def skip(self, sequence: Sequence) -> None:
        """Gives a prompt without room for a token its equal empty beams."""
        if self._all_beams:
            sequence.hypotheses = self._beams(sequence).hypotheses("length")

    def _beams(self, sequence: Sequence) -> Beams:
        if sequence.state is None:
            sequence.state = Beams(sequence.request, self.rows, self._all_beams)
        beams: Beams = sequence.state
        return beams


@dataclass(frozen=True)
class _Beam:
    """A continuation, the cache row of its group that holds it, and why it ended if it has."""

    token_ids: tuple[int, ...]
    score: float
    slot: int
    finish_reason: FinishReason | None


class Beams:
    """The beams of one prompt and the rows of its group in the cache.

    Attributes:
        beams: best first; those that have ended stay and compete with their scores as they are.
    """

    def __init__(self, request: Request, num_beams: int, all_beams: bool) -> None:
        self._request = request
        self._num_beams = num_beams
        self._all_beams = all_beams
        self.beams = [_Beam((), 0.0, 0, request.finish_reason(()))]
        # What each row of the group holds beyond the prompt, `None` before it holds that.
        self._contents: list[tuple[int, ...] | None] = [(), *[None] * (num_beams - 1)]
        self._copies: list[tuple[int, int, int]] = []

    @property
    def live(self) -> list[_Beam]:
        """The beams that go on."""
        return [beam for beam in self.beams if beam.finish_reason is None]

    @property
    def ended(self) -> bool:
        """Whether nothing can change the result: scores only fall."""
        best_has_ended = self.beams[0].finish_reason is not None
        return (best_has_ended and not self._all_beams) or not self.live

    def advance(self, logits: Floats, temperature: float) -> None:
        """Continues the live beams.

        Args:
            logits: [live beams, vocabulary], after the newest token of each, in the order of `live`.
            temperature: divides the logits.
        """
        live = self.live
        for beam in live:
            self._contents[beam.slot] = beam.token_ids
        beams = [beam for beam in self.beams if beam.finish_reason is not None]
        scores = [beam.score for beam in live]
        if self._request.processor is not None:
            rows = self._processed(logits, temperature)
            found = best_of_rows(
                [row + score for row, score in zip(rows, scores, strict=True)], self._num_beams
            )
        else:
            found = continuations(logits, scores, self._num_beams, temperature)
        for score, parent, token_id in found:
            token_ids = (*live[parent].token_ids, token_id)
            reason = self._request.ended(token_ids)
            beams.append(_Beam(token_ids, score, live[parent].slot, reason))
        beams.sort(key=lambda beam: -beam.score)
        self.beams = self._place(beams[: self._num_beams])

    def _processed(self, logits: Floats, temperature: float) -> list[Floats]:
        """Log-probabilities of the live beams' next tokens, changed by the request's processor."""
        rows = []
        for beam, row in zip(self.live, logits, strict=True):
            rows.append(log_softmax(row, temperature))
            self._request.process(beam.token_ids, rows[-1])
        return rows

    def _place(self, beams: list[_Beam]) -> list[_Beam]:
        """Leaves one child of each beam in its parent's row and has the others copied to free rows."""
        parents = {beam.slot for beam in beams if beam.finish_reason is None}
        free = [slot for slot in range(self._num_beams) if slot not in parents]
        placed = []
        for beam in beams:
            if beam.finish_reason is None and beam.slot in parents:
                parents.remove(beam.slot)
            elif beam.finish_reason is None:
                beam = replace(beam, slot=self._copy(beam.slot, free.pop()))
            placed.append(beam)
        return placed

    def _copy(self, source: int, target: int) -> int:
        held, other = self._contents[source], self._contents[target]
        assert held is not None
        same = 0 if other is None else len(self._request.prompt) + _shared_length(held, other)
        self._copies.append((source, target, same))
        return target

    def take_copies(self) -> list[tuple[int, int, int]]:
        """Rows of the group to copy, whereto, and the token before which they are the same."""
        copies, self._copies = self._copies, []
        return copies

    def feed(self) -> list[int | None]:
        """The newest token of each row's beam, `None` for rows without one that goes on."""
        newest: list[int | None] = [None] * self._num_beams
        for beam in self.live:
            newest[beam.slot] = beam.token_ids[-1]
        return newest

    def certain(self, known: int) -> tuple[int, ...]:
        """Tokens of the best beam that cannot change any more, after the first `known`."""
        best = self.beams[0].token_ids[known:]
        if self.ended:
            return best
        others = (beam.token_ids[known:] for beam in self.beams[1:])
        return best[: min((_shared_length(best, other) for other in others), default=len(best))]

    def hypotheses(self, unfinished: FinishReason) -> tuple[Hypothesis, ...]:
        """All beams, best first; a prompt without room for a token has equal empty ones.

        `unfinished` is the finish reason of beams that have not ended.
        """
        found = [
            Hypothesis(beam.token_ids, beam.score, beam.finish_reason or unfinished)
            for beam in self.beams
        ]
        return tuple(found if found[0].token_ids else found * self._num_beams)


def continuations(
    logits: Floats, scores: Listed[float], count: int, temperature: float
) -> list[tuple[float, int, int]]:
    """The best continuations of several beams by one token.

    Args:
        logits: [beams, vocabulary].
        scores: the beams' own.
        count: how many to find.
        temperature: divides the logits.

    Returns:
        Score, beam and token id of each, best first.
    """
    found = []
    for beam, (row, score) in enumerate(zip(logits, scores, strict=True)):
        ids = largest(row, min(count, len(row)))
        gains = score + log_probabilities(row, ids, temperature)
        found += [(g, beam, i) for g, i in zip(gains.tolist(), ids.tolist(), strict=True)]
    found.sort(key=lambda candidate: -candidate[0])
    return found[:count]


def best_of_rows(scores: Listed[Floats], count: int) -> list[tuple[float, int, int]]:
    """The best of the scores [vocabulary] of several beams' next tokens, as `continuations` gives them.

    Tokens that are ruled out, whose score is minus infinity, are none of them.
    """
    found = []
    for beam, row in enumerate(scores):
        ids = largest(row, min(count, len(row)))
        found += [(g, beam, i) for g, i in zip(row[ids].tolist(), ids.tolist(), strict=True)]
    found.sort(key=lambda candidate: -candidate[0])
    return [candidate for candidate in found[:count] if candidate[0] > -math.inf]


def _shared_length(a: Listed[int], b: Listed[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
