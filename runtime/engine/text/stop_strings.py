"""Strings that end a text where they first come up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphs.shown import shown
from runtime.numbers import is_iterable

MAX_STOPS = 32
MAX_STOP_CHARACTERS = 256  # of each
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class StopMatch:
    """Where a stop string was found.

    Attributes:
        stop: the string.
        start: the character of the text that it begins with.
        end: the character after it.
        tokens: tokens of the answer up to and with the one that completed it.
    """

    stop: str
    start: int
    end: int
    tokens: int


class Node:
    """How much of the stop strings a text ends with; one of the states of `StopStrings`.

    Attributes:
        next: the node of this beginning and one more character.
        fallback: of the longest beginning of a stop string that this one ends with; `None` at the root.
        stop: place in the list of the stop string that is complete here.
        held: characters at the end of the text that may yet become a stop string: its longest suffix
            that is a proper prefix of one.
    """

    __slots__ = ("fallback", "held", "next", "stop")

    def __init__(self) -> None:
        self.next: dict[str, Node] = {}
        self.fallback: Node | None = None
        self.stop: int | None = None
        self.held = 0


class StopStrings:
    """Several stop strings, looked for together (Aho and Corasick, 1975); shared by any threads.

    The one that is complete first wins, and of several complete at the same character the first in the
    list: vLLM's rule for `stop`. So it does not matter which tokens a text came in, and a text may end
    as soon as one is there: of `"abcd"` and `"bc"`, `"abcd"` never wins.

    Args:
        stops: as `read_stops` gives them.
        include: whether the text keeps the string that ended it.

    Attributes:
        strings: the stop strings.
        include: as given.
        root: the state of a text that ends with no beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self.strings = tuple(stops)
        self.include = include
        self.root = Node()
        for place, stop in enumerate(self.strings):
            self._add(stop, place)
        self._link()
        self._first = frozenset(self.root.next)

    def _add(self, stop: str, place: int) -> None:
        node = self.root
        for character in stop:
            node = node.next.setdefault(character, Node())
        if node.stop is None:
            node.stop = place

    def _link(self) -> None:
        """Sets what depends on shorter beginnings, from the shortest on."""
        layer, depth = [self.root], 0
        while layer:
            depth += 1
            following = []
            for parent in layer:
                for character, node in parent.next.items():
                    node.fallback = back = self._step(parent.fallback, character)
                    if back.stop is not None and (node.stop is None or back.stop < node.stop):
                        node.stop = back.stop
                    node.held = depth if node.next else back.held
                    following.append(node)
            layer = following

    def _step(self, node: Node | None, character: str) -> Node:
        """The state after one more character; `None` comes before the root."""
        while node is not None:
            if (found := node.next.get(character)) is not None:
                return found
            node = node.fallback
        return self.root

    def advance(self, node: Node, text: str) -> Node:
        """The state after a text that follows on a state, stop strings in it or not."""
        if node is self.root and self._first.isdisjoint(text):
            return node
        for character in text:
            node = self._step(node, character)
        return node

    def find(self, node: Node, text: str) -> tuple[Node, int]:
        """The state where the first stop string ends, or else the text, and characters up to there.

        The state's `stop` tells whether there is one.
        """
        if node is self.root and self._first.isdisjoint(text):
            return node, len(text)
        for count, character in enumerate(text, start=1):
            node = self._step(node, character)
            if node.stop is not None:
                return node, count
        return node, len(text)


def read_stops(value: object, name: str = "stop") -> tuple[str, ...]:
    """Stop strings as a caller gives them: `None`, a string, or an iterable of strings.

    U+FFFD is refused in them: in a text it stands for bytes that are no character.

    Raises:
        ValueError: if it is anything else, there are more than `MAX_STOPS`, or one is empty, longer
            than `MAX_STOP_CHARACTERS`, or no text.
    """
    if value is None:
        return ()
    if not is_iterable(value) or isinstance(value, (bytes, bytearray)):
        raise ValueError(f"{name} must be a string or a list of strings, got {shown(value)}")
    stops = (value,) if isinstance(value, str) else tuple(value)
    if len(stops) > MAX_STOPS:
        raise ValueError(f"{name} may have at most {MAX_STOPS} strings, got {len(stops)}")
    for stop in stops:
        _check_stop(stop, name)
    return stops


def _check_stop(stop: object, name: str) -> None:
    if not isinstance(stop, str):
        raise ValueError(f"{name} must be a string or a list of strings, got {shown(stop)} in it")
    if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
        raise ValueError(
            f"strings in {name} must have 1 to {MAX_STOP_CHARACTERS} characters, got {shown(stop)} "
            f"with {len(stop)}"
        )
    if REPLACEMENT in stop or any("\ud800" <= character <= "\udfff" for character in stop):
        raise ValueError(
            f"strings in {name} must be text, without U+FFFD or half of a surrogate pair, which no "
            f"text can match; got {shown(stop)}"
        )


def cut_at_stop(text: str, stops: StopStrings) -> tuple[str, str | None]:
    """A finished text up to the stop string that ends it, and that string; see `StopStrings`.

    Finds each string on its own, so it checks what `AnswerText` gives in another way.
    """
    found = [
        (start + len(stop), place)
        for place, stop in enumerate(stops.strings)
        if (start := text.find(stop)) >= 0
    ]
    if not found:
        return text, None
    end, place = min(found)
    stop = stops.strings[place]
    return text[: end if stops.include else end - len(stop)], stop
