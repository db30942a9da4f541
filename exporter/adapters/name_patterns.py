"""Regular expressions over module names, for configurations that a stranger wrote.

Python's `re` can take hours for a short pattern that was made for it. What configurations of `peft`
need is little, so it is matched here by the set of places that a match may have come to: each part of
the pattern looks at each place once. What is not known is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

MAX_PATTERN = 1000  # characters
MAX_DEPTH = 20  # groups in groups
MAX_STEPS = 5_000  # parts looked at for one name
CLASSES = {"d": r"[0-9]", "D": r"[^0-9]", "w": r"[\w]", "W": r"[^\w]", "s": r"[\s]", "S": r"[^\s]"}

# A name with dots, which `re` is quick with.
PLAIN = re.compile(r"\^?(?:\w|-|\\?\.)+\$?", re.ASCII)

Places = frozenset[int]
Part = Callable[["_Name", Places], Places]


class _Name:
    """A name to match, and the steps that were taken for it."""

    def __init__(self, text: str) -> None:
        self.text, self.steps = text, 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ValueError("it takes too many steps to match")


def fullmatch(pattern: str, name: str) -> bool:
    """Whether a pattern matches all of a name, as `re.fullmatch` says.

    Raises:
        ValueError: if the pattern is no regular expression, or one of parts that are not known here.
    """
    part = _parse(pattern)
    return len(name) in part(_Name(name), frozenset((0,)))


def matches_end(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name, or what follows one of its dots, as in `peft`."""
    if is_plain(pattern):
        return re.fullmatch(rf"(.*\.)?({pattern})", name) is not None
    return fullmatch(rf"(.*\.)?({pattern})$", name)


def is_plain(pattern: str) -> bool:
    """Whether a pattern is a name, in which only dots stand for other characters."""
    return len(pattern) <= MAX_PATTERN and PLAIN.fullmatch(pattern) is not None


@functools.lru_cache(maxsize=256)
def _parse(pattern: str) -> Part:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern of {len(pattern)} characters, of at most {MAX_PATTERN}")
    parser = _Parser(pattern)
    try:
        part = parser.alternatives(0)
        if parser.place < len(pattern):
            raise ValueError("it closes a group that is not open")
    except (ValueError, IndexError) as error:
        raise ValueError(f"the pattern {pattern[:200]!r} is not read: {error}") from None
    return part


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.place = pattern, 0

    def peek(self) -> str:
        return self.pattern[self.place : self.place + 1]

    def take(self, mark: str) -> bool:
        found = self.pattern.startswith(mark, self.place)
        self.place += len(mark) if found else 0
        return found

    def alternatives(self, depth: int) -> Part:
        if depth > MAX_DEPTH:
            raise ValueError(f"it nests more than {MAX_DEPTH} groups")
        choices = [self.sequence(depth)]
        while self.take("|"):
            choices.append(self.sequence(depth))
        return lambda name, places: frozenset().union(*(part(name, places) for part in choices))

    def sequence(self, depth: int) -> Part:
        parts: list[Part] = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated(self.atom(depth)))

        def run(name: _Name, places: Places) -> Places:
            for part in parts:
                if not places:
                    break
                places = part(name, places)
            return places

        return run

    def atom(self, depth: int) -> Part:
        if self.take("("):
            return self.group(depth)
        if self.take("^"):
            return lambda name, places: places & {0}
        if self.take("$"):
            return lambda name, places: places & {len(name.text)}
        if self.take("."):
            return _character(".")
        if self.take("["):
            end = self.pattern.index("]", self.place + (2 if self.peek() == "^" else 1))
            text, self.place = self.pattern[self.place : end], end + 1
            if "[" in text or re.search(r"\\[^dDwWsS.\-^\]\\]", text):
                raise ValueError(f"it holds the class [{text}]")
            return _character(f"[{text}]")
        character = self.pattern[self.place]
        self.place += 1
        if character in "*+?{":
            raise ValueError(f"{character!r} repeats nothing")
        if character != "\\":
            return _character(re.escape(character))
        escaped = self.pattern[self.place]
        self.place += 1
        if escaped not in CLASSES and (escaped.isalnum() or not escaped.isascii()):
            raise ValueError(f"it holds \\{escaped}")
        return _character(CLASSES.get(escaped, re.escape(escaped)))

    def group(self, depth: int) -> Part:
        if self.take("?") and not self.take(":"):
            named = re.compile(r"P<\w+>").match(self.pattern, self.place)
            if named is None:
                raise ValueError(f"it holds (?{self.peek()}")
            self.place = named.end()
        part = self.alternatives(depth + 1)
        if not self.take(")"):
            raise ValueError("it leaves a group open")
        return part

    def repeated(self, part: Part) -> Part:
        counted = re.compile(r"([*+?])|\{(\d{1,4})(,?)(\d{0,4})\}").match(self.pattern, self.place)
        if counted is None:
            return part
        self.place = counted.end()
        self.take("?")  # which match is found first does not matter here
        if self.peek() in ("*", "+", "?", "{"):
            raise ValueError("it repeats a repetition")
        mark, low, comma, high = counted.groups()
        if mark:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        else:
            least = int(low)
            most = int(high) if high else None if comma else least
        return lambda name, places: _repeat(part, name, places, least, most)


def _repeat(part: Part, name: _Name, places: Places, least: int, most: int | None) -> Places:
    """Where a part that is repeated may have come to."""
    found = places if least == 0 else frozenset()
    count = 0
    while places and (most is None or count < most):
        name.step()
        before, places = places, part(name, places)
        count = max(count + 1, least) if places == before else count + 1
        if count >= least:
            if places <= found:
                break
            found |= places
    return found


def _character(expression: str) -> Part:
    matches = re.compile(expression, re.ASCII).fullmatch  # of one character, so never slow

    def run(name: _Name, places: Places) -> Places:
        name.step()
        return frozenset(p + 1 for p in places if p < len(name.text) and matches(name.text[p]))

    return run
