"""Each next token drawn by a sampler, from the best logits where these decide it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Listed
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown
from runtime.decoder import BestLogits, StepOutput
from runtime.engine.search.search import Search, logits_of
from runtime.engine.sequence import Sequence


class TokenSampler(Protocol):
    """What the search asks of a sampler; see `runtime.samplers.Sampler`."""

    seed: int | None
    temperature: float

    def sample(
        self, logits: NDArray[np.float32], generators: Listed[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The next token of each row."""

    def sample_best(
        self, best: BestLogits, generators: Listed[np.random.Generator]
    ) -> NDArray[np.int64] | None:
        """The same tokens from the best logits; `None` if a row needs others too."""


class SamplingSearch(Search):
    """Draws the next token of each sequence.

    Args:
        sampler: chooses the tokens.
        prompts: of the call's sequences; what a sequence draws depends on the seed and on its prompt.
        vocabulary: tokens of the model.
    """

    def __init__(
        self, sampler: TokenSampler, prompts: Listed[tuple[int, ...]], vocabulary: int
    ) -> None:
        self.temperature = sampler.temperature
        self._sampler = sampler
        self._prompts = prompts
        self._vocabulary = vocabulary
        # Made when the first is asked for: a process that has just started is spared an import.
        self._generators: list[np.random.Generator] | None = None

    def accept(self, output: StepOutput, sequences: Listed[Sequence]) -> None:
        """Draws one token for each sequence; all logits are looked at where the best do not decide."""
        drawn = {} if output.best is None else self._from_best(output.best, sequences)
        left = [sequence for sequence in sequences if sequence.index not in drawn]
        if left:
            logits = logits_of(output.logits, [sequence.rows[0] for sequence in left])
            drawn |= self._by_index(self._sampler.sample(logits, self._generators_of(left)), left)
        for sequence in sequences:
            token_id = drawn[sequence.index]
            sequence.push(token_id)
            sequence.feed = [token_id]

    def _from_best(self, best: BestLogits, sequences: Listed[Sequence]) -> dict[int, int]:
        """Tokens by the sequence's index, of all or else of those that the best logits decide."""
        rows = [sequence.rows[0] for sequence in sequences]
        chosen = best if rows == [*range(len(best.logits))] else best.rows(rows)
        token_ids = self._sampler.sample_best(chosen, self._generators_of(sequences))
        if token_ids is not None:
            return self._by_index(token_ids, sequences)
        drawn: dict[int, int] = {}
        if len(sequences) > 1:  # a choice from all logits costs far more, so each is tried
            for sequence in sequences:
                drawn |= self._from_best(best, [sequence])
        return drawn

    def _generators_of(self, sequences: Listed[Sequence]) -> Listed[np.random.Generator]:
        made = self._generators
        if made is None:
            return _LazyGenerators(self, sequences)
        return [made[sequence.index] for sequence in sequences]

    def generator(self, index: int) -> np.random.Generator:
        """The random generator of the call's sequence of this index."""
        if self._generators is None:
            self._generators = row_generators(self._sampler.seed, self._prompts)
        return self._generators[index]

    def _by_index(self, token_ids: Any, sequences: Listed[Sequence]) -> dict[int, int]:
        """Tokens by the sequence's index. Samplers are open to users: what they return is input."""
        token_ids, rows, size = np.asarray(token_ids), len(sequences), self._vocabulary
        whole = token_ids.shape == (rows,) and token_ids.dtype.kind in "iu"
        chosen: list[int] = token_ids.tolist()
        if not whole or min(chosen) < 0 or max(chosen) >= size:
            raise ValueError(
                f"{type(self._sampler).__name__} must return one token id a row, {rows} whole numbers "
                f"from 0 to {size - 1}; got {shown(chosen)}"
            )
        return {sequence.index: token for sequence, token in zip(sequences, chosen, strict=True)}


class _LazyGenerators(Listed["np.random.Generator"]):
    """The random generators of some sequences, none of which is made before one is asked for."""

    def __init__(self, search: SamplingSearch, sequences: Listed[Sequence]) -> None:
        self._search, self._sequences = search, sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._search.generator(sequence.index) for sequence in self._sequences[place]]
        return self._search.generator(self._sequences[place].index)


def row_generators(seed: int | None, prompts: Listed[tuple[int, ...]]) -> list[np.random.Generator]:
    """A random generator for each row, which depends on the seed and the row's prompt only.

    The same prompt given several times gets a different generator each time, the first as if alone.
    """
    entropy = np.random.SeedSequence(seed).entropy
    seen: Counter[tuple[int, ...]] = Counter()
    generators = []
    for prompt in prompts:
        sequence = np.random.SeedSequence(entropy, spawn_key=(seen[prompt],))
        generators.append(np.random.default_rng(sequence))
        seen[prompt] += 1
    return generators
