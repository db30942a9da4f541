"""Byte-level BPE as the values of a `tokenizer.json`, as transformers makes it of a folder's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from exporter.presets.added_tokens import AddedToken, TokenizerOptions
from runtime.tokenization.tokenizer_json import TOKENIZER_FILE, library_errors
from runtime.tokenization.vocabulary import MAX_TOKEN_ID, split_rule

GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")  # transformers' for OPT
GPT2_TOKEN = "<|endoftext|>"  # starts and ends texts where a folder does not say


def gpt2_pipeline(
    vocabulary: dict[str, int], merges: list[str], add_prefix_space: bool
) -> dict[str, Any]:
    """GPT-2's pipeline over a vocabulary and its merge rules."""
    pairs = [split_rule(rule) for rule in merges]
    with library_errors("the vocabulary with its merge rules"):
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    values: dict[str, Any] = json.loads(backend.to_str())
    return values


def is_gpt2(options: TokenizerOptions, config: Mapping[str, Any]) -> bool:
    """Whether transformers makes the tokenizer by its class for GPT-2."""
    name = options.values.get("tokenizer_class") or config.get("tokenizer_class") or GPT2_CLASSES[0]
    return name in GPT2_CLASSES


def full_vocabulary(values: Mapping[str, Any]) -> dict[str, int]:
    """Token string to id, with added tokens."""
    added = {token["content"]: token["id"] for token in values.get("added_tokens") or ()}
    return {**values["model"]["vocab"], **added}


def with_added_tokens(
    values: dict[str, Any], options: TokenizerOptions, rows: int | None = None
) -> dict[str, Any]:
    """A pipeline that finds the added tokens of `options` too, and has their special ones special.

    Ids are the vocabulary's, else the files'. A special token that has none yet is given the next one,
    as by transformers, if the model has a row for it.

    Args:
        values: of a `tokenizer.json`, its own added tokens included.
        options: see there.
        rows: of the model's table; `None` if there is no model.

    Raises:
        ValueError: if the files give a token the id of another.
    """
    vocabulary = values["model"]["vocab"]
    tokens, ids = {}, {}
    for item in values.get("added_tokens") or ():
        token = AddedToken.read(item, f"added_tokens in {TOKENIZER_FILE}", special=False)
        tokens[token.content], ids[token.content] = token, item["id"]
    for token_id, token in options.added.items():
        tokens[token.content] = token
        ids.setdefault(token.content, vocabulary.get(token.content, token_id))
    for content, token in options.special().items():
        if content not in ids:
            token_id = vocabulary.get(content)
            if token_id is None:
                token_id = max((*vocabulary.values(), *ids.values()), default=-1) + 1
                if token_id >= (MAX_TOKEN_ID + 1 if rows is None else rows):
                    continue
            tokens[content], ids[content] = token, token_id
        tokens[content] = replace(tokens[content], special=True)
    ordered = sorted(ids, key=ids.__getitem__)
    added = [tokens[content].to_json(ids[content]) for content in ordered if content]
    return _with_ids({**values, "added_tokens": added}, ids)


def _with_ids(values: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """The library counts added tokens on from the vocabulary's size, unless the vocabulary has them."""
    model = values["model"]
    found = _read(values)
    if wrong := _misplaced(found, ids):
        owners = {token_id: content for content, token_id in model["vocab"].items()}
        for content, token_id in wrong.items():
            if token_id in owners:
                raise ValueError(
                    f"the added token {content!r:.200} has the id {token_id}, which is that of "
                    f"{owners[token_id]!r:.200}; give each its own"
                )
        found = _read({**values, "model": {**model, "vocab": {**ids, **model["vocab"]}}})
        if wrong := _misplaced(found, ids):
            raise ValueError(f"added tokens have ids of others: {wrong!s:.200}; give each its own")
    read: dict[str, Any] = json.loads(found.to_str())
    return read


def _misplaced(found: tokenizers.Tokenizer, ids: Mapping[str, int]) -> dict[str, int]:
    return {content: i for content, i in ids.items() if content and found.token_to_id(content) != i}


def _read(values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    with library_errors(TOKENIZER_FILE):
        return tokenizers.Tokenizer.from_str(json.dumps(values))


def start_template(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor that puts a token before a text."""
    start = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, start, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
