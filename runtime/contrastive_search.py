"""Contrastive search over a batch; see `runtime.samplers.ContrastiveSampler` for what it computes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import Decoder, StepOutput
from runtime.generation import RowRequest, Run
from runtime.probabilities import Floats, exponentials, largest


class ContrastiveSearchRun(Run):
    """One batch of prompts, each with k rows of the cache, one for each candidate token.

    A step runs all candidates at once. The chosen one's new cache slot is then copied to the other
    rows of its group, so that they agree again.

    Args:
        decoder: the model.
        requests: the prompts.
        k: candidates for each token.
        alpha: weight of the similarity to earlier tokens.
        temperature: divides the logits.
    """

    def __init__(
        self,
        decoder: Decoder,
        requests: Sequence[RowRequest],
        k: int,
        alpha: float,
        temperature: float,
    ) -> None:
        super().__init__(decoder, requests)
        self._k = k
        self._alpha = alpha
        self._temperature = temperature

    def steps(self) -> Generator[dict[int, int]]:
        """Yields the tokens of each step by row number, until every row has ended."""
        if not self._running():
            return
        # Before the prompts are read, so that too large a cache is refused at once.
        cache = self._decoder.new_cache(len(self.rows) * self._k, self._room())
        prompts, output = self._prefill(self._longest_prompt(), hidden_states=True)
        with self._decoding():
            paths = {i: self._begin(i, cache, prompts, output) for i in self._running()}
        del prompts, output
        while paths:
            with self._decoding():
                chosen = self._step(cache, paths)
            yield chosen
            paths = {i: paths[i] for i in self._running()}

    def _begin(self, i: int, cache: Any, prompts: Any, output: StepOutput) -> _Path:
        assert output.hidden_states is not None
        request = self.rows[i].request
        rows = np.arange(i * self._k, (i + 1) * self._k)
        cache.copy_rows(prompts, np.full(self._k, i), rows)
        path = _Path(rows, History(request.max_length, output.hidden_states.shape[-1]))
        path.history.append(output.hidden_states[i, : len(request.prompt)])
        path.propose(output.logits[i], self._temperature)
        return path

    def _step(self, cache: Any, paths: dict[int, _Path]) -> dict[int, int]:
        """Runs the candidates of every row and chooses among them."""
        token_ids = np.zeros((len(cache.lengths), 1), np.int64)
        new_lengths = np.zeros(len(cache.lengths), np.int32)
        for path in paths.values():
            token_ids[path.rows, 0] = path.token_ids
            new_lengths[path.rows] = 1
        output = self._decoder.append(cache, token_ids, new_lengths, hidden_states=True)
        assert output.hidden_states is not None
        chosen = {}
        for i, path in paths.items():
            states = output.hidden_states[path.rows, 0]
            best = choose(path.probabilities, path.history.similarities(states), self._alpha)
            chosen[i] = int(path.token_ids[best])
            self.rows[i].push(chosen[i])
            if self.rows[i].finish_reason is None:
                path.history.append(states[best : best + 1])
                path.propose(output.logits[path.rows[best]], self._temperature)
                self._follow(cache, path.rows, best)
        return chosen

    @staticmethod
    def _follow(cache: Any, rows: NDArray[np.int64], best: int) -> None:
        """Makes the rows of a group agree again: they differ in the newest slot only."""
        others = np.delete(rows, best)
        newest = int(cache.lengths[rows[best]]) - 1
        cache.copy_rows(cache, np.full(len(others), rows[best]), others, newest)


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
    """One row's way: its group in the cache, what it has seen, and the next candidates."""

    rows: NDArray[np.int64]
    history: History

    def propose(self, logits: Floats, temperature: float) -> None:
        """Takes the most probable tokens, as many as the group has rows, as the next candidates."""
        self.token_ids, self.probabilities = candidates(logits, len(self.rows), temperature)


def candidates(logits: Floats, k: int, temperature: float) -> tuple[NDArray[np.int64], Floats]:
    """The k most probable tokens of a row [vocabulary], best first, and their probabilities."""
    token_ids = largest(logits, k)
    weights = exponentials(logits, temperature)
    return token_ids, weights[token_ids] / weights.sum(dtype=np.float64)


def choose(probabilities: Floats, similarities: Floats, alpha: float) -> int:
    """The index of the candidate with the best score, the first of them on a tie."""
    return int(np.argmax((1 - alpha) * probabilities - alpha * similarities))


def _directions(states: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(states, axis=-1, keepdims=True)
    result: NDArray[np.float32] = states / np.maximum(norms, np.finfo(np.float32).tiny)
    return result
