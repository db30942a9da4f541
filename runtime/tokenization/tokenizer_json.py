"""What a `tokenizer.json` may hold, checked before the `tokenizers` library runs it.

The library runs whatever steps a file lists. It panics on some, and a few short steps can make
gigabytes of a short text, so a file is looked through first; see `runtime.tokenization.steps`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from graphs.shown import shown
from graphs.strict_json import parse_json
from runtime.tokenization.steps import Effect, check_post_processors, single_steps, steps_effect
from runtime.tokenization.vocabulary import MAX_TOKEN_ID, check_vocabulary

TOKENIZER_FILE = "tokenizer.json"
MAX_ADDED_BYTES = 2**20  # of all added tokens: the library takes two seconds to prepare as many


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


def parse_tokenizer(text: str) -> tuple[dict[str, Any], Effect]:
    """The values of a `tokenizer.json`, and what it may make of a text; see `check_byte_level`.

    Raises:
        ValueError: if it is no byte-level BPE.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{TOKENIZER_FILE} is not JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError(f"{TOKENIZER_FILE} is no tokenizer: it has no model")
    return values, check_byte_level(values)


def check_byte_level(values: Mapping[str, Any]) -> Effect:
    """What a parsed `tokenizer.json` may make of a text on its way to the model.

    Raises:
        ValueError: if it is not byte-level BPE, or holds steps that are not known or blow text up.
    """
    try:
        return _check_parts(values)
    except KeyError as error:
        raise ValueError(f"{TOKENIZER_FILE} lacks the value {shown(error.args[0])}") from None
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{TOKENIZER_FILE} is no tokenizer: {error}") from None


def _check_parts(values: Mapping[str, Any]) -> Effect:
    model = values["model"]
    kind = model.get("type", "BPE" if "merges" in model else "unknown")  # early files lack the type
    try:
        normalizers = single_steps(values.get("normalizer"), "normalizers")
        pre_tokenizers = single_steps(values.get("pre_tokenizer"), "pretokenizers")
        post_processors = single_steps(values.get("post_processor"), "processors")
        steps = [step.get("type") for step in pre_tokenizers]
        affixes = [model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix")]
        decoder = (values.get("decoder") or {"type": "ByteLevel"}).get("type")
        if kind != "BPE" or "ByteLevel" not in steps or any(affixes) or decoder != "ByteLevel":
            raise ValueError(
                "is not byte-level BPE, the only kind that OPT models have: its model is "
                f"{_plain(kind)}, its pre-tokenizer {' + '.join(map(_plain, steps)) or None}, its "
                f"decoder {_plain(decoder)}"
            )
        if steps.count("ByteLevel") > 1:
            raise ValueError(f"has {steps.count('ByteLevel')} ByteLevel pre-tokenizers, at most one")
        effect = steps_effect(normalizers, pre_tokenizers)
        check_post_processors(post_processors)
    except ValueError as error:
        raise ValueError(f"{TOKENIZER_FILE} {error}") from None
    ids = check_vocabulary(model["vocab"], f" in {TOKENIZER_FILE}")
    # The library writes two tokens of one id as either of them, and counts to the highest id for it.
    if len(set(ids.values())) != len(ids):
        raise ValueError(f"the vocabulary in {TOKENIZER_FILE} gives one id to two tokens")
    if model.get("dropout"):
        raise ValueError(
            f"{TOKENIZER_FILE} has dropout, which gives a text other tokens every time; set it to null"
        )
    added = values.get("added_tokens") or ()
    _check_added(added)
    strips = any(token.get("lstrip") or token.get("rstrip") for token in added)
    return effect.then(Effect(shrink=math.inf)) if strips else effect


def _check_added(added: Any) -> None:
    if any(type(token["id"]) is not int or not 0 <= token["id"] <= MAX_TOKEN_ID for token in added):
        raise ValueError(f"the added tokens in {TOKENIZER_FILE} must have ids of 0 to {MAX_TOKEN_ID}")
    size = sum(len(token["content"].encode("utf-8", "surrogatepass")) for token in added)
    if size > MAX_ADDED_BYTES:
        raise ValueError(
            f"the added tokens in {TOKENIZER_FILE} have {size} bytes, and may have {MAX_ADDED_BYTES}"
        )


def _plain(kind: object) -> str:
    """A kind of step as a sentence names it: a file may hold anything in its place."""
    return kind if isinstance(kind, str) and len(kind) < 100 else shown(kind)


def merge_rules(values: Mapping[str, Any]) -> list[str]:
    """Merge rules of a parsed `tokenizer.json`: older files hold strings, newer ones pairs."""
    try:
        merges = values["model"]["merges"]
        return [rule if isinstance(rule, str) else " ".join(rule) for rule in merges]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{TOKENIZER_FILE} has no list of merge rules: {error!r}") from None
