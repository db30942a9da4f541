"""Sizes that are known before a run only as names: sums of products of a few symbols.

A graph's inputs have the symbols batch, sequence, capacity and outputs, each at least 1; a size that
depends on data gets a symbol of its own with an upper bound. Everything else is an `int`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations
from math import prod
from typing import Union


class Symbol:
    """A whole number of at least 1.

    Attributes:
        name: for people.
        most: what it is at most; `None` for those of the graph's inputs.
    """

    __slots__ = ("most", "name")

    def __init__(self, name: str, most: Dim | None = None) -> None:
        self.name = name
        self.most = most

    def __repr__(self) -> str:
        return self.name


Monomial = tuple[Symbol, ...]  # sorted by name and identity
Terms = dict[Monomial, int]


class Size:
    """A polynomial that is no number; made by arithmetic with symbols, see `symbol`."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms = terms
        self._hash = hash(frozenset(terms.items()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and (self is other or self.terms == other.terms)

    def __repr__(self) -> str:
        parts = []
        for symbols, factor in self.terms.items():
            names = [symbol.name for symbol in symbols]
            parts.append("*".join([str(factor)] * (factor != 1 or not names) + names))
        return " + ".join(parts)

    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other, 1)

    def __radd__(self, other: int) -> Dim:
        return _sum(self, other, 1)

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, other, -1)

    def __rsub__(self, other: int) -> Dim:
        return _sum(other, self, -1)

    def __mul__(self, other: Dim) -> Dim:
        return _product(self, other)

    def __rmul__(self, other: int) -> Dim:
        return _product(self, other)


Dim = Union[int, Size]  # noqa: UP007  (evaluated while Size is being defined)
Shape = tuple[Dim, ...]


def symbol(name: str, most: Dim | None = None) -> Size:
    """A size that is a new symbol."""
    return Size({(Symbol(name, most),): 1})


BATCH, SEQUENCE, CAPACITY = symbol("batch"), symbol("sequence"), symbol("capacity")
OUTPUTS = symbol("outputs")  # new tokens whose logits are wanted


def _terms(value: Dim) -> Mapping[Monomial, int]:
    return {(): value} if isinstance(value, int) else value.terms


def _made(terms: Terms) -> Dim:
    kept = {symbols: factor for symbols, factor in terms.items() if factor}
    return kept.get((), 0) if not kept.keys() - {()} else Size(kept)


def _sum(a: Dim, b: Dim, sign: int) -> Dim:
    terms = dict(_terms(a))
    for symbols, factor in _terms(b).items():
        terms[symbols] = terms.get(symbols, 0) + sign * factor
    return _made(terms)


def _joined(a: Monomial, b: Monomial) -> Monomial:
    return tuple(sorted(a + b, key=lambda each: (each.name, id(each))))


@lru_cache(4096)
def _product(a: Dim, b: Dim) -> Dim:
    terms: Terms = {}
    for left, p in _terms(a).items():
        for right, q in _terms(b).items():
            both = _joined(left, right)
            terms[both] = terms.get(both, 0) + p * q
    return _made(terms)


LARGEST_NUMBER = 2**31 - 1


def is_simple(value: Dim) -> bool:
    """Whether 32 bits hold it, as they hold sums of a few sizes and products of two.

    Without a bound sizes would grow with each operator. Those of real graphs are simpler.
    """
    terms = _terms(value)
    return len(terms) <= 4 and all(
        abs(factor) <= (1 if symbols else LARGEST_NUMBER) and len(symbols) <= 2
        for symbols, factor in terms.items()
    )


def count(shape: Shape) -> Dim:
    """How many elements a shape has."""
    return prod(shape)


def quotient(total: Dim, part: Dim) -> Dim | None:
    """What a product has to be multiplied with to give another one; `None` if it does not divide it."""
    if isinstance(total, int) and isinstance(part, int):
        return total // part if part and total % part == 0 else None
    if len(_terms(total)) != 1 or len(_terms(part)) != 1:
        return None
    ((symbols, factor),), ((taken, divisor),) = _terms(total).items(), _terms(part).items()
    left = list(symbols)
    for each in taken:
        if each not in left:
            return None
        left.remove(each)
    return _made({tuple(left): factor // divisor}) if divisor and factor % divisor == 0 else None


def at_least(a: Dim, b: Dim) -> bool:
    """Whether a size is proven to be at least another, whatever the symbols are."""
    difference = a - b
    return difference >= 0 if isinstance(difference, int) else _is_positive(difference)


@lru_cache(4096)
def _is_positive(size: Size) -> bool:
    """Whether a polynomial is at least 0: with 1 more than nothing for each symbol all factors are."""
    shifted: Terms = {}
    for symbols, factor in _bounded(size, above=False).items():
        for length in range(len(symbols) + 1):
            for chosen in combinations(symbols, length):
                shifted[chosen] = shifted.get(chosen, 0) + factor
    return all(factor >= 0 for factor in shifted.values())


def _bounded(size: Dim, *, above: bool) -> Terms:
    """A bound of a size from one side, in the symbols of the graph's inputs alone."""
    terms: Terms = {}
    waiting = list(_terms(size).items())
    while waiting:
        symbols, factor = waiting.pop()
        place = next((i for i, each in enumerate(symbols) if each.most is not None), None)
        if place is None:
            terms[symbols] = terms.get(symbols, 0) + factor
            continue
        most, others = symbols[place].most, symbols[:place] + symbols[place + 1 :]
        assert most is not None
        bound = most if (factor > 0) == above else 1
        for more, times in _terms(bound).items():
            waiting.append((_joined(others, more), factor * times))
    return terms


def largest(size: Dim) -> Dim:
    """What a size is at most, in the symbols of the graph's inputs alone."""
    return size if isinstance(size, int) else _made(_bounded(size, above=True))
