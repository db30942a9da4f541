"""How probable the tokens of given texts are: nothing is written."""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import StepOutput
from runtime.engine.search.search import Search
from runtime.engine.sequence import Sequence
from runtime.probabilities import exponentials


@dataclass
class TokenScores:
    """What is known of a sequence's tokens so far.

    Attributes:
        log_probabilities: of the scored tokens, natural logarithms.
        greedy: whether each is the most probable one, the first of them on a tie.
    """

    log_probabilities: list[float] = field(default_factory=list)
    greedy: list[bool] = field(default_factory=list)


class ScoringSearch(Search):
    """Reads sequences whose prompts are texts without their last tokens; `state` has `TokenScores`.

    Args:
        token_ids: of each of the call's sequences: the tokens to score, of which all but the last are
            the end of its prompt.
    """

    scores = True

    def __init__(self, token_ids: Listed[tuple[int, ...]]) -> None:
        self._token_ids = token_ids

    def first_output(self, sequence: Sequence) -> int:
        """The token before the first that is scored."""
        return len(sequence.request.prompt) - len(self._token_ids[sequence.index])

    def read_logits(self, sequence: Sequence, logits: NDArray[np.float32]) -> None:
        """Scores the next tokens by the logits [n, vocabulary] after those before them."""
        if sequence.state is None:
            sequence.state = TokenScores()
        scores: TokenScores = sequence.state
        start = len(scores.log_probabilities)
        wanted = np.array(self._token_ids[sequence.index][start : start + len(logits)])
        places = np.arange(len(wanted))
        chosen = logits[places, wanted].astype(np.float64) - logits.max(axis=1)
        totals = exponentials(logits).sum(axis=1, dtype=np.float64)
        scores.log_probabilities += (chosen - np.log(totals)).tolist()
        scores.greedy += (logits.argmax(axis=1) == wanted).tolist()

    def accept(self, output: StepOutput, sequences: Listed[Sequence]) -> None:
        """Ends sequences that have been read."""
        for sequence in sequences:
            sequence.finish_reason = "length"
