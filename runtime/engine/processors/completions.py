"""Which of many token sequences a next token would complete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from runtime.engine.processors.processor import TokenIds

Value = TypeVar("Value")


class Completions(Generic[Value]):
    """Token sequences and a value of each, found by the token before their last.

    So a step looks at the few sequences that may match, of lists of hundreds.

    Args:
        values: by sequence, of at least two tokens each.
    """

    def __init__(self, values: Mapping[tuple[int, ...], Value]) -> None:
        lengths = {length: place for place, length in enumerate(dict.fromkeys(map(len, values)))}
        self._by_token: dict[int, list[tuple[tuple[int, ...], int, Value]]] = {}
        for sequence in sorted(values, key=lambda sequence: lengths[len(sequence)]):
            *prefix, last = sequence
            entries = self._by_token.setdefault(prefix[-1], [])
            entries.append((tuple(prefix), last, values[sequence]))

    def after(self, token_ids: TokenIds) -> Iterator[tuple[int, Value]]:
        """Last tokens of the sequences whose beginning ends the token ids, and their values.

        In the order in which transformers adds them up: those of one length together, the lengths as
        they first came.
        """
        if len(token_ids) == 0:
            return
        for prefix, last, value in self._by_token.get(int(token_ids[-1]), ()):
            if tuple(token_ids[-len(prefix) :]) == prefix:
                yield last, value
