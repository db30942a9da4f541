"""The choice of each row's next token, from the best logits where these decide it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown
from runtime.decoder import BestLogits, StepOutput


class TokenSampler(Protocol):
    """What a run asks of a sampler; see `runtime.samplers.Sampler`."""

    seed: int | None
    temperature: float

    def sample(
        self, logits: NDArray[np.float32], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The next token of each row."""

    def sample_best(
        self, best: BestLogits, generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64] | None:
        """The same tokens from the best logits; `None` if a row needs others too."""


class TokenDraw:
    """Draws the next tokens of a batch by a sampler.

    Args:
        sampler: chooses the tokens.
        generators: one random generator for each row of the batch.
        vocabulary: tokens of the model.
    """

    def __init__(
        self, sampler: TokenSampler, generators: Sequence[np.random.Generator], vocabulary: int
    ) -> None:
        self._sampler = sampler
        self._generators = generators
        self._vocabulary = vocabulary

    def __call__(self, output: StepOutput, rows: list[int]) -> dict[int, int]:
        """The token of each of some rows of the batch, by row number.

        All logits are looked at only where the best are not given, or do not decide a row.
        """
        best = output.best
        if best is None:
            return self._from_all(output, rows)
        drawn = self._from_best(best, rows)
        return self._from_both(best, output, rows) if drawn is None else drawn

    def _from_both(self, best: BestLogits, output: StepOutput, rows: list[int]) -> dict[int, int]:
        """Some rows are not decided; a choice from all logits costs far more, so each row is tried."""
        drawn: dict[int, int] = {}
        if len(rows) > 1:
            for row in rows:
                drawn |= self._from_best(best, [row]) or {}
        if left := [row for row in rows if row not in drawn]:
            drawn |= self._from_all(output, left)
        return {row: drawn[row] for row in rows}

    def _from_best(self, best: BestLogits, rows: list[int]) -> dict[int, int] | None:
        if len(rows) < len(self._generators):
            best = best.rows(rows)
        token_ids = self._sampler.sample_best(best, self._generators_of(rows))
        return None if token_ids is None else self._by_row(token_ids, rows)

    def _from_all(self, output: StepOutput, rows: list[int]) -> dict[int, int]:
        logits = output.logits
        if len(rows) < len(self._generators):
            logits = logits[rows]
        return self._by_row(self._sampler.sample(logits, self._generators_of(rows)), rows)

    def _generators_of(self, rows: list[int]) -> Sequence[np.random.Generator]:
        generators = self._generators
        return generators if len(rows) == len(generators) else [generators[row] for row in rows]

    def _by_row(self, token_ids: Any, rows: list[int]) -> dict[int, int]:
        return dict(zip(rows, self._check_choice(np.asarray(token_ids), len(rows)), strict=True))

    def _check_choice(self, token_ids: NDArray[Any], rows: int) -> list[int]:
        """Samplers are open to users: what they return is input."""
        size = self._vocabulary
        whole = token_ids.shape == (rows,) and token_ids.dtype.kind in "iu"
        chosen: list[int] = token_ids.tolist()
        if not whole or min(chosen) < 0 or max(chosen) >= size:
            raise ValueError(
                f"{type(self._sampler).__name__} must return one token id a row, {rows} whole numbers "
                f"from 0 to {size - 1}; got {shown(chosen)}"
            )
        return chosen
