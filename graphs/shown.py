"""Values as errors show them: what a caller or a file gave may be megabytes long."""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from itertools import islice
from typing import Any

MOST_DIGITS = 100
MOST_MESSAGE = 500
MOST_CHARACTERS = 300
MOST_NAMES, LONGEST_NAME = 5, 100


class _Short(reprlib.Repr):
    """`repr` of the beginning and the end of what is long."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120
        self.maxset = self.maxfrozenset = self.maxdeque = self.maxdict = self.maxlist

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**MOST_DIGITS:
            return repr(x)
        return f"a whole number of {x.bit_length()} bits"  # Python writes no more than 4,300 digits

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring]!r}..."

    repr_bytearray = repr_bytes

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        shown = islice(x.items(), self.maxdict)
        items = [f"{self.repr1(key, level - 1)}: {self.repr1(item, level - 1)}" for key, item in shown]
        return f"{{{', '.join([*items, '...'] if len(x) > self.maxdict else items)}}}"


_SHORT = _Short()


def shown(value: object) -> str:
    """`repr(value)` where that is short, else its beginning and end, some 300 characters at most.

    A string or list of any length costs no more than its ends.
    """
    text = _SHORT.repr(value).replace("\n", " ")  # NumPy's arrays
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[: MOST_CHARACTERS - 100]}...{text[-97:]}"


def cut(error: object) -> str:
    """What another's error says, its first 500 characters: it may repeat what a file holds."""
    told = str(error)
    return told if len(told) <= MOST_MESSAGE else f"{told[:MOST_MESSAGE]} …"


def listed(names: Collection[object], most: int = MOST_NAMES) -> str:
    """The first names, comma-separated, and how many more there are."""
    first = [str(name) for name in islice(names, most)]
    told = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in first]
    rest = len(names) - len(told)
    return ", ".join(told) + (f", and {rest} more" if rest else "")
