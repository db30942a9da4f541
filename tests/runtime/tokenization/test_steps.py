"""Steps of a `tokenizer.json`: what each makes of a text at the most, and which are refused."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from runtime.tokenization.steps import MAX_PATTERN, NORMALIZERS, Effect, steps_effect
from runtime.tokenization.tokenizer import Tokenizer
from runtime.tokenization.tokenizer_json import library_errors
from runtime.tokenization.vocabulary import byte_alphabet
from tests.fuzz.tokenizer_seeds import precompiled

SPECIAL = {"start_token_id": None, "end_token_id": 2, "pad_token_id": 1}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
PLAIN = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt")
STEPS: list[dict[str, Any]] = [
    *({"type": kind} for kind in (*PLAIN, "ByteLevel")),
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Prepend", "prepend": "▁x"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "bcd"},
    {"type": "Replace", "pattern": {"String": "ab"}, "content": "é"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": "[ab]*"}, "content": "é"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": True,
        "lowercase": True,
    },
]
BERT = STEPS[-1]


def file(**parts: Any) -> dict[str, Any]:
    """A `tokenizer.json` over all bytes with some parts put in."""
    vocabulary = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", *byte_alphabet()])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return {**json.loads(backend.to_str()), **parts}


def load(values: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_files(
        {"tokenizer.json": json.dumps(values), "special_tokens.json": json.dumps(SPECIAL)}
    )


def library(step: Mapping[str, Any]) -> Any:
    return tokenizers.Tokenizer.from_str(json.dumps(file(normalizer=step))).normalizer


def size(text: str) -> int:
    return len(text.encode())


# === What normalizers make of a text ===


@pytest.mark.parametrize("step", [*({"type": kind} for kind in (*PLAIN, "ByteLevel")), BERT], ids=str)
def test_no_character_becomes_more_or_less_than_said(step: dict[str, Any]) -> None:
    """All planes that have characters with another form, one by one."""
    effect = NORMALIZERS[step["type"]](step)
    run = library(step).normalize_str
    most = least = 1.0
    for code in (*range(0xD800), *range(0xE000, 0x2FA20)):
        character = chr(code)
        before, after = size(character), size(run(character))
        most = max(most, after / before)
        least = max(least, before / after if after else math.inf)
    assert most <= effect.growth
    assert least <= effect.shrink
    if step is not BERT:
        assert most == effect.growth
    if step["type"] in ("NFKC", "NFKD", "Lowercase"):
        assert least == effect.shrink


def test_no_composition_is_shorter_than_said() -> None:
    """Of the longest spellings of each character's parts."""
    longest: dict[str, int] = {}
    for code in (*range(0xD800), *range(0xE000, 0x2FA20)):
        form = unicodedata.normalize("NFKD", chr(code))
        if len(form) == 1:
            longest[form] = max(longest.get(form, 0), size(chr(code)))
    for code in (*range(0xD800), *range(0xE000, 0x2FA20)):
        parts = unicodedata.normalize("NFD", chr(code))
        spelled = sum(longest.get(part, size(part)) for part in parts)
        for form in ("NFC", "NFKC"):
            assert spelled <= 4 * size(unicodedata.normalize(form, parts))


TEXTS = st.text(st.sampled_from("ab é\ufdfa\u0130가\u0301\u0323\u212b\U0001d400Ａ世\n\t▁"), max_size=30)


@given(st.lists(st.sampled_from(STEPS), max_size=3), TEXTS | st.text(max_size=10))
def test_sequences_multiply(steps: list[dict[str, Any]], text: str) -> None:
    effect = Effect()
    for step in steps:
        effect = effect.then(NORMALIZERS[step["type"]](step))
    try:
        with library_errors("it"):  # some expressions make it panic
            after = library({"type": "Sequence", "normalizers": steps}).normalize_str(text)
    except ValueError:
        return
    assert size(after) <= effect.growth * size(text) + (not text) * 20
    if not math.isinf(effect.shrink):
        assert size(text) <= effect.shrink * size(after)


# === What is refused ===


def refused(message: str, **parts: Any) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load(file(**parts))
    assert len(str(raised.value)) < 500


THOUSAND = precompiled("a", "b" * 1000)
REPEATS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}


def sequence(*steps: Any, name: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def test_the_table_is_as_harmful_as_it_is_said_to_be() -> None:
    from tests.fuzz.tokenizer_seeds import charsmap

    assert normalizers.Precompiled(charsmap("a", "b" * 1000)).normalize_str("xa") == "x" + "b" * 1000


@pytest.mark.parametrize(
    "step",
    [
        THOUSAND,
        sequence(THOUSAND, THOUSAND, THOUSAND),
        sequence(sequence({"type": "NFC"}, sequence(THOUSAND))),
        {"type": "Precompiled", "precompiled_charsmap": ""},
    ],
)
def test_tables_are_not_taken(step: dict[str, Any]) -> None:
    refused(r"tokenizer\.json has a step 'Precompiled', and known ones are NFC, NFD", normalizer=step)


@pytest.mark.parametrize(
    ("steps", "growth"),
    [
        ([REPEATS, REPEATS], "2.5e\\+03"),
        ([sequence(REPEATS, sequence(REPEATS))], "2.5e\\+03"),
        ([{"type": "Prepend", "prepend": "x" * 64}], "65"),
        ([{"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y" * 32}], "65"),
        ([{"type": "Replace", "pattern": {"String": ""}, "content": "y" * 32}], "65"),
        ([{"type": "NFKC"}, {"type": "NFKD"}], "121"),
        ([{"type": "ByteLevel"}] * 7, "128"),
        ([{"type": "NFD"}] * 4, "81"),
        ([{"type": "Lowercase"}] * 11, "86.5"),
        ([BERT] * 3, "422"),
    ],
)
def test_growth_is_bounded(steps: list[Any], growth: str) -> None:
    refused(f"makes up to {growth} bytes of one byte of text, at most 64", normalizer=sequence(*steps))


def test_pre_tokenizers_lengthen_text_too() -> None:
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    steps = sequence(*[spaces] * 3, BYTE_LEVEL, name="pretokenizers")
    refused("makes up to 512 bytes of one byte of text, at most 64, by 0 norm", pre_tokenizer=steps)
    spaced = {**BYTE_LEVEL, "add_prefix_space": True}
    assert load(file(pre_tokenizer=spaced))._pipeline.effect.growth == 2


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("normalizer", "normalizers"),
        ("pre_tokenizer", "pretokenizers"),
        ("post_processor", "processors"),
    ],
)
def test_steps_are_known_and_few(place: str, name: str) -> None:
    last = [BYTE_LEVEL] if place == "pre_tokenizer" else []
    unknown = {"type": "Sequence", name: [{"type": "Another" * 1000}, *last]}
    refused("'AnotherAnother.*, and known ones are", **{place: unknown})
    many = {"type": "Sequence", name: [{"type": "Sequence", name: []}] * 40}
    refused(f"tokenizer.json has more than 32 {name}", **{place: many})


def test_a_text_is_in_its_template_once() -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [TEXT] * 5,
        "pair": [TEXT],
        "special_tokens": {},
    }
    values = file(post_processor=template)
    found = tokenizers.Tokenizer.from_str(json.dumps(values)).encode("abc", add_special_tokens=False)
    assert len(found.ids) == 15  # what would be taken
    refused("has a template with 5 places for one text", post_processor=template)
    refused("has a template with 0 places", post_processor={**template, "single": []})
    inner = {"type": "Sequence", "processors": [template]}
    refused("has a template with 5 places", post_processor=inner)
    assert len(load(file(post_processor={**template, "single": [TEXT]})).encode("abc")) == 3


@pytest.mark.parametrize("step", [{"type": "ByteFallback"}, {"type": "Fuse"}, REPEATS])
def test_decoders_are_of_bytes(step: dict[str, Any]) -> None:
    refused(f"is not byte-level BPE.*its decoder {step['type']}", decoder=step)


def test_regular_expressions_are_short() -> None:
    def split(pattern: str) -> dict[str, Any]:
        step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        return sequence(step, BYTE_LEVEL, name="pretokenizers")

    load(file(pre_tokenizer=split("a" * MAX_PATTERN)))
    message = (
        f"has a regular expression of {MAX_PATTERN + 1} characters, and one may have {MAX_PATTERN}"
    )
    refused(message, pre_tokenizer=split("a" * (MAX_PATTERN + 1)))
    pattern = {"type": "Replace", "pattern": {"Regex": "a" * (MAX_PATTERN + 1)}, "content": ""}
    refused(message, normalizer=pattern)


def test_added_tokens_are_not_megabytes() -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": 300 + i, "content": f"{i}" + "x" * 2**16, **flags} for i in range(16)]
    message = "the added tokens in tokenizer.json have .* bytes, and may have 1048576"
    refused(message, added_tokens=added)


def test_padding_and_truncation_are_not_run() -> None:
    # A stranger's may be 10**9; so much memory would end this process and not fail the test.
    fixed = {"Fixed": 10**5}
    padding = {"strategy": fixed, "direction": "Right", "pad_to_multiple_of": 10**5, "pad_id": 1}
    padding |= {"pad_type_id": 0, "pad_token": "<pad>"}
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 2**40}
    tokenizer = load(file(padding=padding, truncation=truncation))
    assert len(tokenizer.encode("abc")) == 3
    saved = json.loads(tokenizer.files()["tokenizer.json"])
    assert saved["padding"] is saved["truncation"] is None


def test_a_panic_of_the_library_is_a_sentence() -> None:
    steps = sequence({"type": "FixedLength", "length": 0}, BYTE_LEVEL, name="pretokenizers")
    with pytest.raises(ValueError, match="the text, or the tokenizer for it, is not valid: chunk size"):
        load(file(pre_tokenizer=steps)).encode("abc")


def test_what_may_leave_text_out_is_known() -> None:
    def shrink(step: dict[str, Any]) -> float:
        return steps_effect([], [step]).shrink

    split = {"type": "Split", "pattern": {"String": "x"}, "invert": False}
    assert shrink({**split, "behavior": "Isolated"}) == 1
    assert shrink({**split, "behavior": "Removed"}) == math.inf
    assert shrink({"type": "Punctuation", "behavior": "Removed"}) == math.inf
    assert shrink({"type": "Whitespace"}) == shrink({"type": "CharDelimiterSplit"}) == math.inf
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for strips in ("lstrip", "rstrip"):
        added = [{"id": 300, "content": "[x]", **flags, strips: True}]
        assert load(file(added_tokens=added))._pipeline.effect.shrink == math.inf


@pytest.mark.parametrize(("content", "shrink"), [("", math.inf), ("b", 3), ("bc", 1.5), ("abcd", 1)])
def test_what_a_replacement_may_shorten_is_known(content: str, shrink: float) -> None:
    step = {"type": "Replace", "pattern": {"String": "abc"}, "content": content}
    assert steps_effect([step], []).shrink == shrink
