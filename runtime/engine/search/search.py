"""What the engine asks of a search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Listed

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import StepOutput
from runtime.engine.sequence import Sequence
from runtime.results import CutReason


class Search(ABC):
    """Chooses tokens for the sequences of one call.

    Attributes:
        rows: of the cache, that each sequence takes.
        hidden_states: whether it looks at those.
        scores: whether it looks at the logits within prompts.
        temperature: of `BestLogits.totals`.
    """

    rows: int = 1
    hidden_states: bool = False
    scores: bool = False
    temperature: float = 1.0

    def temperature_of(self, sequence: Sequence) -> float:
        """Of the `BestLogits.totals` of a sequence's rows."""
        return self.temperature

    def skip(self, sequence: Sequence) -> None:  # noqa: B027 (most have nothing to do)
        """Takes note of a sequence whose prompt leaves no room for a token; nothing is read of it."""

    def read(  # noqa: B027 (most do not look at them)
        self, sequence: Sequence, hidden_states: NDArray[np.float32]
    ) -> None:
        """Takes the hidden states [tokens, hidden] of a part of a prompt, one part after another.

        Called only where `hidden_states` is set.
        """

    def first_output(self, sequence: Sequence) -> int | None:
        """The first token of a prompt after which it looks at what the model says.

        `None` for the last one. What comes before may be taken from an earlier prompt that began alike.
        """
        return 0 if self.hidden_states else None

    def read_logits(  # noqa: B027 (most do not look at them)
        self, sequence: Sequence, logits: NDArray[np.float32]
    ) -> None:
        """Takes the logits [n, vocabulary] after the tokens from `first_output` on, part by part.

        Called only where `scores` is set.
        """

    @abstractmethod
    def accept(self, output: StepOutput, sequences: Listed[Sequence]) -> None:
        """Takes what the model said after the newest tokens of some of the call's sequences.

        Pushes the tokens that are certain now; where a sequence goes on, its `feed` and `copies` are
        set for the next step. The first time, each row's logits are those after the prompt, which only
        the sequence's first row has.

        Args:
            output: by row of the cache; see `runtime.decoder.StepOutput`.
            sequences: which of the call's have new logits.
        """

    def cut(self, sequence: Sequence, reason: CutReason) -> None:
        """Ends a sequence where it is."""
        sequence.finish_reason = reason


def logits_of(logits: NDArray[np.float32], rows: Listed[int]) -> NDArray[np.float32]:
    """The logits of some rows, [n, vocabulary]: where they lie side by side no copy."""
    first = rows[0]
    if len(rows) == 1 or list(rows) == [*range(first, first + len(rows))]:
        return logits[first : first + len(rows)]
    found: NDArray[np.float32] = logits[list(rows)]
    return found
