"""What a run of the model said of one call's sequences, until its search has looked at it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Listed
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import StepOutput
from runtime.engine.call import Call, Entry
from runtime.engine.logits_check import bad_rows, logits_error
from runtime.engine.sequence import Sequence
from runtime.errors import GenerationCancelledError


class Outcome:
    """A part of a run: the sequences of one call that took part in it.

    Args:
        call: theirs.
        cache: what the run appended to.
        new_lengths: of the run's rows.

    Attributes:
        output: of the run, once there is one.
    """

    __slots__ = (
        "_cache",
        "_new_lengths",
        "_places",
        "_reading",
        "_scored",
        "_sequences",
        "call",
        "output",
    )

    def __init__(self, call: Call, cache: Any, new_lengths: NDArray[np.int32]) -> None:
        self.call = call
        self.output: StepOutput | None = None
        self._cache = cache
        self._new_lengths = new_lengths
        self._sequences: list[Sequence] = []
        self._places: list[int] = []
        self._reading = False
        self._scored = 0  # tokens whose logits have been handed on

    def add(self, sequence: Sequence, place: int) -> None:
        """Adds a sequence, which has this place in the run; all of them read, or none does."""
        self._sequences.append(sequence)
        self._places.append(place)
        self._reading = not sequence.feed

    def share(self, twins: Mapping[Sequence, Listed[Sequence]]) -> None:
        """Gives what was read of a prompt to the call's other sequences with the same one."""
        output, cache = self.output, self._cache
        assert output is not None
        for sequence, place in zip(list(self._sequences), list(self._places), strict=True):
            row, prompt = sequence.rows[0], sequence.request.prompt
            if sequence not in twins or cache.lengths[row] < len(prompt):
                continue
            rows = np.array([twin.rows[0] for twin in twins[sequence]])
            cache.copy_rows(cache, np.full(len(rows), row), rows)
            output.logits[rows] = output.logits[row]
            for twin in twins[sequence]:
                twin.cached_prompt_tokens = len(prompt)
                self.add(twin, place)

    def accept(self) -> None:
        """Checks the logits and has the search look at them; what goes wrong ends the call alone."""
        call, output = self.call, self.output
        assert output is not None
        if call.error is not None:  # a signal came when it was half accepted
            return
        try:
            if not (self._reading and call.search.scores):
                self._check_logits(output)
            sequences = self._read(output) if self._reading else self._sequences
            # One that was cut in the same step stays so.
            sequences = [sequence for sequence in sequences if sequence.finish_reason is None]
            if sequences:
                call.search.accept(output, sequences)
        except Exception as error:
            call.error = error
        except BaseException:
            call.error = GenerationCancelledError(
                "a signal came while tokens of this call were chosen; make it again"
            )
            raise

    def add_seconds(self, seconds: float) -> None:
        """Counts the time of the run."""
        for sequence in self._sequences:
            if self._reading:
                sequence.read_seconds += seconds
            else:
                sequence.decode_seconds += seconds

    def _check_logits(self, output: StepOutput) -> None:
        rows = [row for sequence in self._sequences for row in sequence.fed_rows]
        bad = bad_rows(output, rows)
        if not bad:
            return
        row = next(iter(bad))
        sequence = next(sequence for sequence in self._sequences if row in sequence.rows)
        raise logits_error(
            bad[row],
            output.logits.shape[1],
            sequence.index,
            len(self.call.sequences),
            int(self._cache.lengths[row]),
        )

    def _read(self, output: StepOutput) -> list[Sequence]:
        """Hands on hidden states of what was read; returns the sequences whose prompts are complete."""
        complete = []
        for sequence, place in zip(self._sequences, self._places, strict=True):
            if self.call.search.scores:
                self._read_logits(output, sequence, place)
            if self.call.search.hidden_states:
                assert output.hidden_states is not None
                states = output.hidden_states[place, : self._new_lengths[place]]
                self.call.search.read(sequence, states)
            if self._cache.lengths[sequence.rows[0]] == len(sequence.request.prompt):
                complete.append(sequence)
        return complete

    def _read_logits(self, output: StepOutput, sequence: Sequence, place: int) -> None:
        """Hands on the logits within a prompt, which lie behind those of the sequences before it."""
        length = int(self._cache.lengths[sequence.rows[0]])
        start = length - int(self._new_lengths[place])
        first = max(start, self.call.search.first_output(sequence) or 0)
        if first >= length:
            return
        own = output.logits[self._scored : self._scored + length - first]
        self._scored += len(own)
        for row, count in bad_rows(StepOutput(own), [*range(len(own))]).items():
            raise logits_error(
                count, own.shape[1], sequence.index, len(self.call.sequences), first + row + 1
            )
        self.call.search.read_logits(sequence, own)


def scored_tokens(
    entries: list[Entry], past: NDArray[np.int32], width: int, new_lengths: NDArray[np.int32]
) -> NDArray[np.int64] | None:
    """The new tokens whose logits a run is to give, `None` for each row's last.

    Args:
        entries: the sequences that read, row by row, all of one call where that scores.
        past: tokens that each of their rows has.
        width: new tokens of a row, padding counted.
        new_lengths: of each row.
    """
    if not entries[0][0].search.scores:
        return None
    found: list[int] = []
    for i, (call, sequence) in enumerate(entries):
        start, count = int(past[i]), int(new_lengths[i])
        first = max(0, (call.search.first_output(sequence) or 0) - start)
        found += range(i * width + first, i * width + count)
    return np.array(found, np.int64)


def outcomes(entries: list[Entry], cache: Any, new_lengths: NDArray[np.int32]) -> list[Outcome]:
    """One for each call, in the order in which they come."""
    found: dict[int, Outcome] = {}
    for place, (call, sequence) in enumerate(entries):
        outcome = found.get(id(call))
        if outcome is None:
            outcome = found[id(call)] = Outcome(call, cache, new_lengths)
        outcome.add(sequence, place)
    return [*found.values()]
