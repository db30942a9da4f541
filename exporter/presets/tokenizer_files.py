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

from exporter.errors import PresetError
from exporter.foreign_files import find_file
from exporter.presets.added_tokens import OPTIONS_FILE, TokenizerOptions, read_options
from exporter.presets.json_file import ids_of, read_json, read_json_if_there, serialized_config
from exporter.presets.pipeline_json import (
    GPT2_TOKEN,
    full_vocabulary,
    gpt2_pipeline,
    is_gpt2,
    start_template,
    with_added_tokens,
)
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
from runtime.tokenization.vocabulary import byte_alphabet, check_vocabulary, parse_merges

ASSETS = "assets/tokenizer"  # in a Keras preset folder
KERAS_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "sequence_length": lambda value: type(value) is int and value > 0,
    "add_prefix_space": lambda value: type(value) is bool,
    "unsplittable_tokens": lambda value: type(value) is list and all(type(t) is str for t in value),
}


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
    options = read_options(folder)
    fast, vocabulary, merges = (
        find_file(folder, name, PresetError) for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    path = fast or vocabulary
    try:
        if fast is not None:
            values = _own_pipeline(read_json(fast, MAX_TOKENIZER_BYTES), options, config)
            return _files(values, options, config)
        if vocabulary is not None and merges is not None:
            rules = parse_merges(read_text(merges, MAX_TOKENIZER_BYTES))
            ids = check_vocabulary(read_json(vocabulary, MAX_TOKENIZER_BYTES))
            if not options.is_given and {START_TOKEN, PAD_TOKEN} <= ids.keys():
                return _plain_files(ids, rules)  # nobody says more: OPT's own
            values = gpt2_pipeline(ids, rules, bool(options.values.get("add_prefix_space", False)))
            return _files(values, options, config, options.values.get("add_bos_token") is True)
    except PresetError:
        raise
    except KeyError as error:
        raise PresetError(f"{path} lacks the value {error}") from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise PresetError(f"{path}: {error}") from None
    return None


def _own_pipeline(
    values: dict[str, Any], options: TokenizerOptions, config: Mapping[str, Any]
) -> dict[str, Any]:
    """A `tokenizer.json`, checked; transformers' class for GPT-2 puts its own `add_prefix_space` in."""
    check_byte_level(values)
    step = values["pre_tokenizer"]
    if is_gpt2(options, config) and step["type"] == "ByteLevel":
        spaced = bool(options.values.get("add_prefix_space", False))
        return {**values, "pre_tokenizer": {**step, "add_prefix_space": spaced}}
    return values


def _files(
    values: dict[str, Any],
    options: TokenizerOptions,
    config: Mapping[str, Any],
    add_start: bool = False,
) -> dict[str, str]:
    """The files of a pipeline with all added tokens, plain where it is OPT's own.

    Args:
        values: of a `tokenizer.json`.
        options: what the older files say.
        config: `config.json`.
        add_start: whether `bos_token` goes before a text, which a `tokenizer.json` says itself.
    """
    if is_gpt2(options, config) and GPT2_TOKEN in full_vocabulary(values):
        options = options.with_defaults(
            dict.fromkeys(("bos_token", "eos_token", "unk_token"), GPT2_TOKEN)
        )
    values = with_added_tokens(values, options, config.get("vocab_size"))
    vocabulary = full_vocabulary(values)
    if add_start and (start := _named_id("bos_token", vocabulary, options)) is not None:
        values["post_processor"] = start_template(options.named["bos_token"].content, start)
    special = SpecialTokens(_prefix(values), *_end_and_pad(vocabulary, options, config))
    if _is_plain(values, vocabulary) and special == _opt_tokens(vocabulary):
        return _plain_files(vocabulary, merge_rules(values))
    text = json.dumps(values, ensure_ascii=False)
    return {TOKENIZER_FILE: text, SPECIAL_TOKENS_FILE: special.to_json()}


def _plain_files(vocabulary: Mapping[str, int], merges: list[str]) -> dict[str, str]:
    lines = "".join(f"{rule}\n" for rule in merges)
    return {VOCABULARY_FILE: json.dumps(vocabulary, ensure_ascii=False), MERGES_FILE: lines}


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
    vocabulary: Mapping[str, int], options: TokenizerOptions, config: Mapping[str, Any]
) -> tuple[int, int]:
    """The ids of the end and padding tokens: those that the tokenizer names, else the model's."""
    known = set(vocabulary.values())
    end, pad = (_named_id(name, vocabulary, options) for name in ("eos_token", "pad_token"))
    if end is None:
        end = next((i for i in ids_of(config.get("eos_token_id")) if i in known), None)
    if end is None:
        end = vocabulary.get(END_TOKEN)
    if end is None:
        raise ValueError(
            f"Cannot find special token {END_TOKEN!r} in the vocabulary of {len(vocabulary)} tokens. "
            f"Name the token that ends a text as eos_token in {OPTIONS_FILE}"
        )
    if pad is None:
        pad = next((i for i in ids_of(config.get("pad_token_id")) if i in known), None)
    return end, vocabulary.get(PAD_TOKEN, end) if pad is None else pad


def _named_id(name: str, vocabulary: Mapping[str, int], options: TokenizerOptions) -> int | None:
    token = options.named.get(name)
    return None if token is None else vocabulary.get(token.content)
