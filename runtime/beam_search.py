"""Beam search over a batch of prompts; see `runtime.samplers.BeamSampler` for what it computes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import Decoder
from runtime.generation import Hypothesis, RowRequest, Run
from runtime.probabilities import Floats, largest, log_probabilities
from runtime.results import CutReason, FinishReason


class BeamSearchRun(Run):
    """One batch of prompts, each with its own search in `num_beams` rows of the cache.

    A prompt is read once and its cache row copied for each beam. Tokens are yielded as soon as all
    beams of a row agree on them, since nothing can change those any more.

    Args:
        decoder: the model.
        requests: the prompts.
        num_beams: continuations to follow of each prompt.
        temperature: divides the logits.
        all_beams: whether to search until all beams have ended and keep them in the rows'
            `hypotheses`; otherwise a row ends when nothing can overtake its best beam.
    """

    def __init__(
        self,
        decoder: Decoder,
        requests: Sequence[RowRequest],
        num_beams: int,
        temperature: float,
        all_beams: bool,
    ) -> None:
        super().__init__(decoder, requests)
        self._num_beams = num_beams
        self._temperature = temperature
        self._searches = [RowSearch(request, num_beams, all_beams) for request in requests]
        self._all_beams = all_beams

    def steps(self) -> Generator[dict[int, int]]:
        """Yields tokens by row number as they become certain, until every row has ended."""
        if self._running():
            yield from self._search()
        if self._all_beams:
            for row, search in zip(self.rows, self._searches, strict=True):
                row.hypotheses = search.hypotheses("length")

    def cut(self, reason: CutReason) -> None:
        """Ends the rows that still run with the best beams so far."""
        self.cut_reason = reason
        for i in self._running():
            row, search = self.rows[i], self._searches[i]
            row.token_ids[:] = search.beams[0].token_ids
            row.finish_reason = search.beams[0].finish_reason or reason
        if self._all_beams:
            for row, search in zip(self.rows, self._searches, strict=True):
                row.hypotheses = search.hypotheses(reason)

    def _search(self) -> Iterator[dict[int, int]]:
        # Before the prompts are read, so that too large a cache is refused at once.
        cache = self._decoder.new_cache(len(self.rows) * self._num_beams, self._room())
        prompts, output = self._prefill(self._longest_prompt())
        with self._decoding():
            for i in self._running():
                first_row = i * self._num_beams
                targets = np.arange(first_row, first_row + self._num_beams)
                cache.copy_rows(prompts, np.full(self._num_beams, i), targets)
                self._searches[i].advance(output.logits[i : i + 1], self._temperature)
        del prompts, output
        yield from self._certain_tokens()
        while self._running():
            with self._decoding():
                self._step(cache)
            yield from self._certain_tokens()

    def _step(self, cache: Any) -> None:
        """Appends the newest token of every beam and continues each search."""
        running = [(i * self._num_beams, self._searches[i]) for i in self._running()]
        token_ids = np.zeros((len(cache.lengths), 1), np.int64)
        new_lengths = np.zeros(len(cache.lengths), np.int32)
        for first_row, search in running:
            sources, targets, first = search.take_copies()
            cache.copy_rows(cache, first_row + sources, first_row + targets, first)
            for beam in search.live:
                token_ids[first_row + beam.slot] = beam.token_ids[-1]
                new_lengths[first_row + beam.slot] = 1
        logits = self._decoder.append(cache, token_ids, new_lengths).logits
        for first_row, search in running:
            rows = [first_row + beam.slot for beam in search.live]
            search.advance(logits[rows], self._temperature)

    def _certain_tokens(self) -> Iterator[dict[int, int]]:
        fresh = {i: self._searches[i].certain(len(self.rows[i].token_ids)) for i in self._running()}
        for step in range(max(map(len, fresh.values()))):
            tokens = {i: ids[step] for i, ids in fresh.items() if step < len(ids)}
            for i, token_id in tokens.items():
                self.rows[i].push(token_id)
            yield tokens


@dataclass(frozen=True)
class _Beam:
    """A continuation, the cache row of its group that holds it, and why it ended if it has."""

    token_ids: tuple[int, ...]
    score: float
    slot: int
    finish_reason: FinishReason | None


class RowSearch:
    """The beams of one prompt and the rows of its group in the cache.

    Attributes:
        beams: best first; those that have ended stay and compete with their scores as they are.
    """

    def __init__(self, request: RowRequest, num_beams: int, all_beams: bool) -> None:
        self._request = request
        self._num_beams = num_beams
        self._all_beams = all_beams
        self.beams = [_Beam((), 0.0, 0, request.finish_reason(()))]
        # What each row of the group holds beyond the prompt.
        self._contents: list[tuple[int, ...]] = [()] * num_beams
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
        for score, parent, token_id in continuations(logits, scores, self._num_beams, temperature):
            token_ids = (*live[parent].token_ids, token_id)
            reason = self._request.finish_reason(token_ids)
            beams.append(_Beam(token_ids, score, live[parent].slot, reason))
        beams.sort(key=lambda beam: -beam.score)
        self.beams = self._place(beams[: self._num_beams])

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
        shared = _shared_length(self._contents[source], self._contents[target])
        self._copies.append((source, target, len(self._request.prompt) + shared))
        return target

    def take_copies(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Rows to copy within the group, whereto, and the slot before which they are the same."""
        copies, self._copies = np.array(self._copies, np.int64).reshape(-1, 3), []
        return copies[:, 0], copies[:, 1], int(copies[:, 2].min()) if len(copies) else 0

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
    logits: Floats, scores: Sequence[float], count: int, temperature: float
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


def _shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
