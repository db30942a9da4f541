"""The text of one sequence, token by token."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Iterable

from runtime.engine.text.stop_strings import REPLACEMENT, StopMatch, StopStrings
from runtime.tokenization.tokenizer import Tokenizer

_NO_STOPS = StopStrings(())


class AnswerText:
    """Decodes tokens as they come, ends at a stop string, and gives out what cannot change any more.

    The text is `tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)`, up to the stop string.
    A tokenizer's text is that of its tokens' bytes put together (`runtime.tokenization` has byte-level
    tokenizers alone), so a token costs what its own bytes do, however long the text is.

    A stop string lies wholly in the answer: it neither begins in the prompt, nor with a character whose
    first bytes are the prompt's. So the prompt, shown or not, changes no match.

    What a token adds to the text when it is pushed is its text, and `offsets` says where that begins: a
    character belongs to the token that completes it, U+FFFD for a broken one to the token that shows it
    to be broken, or to the last token of all. So `text[offsets[i] : offsets[i + 1]]`, put together, are
    the text; tokens within a character and special tokens have nothing of it.

    Args:
        tokenizer: of the tokens.
        stops: what ends the text.
        prompt: tokens whose text goes before the answer's; none to have the answer alone.
        min_tokens: tokens of the answer within which no stop string ends the text; as in vLLM, one that
            a later token completes counts.
        skip_special_tokens: whether special tokens have no text.

    Attributes:
        match: the stop string that ended the text; `None` as long as there is none.
        offsets: of each token pushed, those of the prompt first: characters of the text before its own.
            After a match they may lie beyond the end of the text.
    """

    __slots__ = (
        "_begun",
        "_bytes_of",
        "_length",
        "_min_tokens",
        "_node",
        "_pending",
        "_prompt_tokens",
        "_rest",
        "_skipped",
        "_stops",
        "_taken",
        "match",
        "offsets",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: StopStrings = _NO_STOPS,
        prompt: Iterable[int] = (),
        *,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self.match: StopMatch | None = None
        self.offsets: list[int] = []
        self._bytes_of = tokenizer.token_bytes
        self._skipped = frozenset(tokenizer.special_token_ids if skip_special_tokens else ())
        self._pending = b""  # the beginning of a character
        self._taken: list[str] = []
        self._rest: list[str] = []  # known and not taken
        self._length = 0  # characters known
        self._stops = _NO_STOPS
        self._node = _NO_STOPS.root
        self._begun = False
        for token_id in prompt:
            self.push(token_id)
        self._stops, self._node = stops, stops.root
        self._prompt_tokens = len(self.offsets)
        self._min_tokens = min_tokens
        self._begun = bool(self._pending)  # whether the next character has begun in the prompt

    @property
    def text(self) -> str:
        """All whole characters so far, those held back too; after a match, the text up to there."""
        return "".join([*self._taken, *self._rest])

    @property
    def held(self) -> int:
        """Characters at the end of the text that `take` keeps, as they may become a stop string."""
        return self._node.held

    def push(self, token_id: int) -> None:
        """Adds a token; after a match, it is not part of the answer and changes nothing."""
        if self.match is not None:
            return
        self.offsets.append(self._length)
        if token_id in self._skipped:
            return
        data = self._pending + self._bytes_of(token_id)
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        # Half of a surrogate pair, which Python's decoder waits for though it becomes no character.
        if self._pending[:1] == b"\xed" and self._pending[1:] >= b"\xa0":
            text, self._pending = text + 2 * REPLACEMENT, b""
        if text:
            self._add(text)

    def finish(self) -> None:
        """Ends the text: what was held back belongs to it. Nothing may be pushed after it."""
        self._node = self._stops.root
        if self._pending:
            self._rest.append(REPLACEMENT)
            self._length += 1
            self._pending = b""

    def take(self) -> str:
        """What has become certain of the text since the last time; all pieces together are the text.

        Held back are the bytes of an unfinished character, and the longest suffix of the text that is a
        proper prefix of a stop string; nothing after a match or `finish`.
        """
        if not self._rest:
            return ""
        rest = self._rest[0] if len(self._rest) == 1 else "".join(self._rest)
        known = len(rest) - self._node.held
        piece = rest[:known]
        self._rest = [rest[known:]] if self._node.held else []
        self._taken.append(piece)
        return piece

    def _add(self, text: str) -> None:
        before = self._length
        self._rest.append(text)
        self._length += len(text)
        if self._stops is _NO_STOPS:
            return
        if self._begun:
            self._begun = False
            before, text = before + 1, text[1:]
        if len(self.offsets) - self._prompt_tokens <= self._min_tokens:
            self._node = self._stops.advance(self._node, text)
            return
        self._node, count = self._stops.find(self._node, text)
        if self._node.stop is not None and text:
            self._end(self._stops.strings[self._node.stop], before + count)

    def _end(self, stop: str, end: int) -> None:
        """Cuts the text at a stop string, of which nothing but what `include` keeps was taken."""
        start = end - len(stop)
        self.match = StopMatch(stop, start, end, len(self.offsets) - self._prompt_tokens)
        rest = "".join(self._rest)
        taken = self._length - len(rest)
        self._length = end if self._stops.include else start
        self._rest = [rest[: self._length - taken]]
        self._node, self._pending = self._stops.root, b""
