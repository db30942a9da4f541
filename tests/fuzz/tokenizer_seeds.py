"""Small tokenizers of every kind that the `tokenizers` library runs: what generated ones begin with."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from runtime.tokenization.vocabulary import byte_alphabet

TOY_BUNDLE = Path(__file__).parents[1] / "data" / "toy_bundle"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
SPECIAL_IDS = {"start_token_id": 2, "end_token_id": 2, "pad_token_id": 1}
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def charsmap(letter: str, becomes: str) -> bytes:
    """A `Precompiled` normalizer's table that maps one ASCII letter: a double array of two nodes."""
    units = [0] * 512
    root, code = 256, ord(letter)
    units[0] = root << 10
    node = root ^ code
    units[node] = (1 << 10) | (1 << 8) | code  # a leaf one place from here
    units[node ^ 1] = 0  # where its text begins
    trie = struct.pack("<512I", *units)
    return struct.pack("<I", len(trie)) + trie + becomes.encode() + b"\0"


def precompiled(letter: str, becomes: str) -> dict[str, Any]:
    """That normalizer as a file has it."""
    table = base64.b64encode(charsmap(letter, becomes)).decode()
    return {"type": "Precompiled", "precompiled_charsmap": table}


def _byte_level(split: Any = None, normalizer: Any = None) -> dict[str, Any]:
    merges = [("h", "e"), ("he", "l"), ("Ġ", "he"), ("a", "a"), ("aa", "aa")]
    tokens = dict.fromkeys([*SPECIAL, *byte_alphabet(), *(a + b for a, b in merges)])
    fast = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    fast.pre_tokenizer = last if split is None else pre_tokenizers.Sequence([*split, last])
    if normalizer is not None:
        fast.normalizer = normalizer
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(SPECIAL)
    fast.add_tokens([tokenizers.AddedToken("é"), tokenizers.AddedToken("[x]", lstrip=True)])
    fast.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
    )
    return _values(fast)


def _values(fast: tokenizers.Tokenizer) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(fast.to_str())
    return values


def _word_piece() -> dict[str, Any]:
    tokens = [*SPECIAL, "[CLS]", "[SEP]", "he", "##l", "##o", "a", "b"]
    fast = tokenizers.Tokenizer(
        models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="<unk>")
    )
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    fast.post_processor = processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))
    return _values(fast)


def _unigram() -> dict[str, Any]:
    pieces = [*((t, 0.0) for t in SPECIAL), ("▁he", -1.0), ("l", -2.0), ("o", -2.5), ("▁", -3.0)]
    fast = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap("a", "b" * 50)), normalizers.Replace("  ", " ")]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    return _values(fast)


def _byte_fallback() -> dict[str, Any]:
    tokens = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), "▁", "h", "e", "he"]
    fast = tokenizers.Tokenizer(
        models.BPE(
            {t: i for i, t in enumerate(tokens)},
            [("h", "e")],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ")]
    fast.decoder = decoders.Sequence(steps)
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return _values(fast)


def _word_level() -> dict[str, Any]:
    tokens = [*SPECIAL, "hello", "a", "b"]
    fast = tokenizers.Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>")
    )
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.enable_padding(pad_id=1, pad_token="<pad>", length=8)
    fast.enable_truncation(8, stride=2)
    return _values(fast)


def seeds() -> dict[str, dict[str, Any]]:
    """A `tokenizer.json` of each kind, parsed."""
    split, regex = pre_tokenizers.Split, tokenizers.Regex
    digits = pre_tokenizers.Digits(individual_digits=True)
    marked = [split("SPL1T", "removed"), digits, split(regex(r"([!\"#\$%&'])\1*"), "isolated")]
    texts = [
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Strip(),
    ]
    return {
        "GPT-2": _byte_level(),
        "Galactica": _byte_level(marked, normalizers.NFKC()),
        "cl100k": _byte_level([split(regex(CL100K), "isolated")], normalizers.NFC()),
        "lower case": _byte_level(None, normalizers.Sequence(texts)),
        "BERT's texts": _byte_level([pre_tokenizers.Punctuation()], normalizers.BertNormalizer()),
        "WordPiece": _word_piece(),
        "Unigram": _unigram(),
        "byte fallback": _byte_fallback(),
        "WordLevel": _word_level(),
    }


def toy_files() -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merge rules of the toy bundle."""
    vocabulary = json.loads((TOY_BUNDLE / "vocabulary.json").read_text("utf-8"))
    return vocabulary, (TOY_BUNDLE / "merges.txt").read_text("utf-8").split("\n")


_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_REPLACE = {"type": "Replace"}
_NORMALIZERS: list[Any] = [
    *({"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt")),
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Prepend", "prepend": "x" * 3000},
    {"type": "ByteLevel"},
    {**_REPLACE, "pattern": {"String": "a"}, "content": "bb"},
    {**_REPLACE, "pattern": {"String": "a"}, "content": "a" * 1000},
    {**_REPLACE, "pattern": {"Regex": ""}, "content": "b"},
    {**_REPLACE, "pattern": {"Regex": "a*"}, "content": ""},
    {**_REPLACE, "pattern": {"Regex": r"\s+"}, "content": " "},
    {**_REPLACE, "pattern": {"String": ""}, "content": "xyz"},
    precompiled("a", "b" * 1000),
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
]
_PRE_TOKENIZERS: list[Any] = [
    *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")),
    {"type": "UnicodeScripts"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Metaspace", "replacement": "\U0001f600", "prepend_scheme": "first", "split": False},
    {"type": "Digits", "individual_digits": True},
    {"type": "Punctuation", "behavior": "Removed"},
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    *({"type": "FixedLength", "length": length} for length in (0, 1, 5, 2**63)),
    {**_SPLIT, "pattern": {"String": " "}, "behavior": "Removed"},
    {**_SPLIT, "pattern": {"String": ""}},
    {**_SPLIT, "pattern": {"Regex": ""}, "invert": True},
    {**_SPLIT, "pattern": {"Regex": "(a+)+b"}},
    {**_SPLIT, "pattern": {"Regex": "a*a*a*b"}, "behavior": "MergedWithNext"},
    {**_SPLIT, "pattern": {"Regex": "((a{1,99}){1,99}){1,99}"}, "behavior": "Contiguous"},
    {**_SPLIT, "pattern": {"Regex": "(" * 900 + ")" * 900}},
    {**_SPLIT, "pattern": {"Regex": "(?<n>a|\\g<n>b)"}},
    {**_SPLIT, "pattern": {"Regex": CL100K}, "behavior": "MergedWithPrevious"},
]
_ROBERTA = {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": True}
_TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
_PROCESSORS: list[Any] = [
    {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 2**31]},
    {**_ROBERTA, "sep": ["</s>", 2], "cls": ["<s>", 0]},
    {**_TEMPLATE, "single": [{"Sequence": {"id": "A", "type_id": 0}}]},
    {**_TEMPLATE, "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000},
]
_DECODERS: list[Any] = [
    *({"type": kind} for kind in ("ByteLevel", "Fuse", "ByteFallback")),
    {**_REPLACE, "pattern": {"String": "a"}, "content": "b" * 1000},
    {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
]
# Where steps go, the name of their list in a sequence, and some to put there: harmful ones among them.
PLACES = {
    "normalizer": ("normalizers", _NORMALIZERS),
    "pre_tokenizer": ("pretokenizers", _PRE_TOKENIZERS),
    "post_processor": ("processors", _PROCESSORS),
    "decoder": ("decoders", _DECODERS),
}
# Values of single settings.
SETTINGS: list[tuple[tuple[str, ...], Any]] = [
    (("padding",), {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
                    "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}),
    (("padding",), {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 2**40,
                    "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}),
    (("truncation",), {"direction": "Right", "max_length": 1, "strategy": "LongestFirst",
                       "stride": 2**40}),
    (("model", "dropout"), 1.0),
    (("model", "byte_fallback"), True),
    (("model", "ignore_merges"), True),
    (("model", "unk_token"), "<unk>"),
    (("model", "fuse_unk"), True),
    (("model", "type"), "Unigram"),
    (("model", "type"), "WordPiece"),
    (("model", "vocab", "new"), 2**31),
    (("model", "vocab", "new"), 2**24 - 1),
    (("model", "vocab", "x" * 5000), 5000),
    (("model", "merges"), []),
    (("added_tokens",), []),
]  # fmt: skip
