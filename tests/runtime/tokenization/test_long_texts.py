"""Long texts: refused by their bytes where they cannot fit, encoded in parts, ended in the middle."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.tokenization import tokenizer as module
from runtime.tokenization.pipeline import bpe_pipeline
from runtime.tokenization.tokenizer import MAX_TEXT_BYTES, SHORT_CHARACTERS, Tokenizer
from runtime.tokenization.vocabulary import parse_merges
from tests.runtime.tokenization.test_steps import BYTE_LEVEL, file, load, sequence

LONG = 20 * 10**6


@pytest.fixture(scope="module")
def tokenizer(toy_bundle: Path) -> Tokenizer:
    return Tokenizer.from_folder(toy_bundle)


def toy(toy_bundle: Path, **options: Any) -> Tokenizer:
    """The toy bundle's tokenizer with other options."""
    vocabulary = json.loads((toy_bundle / "vocabulary.json").read_text("utf-8"))
    merges = parse_merges((toy_bundle / "merges.txt").read_text("utf-8"))
    extra = {token: 400 + i for i, token in enumerate(options.pop("extra", ()))}
    pipeline = bpe_pipeline({**vocabulary, **extra}, merges, **options)
    return Tokenizer.deferred(lambda: pipeline)


# === In parts ===

PIECES = [
    "</s>",
    "<pad>",
    " ",
    "  ",
    "\n",
    "\t",
    "\x1c",
    "\u3000",
    "\xa0",
    "é",
    "世",
    "the quick",
    "'s",
]
TEXT = st.lists(st.sampled_from([*PIECES, "12", "!", ".", "a b"]) | st.text(max_size=3)).map("".join)


@pytest.fixture(scope="module", params=[1, 2, 3, 7])
def small_parts(request: pytest.FixtureRequest) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_CHARACTERS", request.param)
        yield


@pytest.fixture(scope="module", params=["OPT's", "with a prefix space", "with other tokens"])
def cut_tokenizer(request: pytest.FixtureRequest, toy_bundle: Path) -> Tokenizer:
    options: dict[str, dict[str, Any]] = {
        "OPT's": {},
        "with a prefix space": {"add_prefix_space": True},
        "with other tokens": {"extra": ["a b", "!"], "unsplittable": ["</s>", "<pad>", "a b", "!"]},
    }
    return toy(toy_bundle, **options[request.param])


@given(st.lists(TEXT, max_size=3))
@example(["the quick  </s> fox \n\n  jumped", "", " a", "a  "])
def test_parts_give_the_ids_of_the_whole(
    small_parts: None, cut_tokenizer: Tokenizer, texts: list[str]
) -> None:
    backend = cut_tokenizer._pipeline.backend
    whole = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert cut_tokenizer.encode_batch(texts) == whole
    for enough in (1, 3):
        some = cut_tokenizer.encode_batch(texts, enough=enough)
        assert [ids[:enough] for ids in some] == [ids[:enough] for ids in whole]


def test_long_texts_are_cut(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_CHARACTERS", 8)
    assert list(tokenizer._parts("the quick king's  ring it")) == ["the quick", " king's  ring", " it"]
    assert list(tokenizer._parts("thequickkingandring")) == ["thequickkingandring"]


def test_tokens_with_spaces_are_not_cut(toy_bundle: Path) -> None:
    spaced = toy(toy_bundle, extra=["a b"], unsplittable=["</s>", "<pad>", "a b"])
    assert not spaced._pipeline.splits_at_spaces
    assert toy(toy_bundle)._pipeline.splits_at_spaces


def test_the_rest_of_a_text_may_be_left_out(tokenizer: Tokenizer) -> None:
    text = "the quick " * 10**6
    started = time.monotonic()
    ids = tokenizer.encode_batch([text], enough=20)[0]
    assert 20 <= len(ids) < 10**5
    assert ids[:20] == tokenizer.encode("the quick " * 20)[:20]
    assert time.monotonic() - started < 5


# === Refused by bytes ===


@pytest.mark.parametrize("character", ["a", "é", "世", "😀", " ", "\n"])
def test_what_cannot_fit_costs_nothing(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, character: str
) -> None:
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *_: pytest.fail("encoded"))
    text = character * LONG
    _ = tokenizer._pipeline.bytes_per_token
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(ValueError, match="20,000,000 bytes or more, and 2048 tokens stand for at most"):
        tokenizer.check_size(text, 2048)
    taken, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1  # it took a minute
    assert peak < 10**5


def test_a_text_of_the_longest_token_fits(tokenizer: Tokenizer) -> None:
    """`Ġquick` stands for six bytes, and no token for more but `<pad>`."""
    longest = int(tokenizer._pipeline.bytes_per_token)
    assert longest == len(" quick")
    text = " quick" * 1000
    assert len(tokenizer.encode(text)) == 1000
    tokenizer.check_size(text, 1000)
    with pytest.raises(
        ValueError, match=r"6,001 bytes or more, and 1000 tokens stand for at most 6,000"
    ):
        tokenizer.check_size(text + "a", 1000)
    tokenizer.check_size("é" * 6000, 2000)
    with pytest.raises(ValueError, match=r"12,002 bytes or more"):
        tokenizer.check_size("é" * 6001, 2000)


STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
REMOVE = {"type": "Split", "pattern": {"String": "x"}, "behavior": "Removed", "invert": False}
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"normalizer": STRIP}, "a" + " " * 50_000),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": ""}}, "x" * 50_000),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "x+"}, "content": "y"}}, "x" * 50_000),
        ({"normalizer": {"type": "StripAccents"}}, "a" + "\u0301" * 20_000),
        ({"normalizer": {"type": "NFKC"}}, "\U0001d400" * 6000),
        ({"normalizer": {"type": "NFC"}}, "\u1112\u1161\u11ab" * 2000),
        ({"normalizer": {"type": "Lowercase"}}, "\u212a" * 6000),
        ({"normalizer": {"type": "Nmt"}}, "a" + "\u0001" * 50_000),
        ({"pre_tokenizer": sequence(REMOVE, BYTE_LEVEL, name="pretokenizers")}, "x" * 50_000),
        (
            {"added_tokens": [{"id": 300, "content": "[x]", **FLAGS, "lstrip": True}]},
            " " * 50_000 + "[x]",
        ),
        ({"added_tokens": [{"id": 300, "content": "[x]" * 20, **FLAGS}]}, "[x]" * 4000),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_no_text_that_fits_is_refused(parts: dict[str, Any], text: str) -> None:
    tokenizer = load(file(**parts))
    needed = len(tokenizer.encode(text))
    assert needed * 2 < len(text.encode())
    tokenizer.check_size(text, max(1, needed))


def test_a_vocabulary_without_all_bytes_leaves_text_out() -> None:
    merges = ["Ġ q", "u i", "c k", "ui ck", "Ġq uick"]
    gaps = Tokenizer({"<pad>": 1, "</s>": 2, "Ġquick": 4}, merges)
    text = "z" * 50_000 + " quick"
    assert gaps.encode(text) == [4]
    gaps.check_size(text, 1)


def test_memory_is_bounded_where_bytes_tell_nothing() -> None:
    tokenizer = load(file(normalizer={"type": "NFKC"}, pre_tokenizer=sequence(
        REMOVE, BYTE_LEVEL, name="pretokenizers")))  # fmt: skip
    most = MAX_TEXT_BYTES // 11
    tokenizer.check_size("x" * most, 1)
    with pytest.raises(ValueError, match=f"and 1 tokens stand for at most {most:,}"):
        tokenizer.check_size("x" * (most + 1), 1)


def test_short_texts_are_left_to_the_tokenizer(tokenizer: Tokenizer) -> None:
    tokenizer.check_size("a" * SHORT_CHARACTERS, 1)


# === Ended in the middle ===


class Ended(Exception):  # noqa: N818 (it is none)
    """What a check raises."""


def test_texts_are_looked_after_one_by_one(tokenizer: Tokenizer) -> None:
    checks: list[int] = []

    def check() -> None:
        checks.append(1)
        if len(checks) > 3:
            raise Ended

    texts = ["the quick king " * 3000] * 1000
    started = time.monotonic()
    with pytest.raises(Ended):
        tokenizer.encode_batch(texts, check)
    assert time.monotonic() - started < 10


def test_a_slow_expression_is_left_to_itself() -> None:
    """It takes the third power of the text's length, in one call of the library."""
    step = {"type": "Split", "pattern": {"Regex": "a+a+b"}, "behavior": "Isolated", "invert": False}
    slow = load(file(pre_tokenizer=sequence(step, BYTE_LEVEL, name="pretokenizers")))
    event = threading.Event()

    def check() -> None:
        if event.is_set():
            raise Ended

    threading.Timer(0.2, event.set).start()
    started = time.monotonic()
    with pytest.raises(Ended):
        slow.encode_batch(["a" * 1500], check)
    assert time.monotonic() - started < 2


def test_errors_come_out_of_the_other_thread() -> None:
    steps = sequence({"type": "FixedLength", "length": 0}, BYTE_LEVEL, name="pretokenizers")
    with pytest.raises(ValueError, match="the text, or the tokenizer for it, is not valid: chunk size"):
        load(file(pre_tokenizer=steps)).encode_batch(["abc"], lambda: None)
