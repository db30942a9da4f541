"""A byte-level vocabulary and its merge rules, read and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from graphs.shown import shown
from graphs.strict_json import parse_json
from runtime.text_files import MAX_TOKENIZER_BYTES, read_text

MAX_TOKEN_ID = 2**24 - 1  # of the largest vocabulary that a model may have


def byte_alphabet() -> dict[str, int]:
    """The GPT-2 alphabet: each of the 256 bytes by the printable character that stands for it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(hidden)})
    return alphabet


def read_vocabulary(vocabulary: Mapping[str, int] | str | Path) -> dict[str, int]:
    """A vocabulary as it is, or from the JSON file at a path.

    Raises:
        ValueError: if it does not map strings to ids of at least 0.
    """
    if isinstance(vocabulary, (str, Path)):
        text = read_text(Path(vocabulary), MAX_TOKENIZER_BYTES)
        return parse_vocabulary(text, f" in {vocabulary}")
    return check_vocabulary(vocabulary)


def parse_vocabulary(text: str, where: str = "") -> dict[str, int]:
    """A vocabulary from JSON text; `where` goes into errors."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"the vocabulary{where} is not JSON: {error}") from None
    return check_vocabulary(values, where)


def check_vocabulary(vocabulary: object, where: str = "") -> dict[str, int]:
    """A copy of a mapping from strings to ids; `ValueError` if it is none."""
    if not isinstance(vocabulary, Mapping):
        raise ValueError(
            f"the vocabulary{where} must map token strings to ids, got {type(vocabulary).__name__}"
        )
    for token, token_id in vocabulary.items():
        if not isinstance(token, str) or type(token_id) is not int or not 0 <= token_id <= MAX_TOKEN_ID:
            raise ValueError(
                f"the vocabulary{where} maps {shown(token)} to {shown(token_id)}, not to an id of 0 to "
                f"{MAX_TOKEN_ID}"
            )
    try:
        "".join(vocabulary).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the vocabulary{where} holds what is no text: {error}") from None
    return dict(vocabulary)


def read_merges(merges: Iterable[str] | str | Path) -> list[str]:
    """Merge rules as they are, or from the file at a path."""
    if isinstance(merges, (str, Path)):
        return parse_merges(read_text(Path(merges), MAX_TOKENIZER_BYTES))
    return _clean_rules(merges)


def parse_merges(text: str) -> list[str]:
    """Merge rules from text with one a line."""
    return _clean_rules(text.split("\n"))


def _clean_rules(rules: Iterable[str]) -> list[str]:
    # A merge rule never holds a line end, but may hold other Unicode white space: strip "\r" only.
    cleaned = (str(rule).rstrip("\r") for rule in rules)
    return [rule for rule in cleaned if rule and not rule.startswith("#version:")]


def split_rule(rule: str) -> tuple[str, str]:
    """The two tokens that a merge rule joins; `ValueError` if they are not two."""
    parts = rule.split(" ")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"a merge rule must be two tokens with a space between, got {shown(rule)}")
    return parts[0], parts[1]
