"""What an answer's text is, written plainly: everything again for every token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from runtime.tokenization.tokenizer import Tokenizer


@cache
def beginnings() -> frozenset[bytes]:
    """All proper beginnings of the UTF-8 of characters of two bytes and more."""
    codes = [code for code in range(0x80, 0x110000, 0x40) if not 0xD800 <= code <= 0xDFFF]
    characters = [chr(code).encode() for code in codes]
    return frozenset(c[:size] for c in characters for size in range(1, len(c)))


def joined_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> bytes:
    """The bytes of tokens, special ones left out."""
    return b"".join(tokenizer.token_bytes(i) for i in ids if i not in tokenizer.special_token_ids)


def known(data: bytes) -> str:
    """What is certain of the text of bytes that others may follow."""
    for size in (3, 2, 1):
        if data[-size:] in beginnings():
            return data[:-size].decode(errors="replace")
    return data.decode(errors="replace")


def first_match(text: str, stops: Sequence[str], after: int = 0) -> tuple[int, str] | None:
    """Where the first stop string ends, if beyond so many characters, and which it is."""
    for end in range(after + 1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return end, stop
    return None


def held(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix that is a proper prefix of a stop string."""
    sizes = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return max(sizes, default=0)
