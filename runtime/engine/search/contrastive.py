"""Contrastive search; see `runtime.samplers.ContrastiveSampler` for what it computes."""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import StepOutput
from runtime.engine.search.search import Search
from runtime.engine.sequence import Sequence
from runtime.probabilities import Floats, exponentials, largest


class ContrastiveSearch(Search):
    """k rows of the cache for each sequence, one for each candidate token.

    A step runs all candidates at once. The newest token of the one that is chosen is then copied to
    the other rows, so that they agree again.

    Args:
        k: candidates for each token.
        alpha: weight of the similarity to earlier tokens.
        temperature: divides the logits.
    """

    hidden_states = True

    def __init__(self, k: int, alpha: float, temperature: float) -> None:
        self.rows = k
        self._alpha = alpha
        self._temperature = temperature

    def read(self, sequence: Sequence, hidden_states: NDArray[np.float32]) -> None:
        """Adds the states of a part of the prompt to the sequence's history."""
        if sequence.state is None:
            history = History(sequence.request.max_length, hidden_states.shape[-1])
            sequence.state = _Path(history)
        sequence.state.history.append(hidden_states)

    def accept(self, output: StepOutput, sequences: Listed[Sequence]) -> None:
        """Chooses among the candidates of each sequence, and finds the next ones."""
        for sequence in sequences:
            path: _Path = sequence.state
            best, first = 0, 0  # the row that read the prompt, and the others hold nothing yet
            if len(path.token_ids):
                best = self._choose(path, output, sequence)
                first = len(sequence.request.prompt) + len(sequence.token_ids) - 1
            if sequence.finish_reason is None:
                self._propose(path, output.logits[sequence.rows[best]], sequence)
                sequence.feed = path.token_ids.tolist()
                sequence.copies = [(best, i, first) for i in range(self.rows) if i != best]

    def _choose(self, path: _Path, output: StepOutput, sequence: Sequence) -> int:
        """Pushes the best candidate; returns its place."""
        assert output.hidden_states is not None
        states = output.hidden_states[sequence.rows, 0]
        best = choose(path.probabilities, path.history.similarities(states), self._alpha)
        sequence.push(int(path.token_ids[best]))
        path.history.append(states[best : best + 1])
        return best

    def _propose(self, path: _Path, logits: NDArray[np.float32], sequence: Sequence) -> None:
        """Finds the most probable tokens, as many as the sequence has rows."""
        if sequence.request.processor is not None:
            logits = logits.copy()
            sequence.request.process(sequence.token_ids, logits)
        path.token_ids, path.probabilities = candidates(logits, self.rows, self._temperature)


class History:
    """Directions of the hidden states of a row's tokens so far.

    Args:
        capacity: tokens to have room for.
        width: of a hidden state.
    """

    # A product of so few rows stays in this thread. NumPy's own threads would contend for the cores
    # with ONNX Runtime's, which spin between steps: measured, 0.1 ms become 10.
    _BLOCK = 16

    def __init__(self, capacity: int, width: int) -> None:
        blocks = -(-capacity // self._BLOCK)
        self._blocks = np.zeros((blocks, self._BLOCK, width), np.float32)
        self._directions = self._blocks.reshape(-1, width)
        self._count = 0

    def append(self, states: NDArray[np.float32]) -> None:
        """Takes hidden states [tokens, hidden]."""
        end = self._count + len(states)
        self._directions[self._count : end] = _directions(states)
        self._count = end

    def similarities(self, states: NDArray[np.float32]) -> Floats:
        """The largest cosine between each of some states [n, hidden] and any so far: [n]."""
        used = self._blocks[: -(-self._count // self._BLOCK)]
        cosines = (used @ _directions(states).T).reshape(-1, len(states))
        result: Floats = cosines[: self._count].max(axis=0)
        return result


@dataclass
class _Path:
    """What a sequence's tokens looked like so far, and the next candidates."""

    history: History
    token_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    probabilities: Floats = field(default_factory=lambda: np.zeros(0))


def candidates(logits: Floats, k: int, temperature: float) -> tuple[NDArray[np.int64], Floats]:
    """The k most probable tokens of a row [vocabulary], best first, and their probabilities.

    In place of tokens that are ruled out, whose logits are minus infinity, the best one stands again.
    """
    token_ids = largest(logits, k)
    token_ids[logits[token_ids] == -np.inf] = token_ids[0]
    weights = exponentials(logits, temperature)
    return token_ids, weights[token_ids] / weights.sum(dtype=np.float64)


def choose(probabilities: Floats, similarities: Floats, alpha: float) -> int:
    """The index of the candidate with the best score, the first of them on a tie."""
    return int(np.argmax((1 - alpha) * probabilities - alpha * similarities))


def _directions(states: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(states, axis=-1, keepdims=True)
    result: NDArray[np.float32] = states / np.maximum(norms, np.finfo(np.float32).tiny)
    return result
