"""What a `tokenizer.json` may hold, checked before the `tokenizers` library runs it.

The library runs whatever steps a file lists. It panics on some, and a few short steps can make
gigabytes of a short text, so a file is looked through first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from graphs.strict_json import parse_json
from runtime.tokenization.vocabulary import MAX_TOKEN_ID, check_vocabulary

TOKENIZER_FILE = "tokenizer.json"
MAX_STEPS = 32  # normalizers, and as many pre-tokenizers; real files have up to five
MAX_GROWTH = 16.0  # bytes that normalizers make of a byte


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns what the `tokenizers` library raises into `ValueError`: plain `Exception`s and panics.

    Args:
        what: the subject of the error's sentence.
    """
    try:
        yield
    except BaseException as error:
        # A Rust panic is no Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what} is not valid: {str(error)[:500]}") from None


def parse_tokenizer(text: str) -> dict[str, Any]:
    """The values of a `tokenizer.json`; see `check_byte_level`.

    Raises:
        ValueError: if it is no byte-level BPE.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{TOKENIZER_FILE} is not JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError(f"{TOKENIZER_FILE} is no tokenizer: it has no model")
    check_byte_level(values)
    return values


def check_byte_level(values: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a parsed `tokenizer.json` is not byte-level BPE, or blows text up."""
    try:
        model = values["model"]
        kind = model.get("type", "BPE" if "merges" in model else "unknown")  # early files lack the type
        normalizers = _steps(values.get("normalizer"), "normalizers")
        steps = [step.get("type") for step in _steps(values.get("pre_tokenizer"), "pretokenizers")]
        affixes = [model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix")]
        decoder = (values.get("decoder") or {"type": "ByteLevel"}).get("type")
        if kind != "BPE" or "ByteLevel" not in steps or any(affixes) or decoder != "ByteLevel":
            raise ValueError(
                f"{TOKENIZER_FILE} is not byte-level BPE, the only kind that OPT models have: its "
                f"model is {kind}, its pre-tokenizer {' + '.join(map(str, steps)) or None}, its "
                f"decoder {decoder}"
            )
        growth = _growth(normalizers)
        ids = check_vocabulary(model["vocab"], f" in {TOKENIZER_FILE}")
        added = [token["id"] for token in values.get("added_tokens") or ()]
    except KeyError as error:
        raise ValueError(f"{TOKENIZER_FILE} lacks the value {error}") from None
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{TOKENIZER_FILE} is no tokenizer: {error}") from None
    # The library writes two tokens of one id as either of them, and counts to the highest id for it.
    if len(set(ids.values())) != len(ids):
        raise ValueError(f"the vocabulary in {TOKENIZER_FILE} gives one id to two tokens")
    if any(type(i) is not int or not 0 <= i <= MAX_TOKEN_ID for i in added):
        raise ValueError(f"the added tokens in {TOKENIZER_FILE} must have ids of 0 to {MAX_TOKEN_ID}")
    if model.get("dropout"):
        raise ValueError(
            f"{TOKENIZER_FILE} has dropout, which gives a text other tokens every time; set it to null"
        )
    if growth > MAX_GROWTH or steps.count("ByteLevel") > 1:
        raise ValueError(
            f"{TOKENIZER_FILE} makes up to {growth:.3g} bytes of one byte of text before it is split, "
            f"at most {MAX_GROWTH:g}, by {len(normalizers)} normalizers, and has "
            f"{steps.count('ByteLevel')} ByteLevel pre-tokenizers, at most one"
        )


def merge_rules(values: Mapping[str, Any]) -> list[str]:
    """Merge rules of a parsed `tokenizer.json`: older files hold strings, newer ones pairs."""
    try:
        merges = values["model"]["merges"]
        return [rule if isinstance(rule, str) else " ".join(rule) for rule in merges]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{TOKENIZER_FILE} has no list of merge rules: {error!r}") from None


def _steps(step: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The single steps of a step that may be a sequence of steps."""
    found: list[Mapping[str, Any]] = []
    waiting = [] if step is None else [step]
    while waiting:
        step = waiting.pop()
        if step.get("type") == "Sequence":
            waiting += reversed(step[name])
        else:
            found.append(step)
        if len(found) + len(waiting) > MAX_STEPS:
            raise ValueError(f"{TOKENIZER_FILE} has more than {MAX_STEPS} {name}")
    return found


def _growth(normalizers: list[Mapping[str, Any]]) -> float:
    """The most bytes that replacements make of one byte."""
    growth = 1.0
    for step in normalizers:
        if step.get("type") == "ByteLevel":
            growth *= 2
        if step.get("type") == "Replace":
            content, pattern = step["content"], step["pattern"]
            size = len(content.encode("utf-8", "surrogatepass"))
            # A regular expression may match the nothing between any two characters.
            least = len((pattern.get("String") or "").encode("utf-8", "surrogatepass"))
            growth *= max(1.0, size / least) if least else 1 + size
    return growth
