"""Where the files of a Hugging Face tokenizer disagree: a sentence each, and which one is used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from exporter.errors import PresetError
from exporter.foreign_files import find_file
from exporter.presets.added_tokens import (
    ADDED_FILE,
    DECODER,
    NAMES,
    OPTIONS_FILE,
    SPECIAL_MAP_FILE,
    AddedToken,
    read_options,
)
from exporter.presets.json_file import read_json_if_there
from exporter.presets.pipeline_json import full_vocabulary, is_gpt2
from runtime.text_files import MAX_TOKENIZER_BYTES, read_text
from runtime.tokenization.tokenizer_json import TOKENIZER_FILE, merge_rules
from runtime.tokenization.vocabulary import parse_merges

VOCAB_FILE, MERGES_TEXT = "vocab.json", "merges.txt"  # of Hugging Face folders
T = TypeVar("T")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def disagreements(folder: Path, used: Mapping[str, int], config: Mapping[str, Any]) -> tuple[str, ...]:
    """What the files of a folder say against each other.

    Args:
        folder: whose files have been read without an error.
        used: the vocabulary that came of it, added tokens included.
        config: `config.json`.
    """
    own = read_json_if_there(folder, TOKENIZER_FILE, MAX_TOKENIZER_BYTES)
    options = read_options(folder)
    told: list[str] = []
    vocabulary, added, mapped = (
        _unless_broken(partial(read_json_if_there, folder, name, MAX_TOKENIZER_BYTES), told) or {}
        for name in (VOCAB_FILE, ADDED_FILE, SPECIAL_MAP_FILE)
    )
    for name, listed in ((VOCAB_FILE, vocabulary), (ADDED_FILE, added)):
        told += _other_ids(name, listed, used, _source(own))
    told += _special(options.values, mapped)
    if DECODER in options.values:
        ids = {token.content: i for i, token in options.added.items()}
        told += _other_ids(f"{DECODER} of {OPTIONS_FILE}", ids, used, _source(own))
    missing = [token for token in options.special() if token and token not in used]
    if missing:
        told.append(
            f"the special token {missing[0]!r:.80} has no id and the model no row for it"
            f"{_more(missing)}: it is read as any text"
        )
    if own:
        told += _lacking(vocabulary, own)
        told += _other_merges(_unless_broken(partial(_read_merges, folder), told), merge_rules(own))
        told += _flags(own, options.added.values(), DECODER in options.values)
        if is_gpt2(options, config):
            told += _lost_steps(own)
    return tuple(told)


def _source(own: Mapping[str, Any]) -> str:
    return TOKENIZER_FILE if own else VOCAB_FILE


def _unless_broken(read: Callable[[], T], told: list[str]) -> T | None:
    """A file that is compared only; where it cannot be read, that is told."""
    try:
        return read()
    except ValueError as error:
        told.append(f"{error!s:.300}: it is not used")
        return None


def _read_merges(folder: Path) -> list[str] | None:
    path = find_file(folder, MERGES_TEXT, PresetError)
    return None if path is None else parse_merges(read_text(path, MAX_TOKENIZER_BYTES))


def _other_ids(
    name: str, listed: Mapping[str, Any], used: Mapping[str, int], source: str
) -> Iterator[str]:
    other = [token for token, i in listed.items() if used.get(token) != i]
    if other:
        token = other[0]
        found = f"the id {used[token]}" if token in used else "no id"
        yield (
            f"{name} gives {token!r:.80} the id {str(listed[token])[:20]} and {source} {found}"
            f"{_more(other)}: {source} is used, as by transformers"
        )


def _lacking(listed: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    added = {token["content"] for token in own.get("added_tokens") or ()}
    if listed and (other := [t for t in own["model"]["vocab"] if t not in listed and t not in added]):
        yield (
            f"{TOKENIZER_FILE} has {other[0]!r:.80}, which {VOCAB_FILE} lacks{_more(other)}: "
            f"{TOKENIZER_FILE} is used, as by transformers"
        )


def _other_merges(theirs: list[str] | None, ours: list[str]) -> Iterator[str]:
    if theirs is not None and theirs != ours:
        pairs = zip([*theirs, "nothing"], [*ours, "nothing"], strict=False)
        rank, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        yield (
            f"merge rule {rank} is {a!r:.80} in {MERGES_TEXT} and {b!r:.80} in {TOKENIZER_FILE}: "
            f"{TOKENIZER_FILE} is used, as by transformers"
        )


def _special(values: Mapping[str, Any], mapped: Mapping[str, Any]) -> Iterator[str]:
    """Names of special tokens that the two files give to different tokens."""
    used = OPTIONS_FILE if DECODER in values else SPECIAL_MAP_FILE
    for name in NAMES:
        ours, theirs = (_content(source.get(name)) for source in (values, mapped))
        if ours is not None and theirs is not None and ours != theirs:
            yield (
                f"{name} is {ours!r:.80} in {OPTIONS_FILE} and {theirs!r:.80} in {SPECIAL_MAP_FILE}: "
                f"{used} is used, as by transformers"
            )


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _flags(own: Mapping[str, Any], listed: Iterable[AddedToken], decoder: bool) -> Iterator[str]:
    """Added tokens that `tokenizer.json` and `added_tokens_decoder` describe differently."""
    theirs = {token.content: token for token in listed}
    if not decoder:
        return
    for item in own.get("added_tokens") or ():
        token = AddedToken.read(item, TOKENIZER_FILE, special=False)
        other = theirs.get(token.content)
        if other is None:
            yield (
                f"{TOKENIZER_FILE} has the added token {token.content!r:.80}, which {DECODER} of "
                f"{OPTIONS_FILE} lacks: it is used, as by transformers 4; transformers 5 leaves it out"
            )
            return
        if token != other:
            flag = next(name for name in FLAGS if getattr(token, name) != getattr(other, name))
            mine, its = (json.dumps(getattr(one, flag)) for one in (token, other))
            yield (
                f"the added token {token.content!r:.80} has {flag} {mine} in {TOKENIZER_FILE} and "
                f"{its} in {OPTIONS_FILE}: {OPTIONS_FILE} is used, as by transformers"
            )
            return


def _lost_steps(own: Mapping[str, Any]) -> Iterator[str]:
    split = own.get("pre_tokenizer") or {}
    if own.get("normalizer") is not None or split.get("type") != "ByteLevel":
        yield (
            f"{TOKENIZER_FILE} is used as it is, as by transformers 4; transformers 5 leaves out its "
            f"normalizer and its own splits, since {OPTIONS_FILE} calls it a GPT2Tokenizer"
        )


def _more(tokens: list[str]) -> str:
    return f" ({len(tokens)} such tokens)" if len(tokens) > 1 else ""


def vocabulary_of(files: Mapping[str, str]) -> dict[str, int]:
    """Token string to id, of the files that `Tokenizer.from_files` takes."""
    if TOKENIZER_FILE in files:
        return full_vocabulary(json.loads(files[TOKENIZER_FILE]))
    found: dict[str, int] = json.loads(files["vocabulary.json"])
    return found
