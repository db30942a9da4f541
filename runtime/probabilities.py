"""Arithmetic on logits that samplers share: exact draws and selections, without a full sort."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

# Many weights are summed in blocks, and one block only is looked at in detail.
_BLOCK, _MANY = 256, 2048
# Of how many logits one maximum is taken where the largest ones are looked for.
_MAXIMUM_OF = 32
# Float32 holds temperatures in this range; beyond it the distribution no longer changes.
_LEAST_TEMPERATURE, _GREATEST_TEMPERATURE = 1e-30, 1e30
_NOT_FINITE = "cannot choose by logits that are not finite numbers (NaN or infinity)"


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Probabilities along the last axis, of the logits divided by the temperature."""
    weights = exponentials(logits, temperature)
    result: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return result


def exponentials(logits: Floats, temperature: float = 1.0, *, in_place: bool = False) -> Floats:
    """Probabilities along the last axis before their division by the sum; the largest is 1.

    `in_place` lets them take the place of the logits where that can be written to.

    Raises:
        ValueError: if the largest logit of a row is no finite number.
    """
    maximum = logits.max(axis=-1, keepdims=logits.ndim > 1)  # NaN if any is
    # One row is what a decode step has; a plain float is the cheapest to look at.
    finite = math.isfinite(maximum) if logits.ndim == 1 else np.isfinite(maximum).all()
    if not finite:
        raise ValueError(_NOT_FINITE)
    out = logits if in_place and logits.flags.writeable else None
    scaled = _scaled(logits, maximum, temperature, out)
    result: Floats = np.exp(scaled, out=scaled)
    return result


def log_probabilities(logits: Floats, ids: NDArray[np.int64], temperature: float = 1.0) -> Floats:
    """Logarithms of the softmax of one row [vocabulary] at some ids, float64 [ids].

    Finite wherever the logits are, also where the probability itself would round to 0.
    """
    total = exponentials(logits, temperature).sum(dtype=np.float64)
    scaled = _scaled(logits[ids].astype(np.float64), np.float64(logits.max()), temperature)
    result: Floats = scaled - np.log(total)
    return result


def best_log_probabilities(
    row: Floats, token_id: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of a token of a row [vocabulary], and of the `count` best, best first.

    The same token's is the same number in both.
    """
    ids = largest(row, min(count, len(row))) if count else np.zeros(0, np.int64)
    own, *best = log_probabilities(row, np.concatenate([[token_id], ids])).tolist()
    return own, tuple(zip(ids.tolist(), best, strict=True))


def log_softmax(row: Floats, temperature: float = 1.0) -> NDArray[np.float32]:
    """Logarithms of the softmax of one row [vocabulary], float32."""
    total = exponentials(row, temperature).sum(dtype=np.float64)
    scaled = _scaled(row.astype(np.float64), np.float64(row.max()), temperature)
    result: NDArray[np.float32] = (scaled - np.log(total)).astype(np.float32)
    return result


def draw(weights: Floats, generators: Sequence[np.random.Generator]) -> NDArray[np.int64]:
    """Draws one index a row by its probabilities.

    Args:
        weights: [rows, choices], not negative; need not sum to 1.
        generators: one random generator a row; each gives one number.

    Returns:
        int64 [rows].
    """
    picks = [draw_one(row, generator) for row, generator in zip(weights, generators, strict=True)]
    return np.array(picks, np.int64)


def draw_one(weights: Floats, generator: np.random.Generator) -> int:
    """`draw` for one row [choices]: the inverse of the distribution, accumulated in float64.

    Raises:
        ValueError: if the weights sum to nothing or are not numbers.
    """
    sums = running_sums(weights)
    total = float(sums[-1])
    if not total > 0:
        raise ValueError(f"cannot draw by probabilities that sum to {sums[-1]}")
    return find_sum(weights, sums, generator.random() * total)


def draw_few(logits: Sequence[float], temperature: float, generator: np.random.Generator) -> int:
    """Draws one index from the softmax over a few logits.

    As `draw_one(exponentials(logits, temperature), generator)`, in plain numbers: after a decode step
    nothing is in the CPU's caches, and each array operation costs ten times what it does in a loop.

    Raises:
        ValueError: if the largest logit is no finite number.
    """
    maximum = max(logits)
    if not math.isfinite(maximum):
        raise ValueError(_NOT_FINITE)
    bounded = bounded_temperature(temperature)
    return draw_listed([math.exp((logit - maximum) / bounded) for logit in logits], generator)


def draw_listed(weights: Iterable[float], generator: np.random.Generator) -> int:
    """`draw_one` for a few weights as plain numbers; not negative, some above 0."""
    sums = list(accumulate(weights))
    # The generator's number is below 1, but the product may round up to the last sum.
    return bisect_right(sums, generator.random() * sums[-1], hi=bisect_left(sums, sums[-1]))


def running_sums(weights: Floats) -> Floats:
    """Sums of the weights up to the end of each block, float64: what `find_sum` needs.

    Where there are not many, the sums up to each weight.
    """
    if len(weights) <= _MANY:
        sums: Floats = weights.cumsum(dtype=np.float64)
        return sums
    starts = np.arange(0, len(weights), _BLOCK)
    result: Floats = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    return result


def find_sum(weights: Floats, sums: Floats, target: float) -> int:
    """The first index up to which the weights sum to more than the target.

    Only the block in which that happens is looked at in detail.

    Args:
        weights: [choices], not negative, some above 0.
        sums: `running_sums` of the weights.
        target: 0 or more.

    Returns:
        An index with a weight above 0; where the target is not reached, the last of these.
    """
    block = _first_above(sums, target)
    if len(weights) <= _MANY:
        return block
    start = block * _BLOCK
    inside = weights[start : start + _BLOCK].cumsum(dtype=np.float64)
    return start + _first_above(inside, target - (sums[block - 1] if block else 0.0))


def largest(row: Floats, count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest values of a row, largest first, the lower id first on a tie.

    Raises:
        ValueError: if the row holds what is not a number.
    """
    candidates = _candidates(row, count)
    order = (-row[candidates]).argsort(kind="stable")[:count]
    return candidates[order]


def largest_by_id(row: Floats, count: int) -> NDArray[np.int64]:
    """`largest` in rising order of ids, which is cheaper."""
    candidates = _candidates(row, count)
    if len(candidates) > count:
        candidates = candidates[(-row[candidates]).argsort(kind="stable")[:count]]
        candidates.sort()
    return candidates


def largest_listed(
    logits: Sequence[float], ids: Sequence[int], count: int, complete: bool
) -> Sequence[int] | None:
    """`largest` where a list of the largest logits is all that is known.

    Args:
        logits: the largest of a row, in falling order.
        ids: their token ids; those of equal logits in any order.
        count: how many to take.
        complete: whether the row has no others.

    Returns:
        Places in the list, largest first; `None` where a logit that is not in the list is one of the
        `count` largest, or as large as the last of them and so perhaps too.
    """
    if count > len(logits) or (logits[count - 1] == logits[-1] and not complete):
        return None
    edge = logits[count - 1]
    if count == len(logits) or logits[count] < edge:
        return range(count)
    start = logits.index(edge)  # of the equal ones some do not stay
    equal = sorted(range(start, start + logits.count(edge)), key=ids.__getitem__)
    return [*range(start), *equal[: count - start]]


def bounded_temperature(temperature: float) -> float:
    """The temperature, or the nearest that float32 holds with its inverse: there it is the same."""
    return min(max(temperature, _LEAST_TEMPERATURE), _GREATEST_TEMPERATURE)


def _scaled(logits: Floats, maximum: Any, temperature: float, out: Floats | None = None) -> Floats:
    bounded = bounded_temperature(temperature)
    scaled: Floats = np.subtract(logits, maximum, out=out)
    if bounded != 1.0:
        with np.errstate(over="ignore"):  # minus infinity is what is meant
            scaled /= bounded
    return scaled


def _candidates(row: Floats, count: int) -> NDArray[np.int64]:
    """Ids in rising order, of the `count` largest values and perhaps a few more."""
    candidates: NDArray[np.int64] = (row >= _lower_bound(row, count)).nonzero()[0]
    if len(candidates) < count:
        raise ValueError("cannot choose by logits that are not numbers (NaN)")
    return candidates


def _lower_bound(row: Floats, count: int) -> Any:
    """A value that at least `count` of the row reach, and not many more."""
    columns = len(row) // _MAXIMUM_OF
    if count > columns // 4:
        return np.partition(row, len(row) - count)[len(row) - count]
    # `max` is the same through a layer of Python, which counts when nothing is in the CPU's caches.
    maxima = np.maximum.reduce(row[: columns * _MAXIMUM_OF].reshape(_MAXIMUM_OF, columns), axis=0)
    maxima.partition(columns - count)
    return maxima[columns - count]


def _first_above(cumulative: Floats, target: float) -> int:
    """The first index whose cumulative sum exceeds the target, or the one that reaches the last."""
    index = int(cumulative.searchsorted(target, side="right"))
    if index == len(cumulative):  # rounding: the target is not below the last sum
        index = int(cumulative.searchsorted(cumulative[-1], side="left"))
    return index
