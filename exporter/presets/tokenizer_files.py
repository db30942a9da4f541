"""The tokenizer of a preset folder, as the files that `Tokenizer.from_files` takes.

A tokenizer that does just what OPT's own does becomes `vocabulary.json` and `merges.txt`, which Keras
reads too. Any other byte-level BPE keeps its `tokenizer.json`. Which one a Hugging Face folder has,
what goes before a prompt and what ends a text follows transformers' `AutoTokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from exporter.errors import PresetError
from exporter.foreign_files import find_file
from exporter.presets.json_file import read_json, read_json_if_there, serialized_config
from runtime.text_files import MAX_TOKENIZER_BYTES, read_text
from runtime.tokenization.pipeline import (
    END_TOKEN,
    MERGES_FILE,
    PAD_TOKEN,
    SPECIAL_TOKENS_FILE,
    START_TOKEN,
    VOCABULARY_FILE,
    SpecialTokens,
)
from runtime.tokenization.tokenizer_json import (
    TOKENIZER_FILE,
    check_byte_level,
    library_errors,
    merge_rules,
)
from runtime.tokenization.vocabulary import byte_alphabet, check_vocabulary, parse_merges, split_rule

ASSETS = "assets/tokenizer"  # in a Keras preset folder
KERAS_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "sequence_length": lambda value: type(value) is int and value > 0,
    "add_prefix_space": lambda value: type(value) is bool,
    "unsplittable_tokens": lambda value: type(value) is list and all(type(t) is str for t in value),
}
# How transformers names the special tokens in tokenizer_config.json.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def keras_tokenizer_files(folder: Path) -> dict[str, str] | None:
    """Of a Keras preset folder; `None` if it has no tokenizer."""
    names = (TOKENIZER_FILE, SPECIAL_TOKENS_FILE)
    if _asset(folder, TOKENIZER_FILE) is None:
        names = (VOCABULARY_FILE, MERGES_FILE)
        if _asset(folder, VOCABULARY_FILE) is None:
            return None
    files = {}
    for name in names:
        if (path := _asset(folder, name)) is None:
            raise PresetError(f"{folder / ASSETS} has {names[0]} and lacks {name}")
        try:
            files[name] = read_text(path, MAX_TOKENIZER_BYTES)
        except ValueError as error:
            raise PresetError(str(error)) from None
    return files


def _asset(folder: Path, name: str) -> Path | None:
    return find_file(folder, f"{ASSETS}/{name}", PresetError)


def keras_tokenizer_options(folder: Path) -> dict[str, Any]:
    """The options of `OPTTokenizer` in a Keras preset folder's `tokenizer.json`."""
    path = folder / "tokenizer.json"
    config = serialized_config(read_json_if_there(folder, path.name), path)
    options = {name: config[name] for name in KERAS_OPTIONS if config.get(name) is not None}
    for name, value in options.items():
        if not KERAS_OPTIONS[name](value):
            raise PresetError(f"{path}: {name} is not valid: {value!r:.200}")
    return options


def hugging_face_tokenizer_files(folder: Path, config: Mapping[str, Any]) -> dict[str, str] | None:
    """Of a Hugging Face folder; `None` if it has no tokenizer.

    Args:
        folder: the folder.
        config: its `config.json`, which says the special ids that generation uses.

    Raises:
        PresetError: naming the file that is broken or of an unsupported kind.
    """
    options = read_json_if_there(folder, "tokenizer_config.json")
    fast, vocabulary, merges = (
        find_file(folder, name, PresetError) for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    path = fast or vocabulary
    try:
        if fast is not None:
            return _from_fast(read_json(fast, MAX_TOKENIZER_BYTES), options, config)
        if vocabulary is not None and merges is not None:
            rules = parse_merges(read_text(merges, MAX_TOKENIZER_BYTES))
            ids = check_vocabulary(read_json(vocabulary, MAX_TOKENIZER_BYTES))
            return _from_slow(ids, rules, options, config)
    except PresetError:
        raise
    except KeyError as error:
        raise PresetError(f"{path} lacks the value {error}") from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise PresetError(f"{path}: {error}") from None
    return None


def _from_fast(
    fast: dict[str, Any], options: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, str]:
    """The files of a `tokenizer.json`, plain where its pipeline is OPT's own."""
    check_byte_level(fast)
    vocabulary = _full_vocabulary(fast)
    special = SpecialTokens(_prefix(fast), *_end_and_pad(vocabulary, options, config))
    if _is_plain(fast, vocabulary) and special == _opt_tokens(vocabulary):
        return _plain_files(vocabulary, merge_rules(fast))
    # transformers makes these special even where the file does not; new ones would have no embedding.
    named = [token for name in NAMED_TOKENS if (token := _content(options.get(name))) in vocabulary]
    with library_errors(TOKENIZER_FILE):
        backend = tokenizers.Tokenizer.from_str(json.dumps(fast))
        backend.add_special_tokens(named)
        return {TOKENIZER_FILE: backend.to_str(), SPECIAL_TOKENS_FILE: special.to_json()}


def _from_slow(
    vocabulary: dict[str, int],
    merges: list[str],
    options: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, str]:
    """The files of `vocab.json` and `merges.txt`; plain unless `tokenizer_config.json` differs."""
    if not options:
        return _plain_files(vocabulary, merges)
    pairs = [split_rule(rule) for rule in merges]
    with library_errors("the vocabulary with its merge rules"):
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    spaced = bool(options.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = decoders.ByteLevel()
    named = [token for name in NAMED_TOKENS if (token := _content(options.get(name))) in vocabulary]
    backend.add_special_tokens(list(dict.fromkeys(named)))
    start = _content(options.get("bos_token"))
    if options.get("add_bos_token") and start in vocabulary:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, vocabulary[start])]
        )
    return _from_fast(json.loads(backend.to_str()), options, config)


def _plain_files(vocabulary: Mapping[str, int], merges: list[str]) -> dict[str, str]:
    lines = "".join(f"{rule}\n" for rule in merges)
    return {VOCABULARY_FILE: json.dumps(vocabulary, ensure_ascii=False), MERGES_FILE: lines}


def _full_vocabulary(fast: Mapping[str, Any]) -> dict[str, int]:
    added = {token["content"]: token["id"] for token in fast.get("added_tokens", ())}
    return {**fast["model"]["vocab"], **added}


def _is_plain(fast: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
    """Whether vocabulary and merges under GPT-2's split give the same ids and text."""
    model, split = fast["model"], fast["pre_tokenizer"]
    added = fast.get("added_tokens", ())
    marks = ("lstrip", "rstrip", "single_word")
    return (
        fast.get("normalizer") is None
        and split["type"] == "ByteLevel"
        and not split.get("add_prefix_space", True)
        and split.get("use_regex", True)
        and {token["content"] for token in added} == {END_TOKEN, PAD_TOKEN}
        and all(token["special"] and not any(token[mark] for mark in marks) for token in added)
        and not any(model.get(name) for name in ("dropout", "byte_fallback", "ignore_merges"))
        # Where every byte is a token there is nothing unknown.
        and (not model.get("unk_token") or byte_alphabet().keys() <= vocabulary.keys())
    )


def _opt_tokens(vocabulary: Mapping[str, int]) -> SpecialTokens:
    return SpecialTokens(*(vocabulary[token] for token in (START_TOKEN, END_TOKEN, PAD_TOKEN)))


def _prefix(fast: Mapping[str, Any]) -> int | None:
    """The token that the file's post-processor puts before a text; `None` if it puts none."""
    model = {**fast["model"], "vocab": {"a": 0}, "merges": [], "unk_token": None}
    left_out = ("normalizer", "pre_tokenizer", "truncation", "padding")
    bare = {**fast, **dict.fromkeys(left_out), "model": model, "added_tokens": []}
    with library_errors("its post-processor or model"):
        encoding = tokenizers.Tokenizer.from_str(json.dumps(bare)).encode("a")
    prefix = encoding.ids[: encoding.special_tokens_mask.index(0)]
    if len(prefix) > 1:
        raise ValueError(f"it puts {len(prefix)} tokens before a text, {prefix}; only one is supported")
    return prefix[0] if prefix else None


def _end_and_pad(
    vocabulary: Mapping[str, int], options: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[int, int]:
    """The ids of the end and padding tokens: the model's, else the tokenizer's, else OPT's."""
    found = []
    for name, default in (("eos", END_TOKEN), ("pad", PAD_TOKEN)):
        token_id = config.get(f"{name}_token_id")
        if isinstance(token_id, list):  # several ends: the first is the text's own
            token_id = token_id[0]
        if token_id is None:
            token = _content(options.get(f"{name}_token")) or default
            if token not in vocabulary:
                raise ValueError(
                    f"Cannot find special token {token!r} in the vocabulary of {len(vocabulary)} "
                    f"tokens. Name it in config.json as {name}_token_id"
                )
            token_id = vocabulary[token]
        found.append(token_id)
    return found[0], found[1]


def _content(token: Any) -> str | None:
    """A special token in `tokenizer_config.json` is a string, a dictionary or absent."""
    return token.get("content") if isinstance(token, dict) else token
