"""What the generation loop asks of a model: a cache, and appending tokens to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from graphs.contract import ModelConfig

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class BestLogits:
    """The largest logits of each row: what a model on a device tells the host after a step.

    The arrays may be reused by the next call: copy what is to outlive it.

    Attributes:
        logits: float32 [batch, n], in falling order.
        token_ids: int64 [batch, n], theirs; those of equal logits in any order.
        totals: float32 [batch], sum over the whole vocabulary of `exp((logit - largest) /
            temperature)`, at the row's temperature of `TemperedCache`.
        vocabulary: tokens of the model; where n is that many, nothing is missing.
    """

    logits: NDArray[np.float32]
    token_ids: NDArray[np.int64]
    totals: NDArray[np.float32]
    vocabulary: int

    @property
    def complete(self) -> bool:
        """Whether these are all logits there are."""
        return len(self.logits[0]) == self.vocabulary

    def rows(self, rows: Sequence[int]) -> BestLogits:
        """A copy of some rows."""
        chosen = list(rows)
        return BestLogits(
            self.logits[chosen], self.token_ids[chosen], self.totals[chosen], self.vocabulary
        )


@dataclass(frozen=True)
class StepOutput:
    """What a model says after new tokens.

    Attributes:
        logits: float32 [rows, vocabulary], for the last valid new token of each row of the cache; or
            [m, vocabulary] for the m new tokens that the caller named. The array may be reused by the
            next call: copy what is to outlive it. A row without new tokens has no logits, nor has
            padding; what is there in their place are finite numbers without a meaning.
        hidden_states: float32 [n, sequence, hidden] of the rows that took part, after the final norm,
            or `None` where the caller did not ask for them.
        best: the largest logits where the model gives them beside all, see `LazyStepOutput`.
    """

    logits: NDArray[np.float32]
    hidden_states: NDArray[np.float32] | None = None
    best: BestLogits | None = None


class LazyStepOutput(StepOutput):
    """What a model on a device says: the best logits at once, all of them when they are looked at.

    Args:
        best: the best logits of each row.
        read_logits: copies all logits, float32 [batch, vocabulary], from the device; called at most
            once, before the next step.
        hidden_states: see `StepOutput`.
    """

    def __init__(
        self,
        best: BestLogits,
        read_logits: Callable[[], NDArray[np.float32]],
        hidden_states: NDArray[np.float32] | None = None,
    ) -> None:
        # Not by assignment, which the base class forbids.
        self.__dict__.update(best=best, hidden_states=hidden_states, _read_logits=read_logits)

    @functools.cached_property
    def logits(self) -> NDArray[np.float32]:
        """All logits; see `StepOutput`."""
        logits: NDArray[np.float32] = self.__dict__["_read_logits"]()
        return logits


class Cache(Protocol):
    """The keys and values of the tokens that a model has seen, row by row.

    Attributes:
        capacity: tokens that a row has room for.
        lengths: int32 [rows], tokens of each row, which the caller may lower; what lies beyond them is
            overwritten later.
    """

    capacity: int
    lengths: NDArray[np.int32]

    def copy_rows(self, source: Any, rows: IntArray, targets: IntArray, first: int = 0) -> None:
        """Makes each row `targets[j]` a copy of what row `rows[j]` of a cache was.

        Args:
            source: a cache of the same model, which may be this one.
            rows: int [n], rows of the source.
            targets: int [n], rows of this cache, each once.
            first: tokens before this one are known to be the same already.
        """

    def release(self, row: int, *, clean: bool = False) -> None:
        """Takes note that nobody needs a row's content; what comes next may write over it.

        `clean`: nor may anybody see it, as it may hold what is no number.
        """


@runtime_checkable
class TemperedCache(Protocol):
    """A cache of a decoder that gives `BestLogits`.

    Attributes:
        temperatures: float32 [rows], 1 in a new cache; what the caller writes here holds for the
            `BestLogits.totals` of the steps that follow.
    """

    temperatures: NDArray[np.float32]


class Decoder(Protocol):
    """A language model that appends tokens to a cache and scores the next one.

    Attributes:
        config: sizes of the model.
        block_tokens: a prompt gives the same keys, values and logits, bit by bit, in whatever parts it
            is read that end at multiples of this and are not single tokens; `None` where a prompt is
            to be read whole.
        chunk_tokens: most tokens of a prompt that are worth reading in one run.
        spare_rows: rows that a cache may have at no cost until tokens are written to them.
        keeps_slots: whether a cache that has no sequence costs nothing worth freeing.
    """

    config: ModelConfig
    block_tokens: int | None
    chunk_tokens: int
    spare_rows: int
    keeps_slots: bool

    def slot_capacity(self, tokens: int) -> int:
        """The capacity of the cache in which sequences of up to so many tokens run together."""

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache of `batch` rows with room for `capacity` tokens each."""

    def append(
        self,
        cache: Any,
        token_ids: IntArray,
        new_lengths: IntArray,
        *,
        first_row: int = 0,
        outputs: IntArray | None = None,
        hidden_states: bool = False,
        check: Callable[[], object] | None = None,
    ) -> StepOutput:
        """Appends tokens to rows of a cache.

        Args:
            cache: from `new_cache`.
            token_ids: int [n, sequence], right-padded, for the n rows from `first_row` on.
            new_lengths: int [n], how many of each row are valid; a row may have none.
            first_row: of those that take tokens.
            outputs: int [m], the new tokens whose logits are wanted, in any order: row times sequence
                plus column in `token_ids`. `None` for the last valid one of each row.
            hidden_states: whether to give those beside the logits.
            check: called now and then while a long run lasts; what it raises ends the run.

        Returns:
            Logits by row of the cache, or by `outputs` and without `best` where these are given; hidden
            states by row of `token_ids`.
        """
