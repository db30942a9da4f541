"""How often a regular expression repeats its smallest part, told without compiling it."""

from __future__ import annotations

import re

MAX_REPETITIONS = 10_000  # more than a model has positions; what llguidance follows token by token

_PIECES = re.compile(
    r"\\[pPxu]\{[^}]*\}"  # \p{Greek}, \x{1F600}
    r"|\\."
    r"|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]"  # a class of characters; `]` may come first in it
    r"|\{(?P<least>\d*),?(?P<most>\d*)\}"
    r"|.",
    re.DOTALL,
)


def most_repetitions(pattern: str) -> int:
    """The largest product of counts `{m,n}` in each other: 20 for `(a{2,4}b){5}`.

    Counts without an upper bound, `{3,}`, stand for their lower one; `*` and `+` for 1.
    """
    groups = [1]  # the most of what is open, outermost first
    last = 1  # of the part before a count
    for piece in _PIECES.finditer(pattern):
        text = piece.group()
        if text == "(":
            groups.append(1)
            last = 1
        elif text == ")":
            last = groups.pop() if len(groups) > 1 else 1
            groups[-1] = max(groups[-1], last)
        elif piece["least"] or piece["most"]:
            last *= max(1, _count(piece["most"] or piece["least"]))
            groups[-1] = max(groups[-1], last)
        else:
            last = 1
    return max(groups)


def _count(digits: str) -> int:
    return int(digits) if len(digits) < 10 else 10**9


def check_repetitions(pattern: str, name: str) -> None:
    """Raises `ValueError` if a pattern repeats its parts more than `MAX_REPETITIONS` times."""
    most = most_repetitions(pattern)
    if most > MAX_REPETITIONS:
        raise ValueError(
            f"{name} repeats a part of it {most:,} times, counts within counts multiplied; at most "
            f"{MAX_REPETITIONS:,} are allowed"
        )
