"""The tokenizer: ids, text back, streams of bytes, and what a vocabulary may lack."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.bundle import Bundle
from runtime.tokenization.tokenizer import Tokenizer, byte_alphabet
from tests.runtime.tokenization.pieces import pieces

ALPHABET = byte_alphabet()
SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
# Words, spaces, line ends, accents, emoji of several code points, and pieces of special tokens.
TRICKY = st.lists(
    st.sampled_from(
        [
            "</s>",
            "<pad>",
            "<s>",
            "<",
            "/s>",
            " ",
            "\n",
            "\r\n",
            "\t",
            "é",
            "😀",
            "👩‍👩‍👧",
            "the",
            "'s",
            "12",
        ]
    )
    | st.text(max_size=3)
).map("".join)
ANY_TEXT = st.text() | TRICKY


@pytest.fixture(scope="module")
def tokenizer(toy_bundle: Path) -> Tokenizer:
    return Tokenizer.from_folder(toy_bundle)


def small(merges: list[str] | None = None, **extra: int) -> Tokenizer:
    """All bytes and the special tokens, with the given merges' results as the next ids."""
    vocabulary = dict(SPECIAL)
    for token in [*sorted(ALPHABET), *(rule.replace(" ", "") for rule in merges or [])]:
        vocabulary.setdefault(token, len(vocabulary))
    return Tokenizer({**vocabulary, **extra}, merges or [])


# === The byte alphabet ===


def test_the_alphabet_is_that_of_gpt_2() -> None:
    assert sorted(ALPHABET.values()) == list(range(256))
    expected = {"!": 0x21, "~": 0x7E, "Ā": 0, "ĉ": 9, "Ċ": 10, "Ġ": 32, "ġ": 127, "ł": 160, "Ń": 173}
    assert {character: ALPHABET[character] for character in expected} == expected
    assert ALPHABET["é"] == 0xE9


# === Text to ids ===


def test_ids_follow_merges_and_words(tokenizer: Tokenizer) -> None:
    found = [tokenizer.id_to_token(i) for i in tokenizer.encode("The quick king\n\ntheir")]
    assert found == ["T", "he", "Ġquick", "Ġ", "k", "ing", "Ċ", "Ċ", "t", "he", "i", "r"]


def test_merges_go_by_rank_and_not_by_length() -> None:
    """`b c` comes first, so `abc` never becomes `ab` + `c`."""
    ranked = small(["b c", "a b", "ab c"])
    assert [ranked.id_to_token(i) for i in ranked.encode("abc ab")] == ["a", "bc", "Ġ", "ab"]


def test_merges_do_not_cross_words() -> None:
    """`e Ġ` would join across the space that begins the next word."""
    crossing = small(["e Ġ", "Ċ Ċ"])
    assert [crossing.id_to_token(i) for i in crossing.encode("e e")] == ["e", "Ġ", "e"]
    assert [crossing.id_to_token(i) for i in crossing.encode("e\n\nHe")] == ["e", "Ċ", "Ċ", "H", "e"]
    assert [crossing.id_to_token(i) for i in crossing.encode("e\n\n\nH")][1:3] == ["ĊĊ", "Ċ"]


def test_no_start_token_and_no_prefix_space(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.encode("he") == [tokenizer.token_to_id("he")]
    assert tokenizer.encode(" he") == [tokenizer.token_to_id("Ġ"), tokenizer.token_to_id("he")]


def test_special_tokens_in_text(tokenizer: Tokenizer) -> None:
    t, h = tokenizer.token_to_id("t"), tokenizer.token_to_id("h")
    assert tokenizer.encode("t</s>h<pad>") == [t, 2, h, 1]
    assert tokenizer.encode("<s>") == [tokenizer.token_to_id(c) for c in "<s>"]


@given(st.lists(ANY_TEXT, max_size=4))
def test_a_batch_is_its_texts(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_special_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.start_token_id, tokenizer.end_token_id, tokenizer.pad_token_id) == (2, 2, 1)
    assert tokenizer.special_token_ids == (1, 2)
    assert tokenizer.vocabulary_size() == 4 + 256 + 15


# === Ids to text ===


@given(ANY_TEXT)
@example("a\x00b\u2028c\ufeff\ufffd")
def test_decode_undoes_encode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(ANY_TEXT)
def test_decode_undoes_encode_without_merges(text: str) -> None:
    plain = Tokenizer({**SPECIAL, **{c: 4 + i for i, c in enumerate(ALPHABET)}}, [])
    assert plain.decode(plain.encode(text)) == text


IDS = st.lists(st.integers(0, 299), max_size=30)  # 275 and above are no tokens


@given(IDS, st.booleans())
def test_a_stream_is_decode_and_gives_whole_characters(
    tokenizer: Tokenizer, ids: list[int], skip: bool
) -> None:
    found = "".join(pieces(tokenizer, ids, skip_special_tokens=skip))
    assert found == tokenizer.decode(ids, skip_special_tokens=skip)
    kept = [i for i in ids if not (skip and i in (1, 2))]
    data = b"".join(tokenizer.token_bytes(i) for i in kept)
    assert tokenizer.decode(ids, skip_special_tokens=skip) == data.decode("utf-8", errors="replace")


@given(ANY_TEXT)
def test_a_stream_of_text_never_shows_part_of_a_character(tokenizer: Tokenizer, text: str) -> None:
    *found, end = pieces(tokenizer, tokenizer.encode(text), skip_special_tokens=False)
    for shown in itertools.accumulate(found):
        assert text.startswith(shown)
    assert "".join(found) == text
    assert end == ""


def test_a_character_of_four_bytes_comes_with_its_last() -> None:
    plain = small()
    assert pieces(plain, plain.encode("é😀")) == ["", "é", "", "", "", "😀", ""]


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    plain = small()
    assert pieces(plain, plain.encode("a😀")[:3]) == ["a", "", "", "\ufffd"]
    assert plain.decode(plain.encode("a😀")[:3]) == "a\ufffd"


def test_a_skipped_token_does_not_break_a_character() -> None:
    plain = small()
    first, second = plain.encode("é")
    assert plain.decode([first, 1, second], skip_special_tokens=True) == "é"
    assert plain.decode([first, 1, second]) == "\ufffd<pad>\ufffd"


def test_special_tokens_are_spelled_or_left_out(tokenizer: Tokenizer) -> None:
    ids = [2, *tokenizer.encode("the"), 2, 1, 1]
    assert tokenizer.decode(ids) == "</s>the</s><pad><pad>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the"


def test_rows_of_the_embedding_beyond_the_vocabulary_stand_for_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(299) == b""
    assert tokenizer.decode([*tokenizer.encode("he"), 299, *tokenizer.encode("re")]) == "here"


def test_an_added_token_in_plain_text() -> None:
    added = small(**{"<my token>": 500})
    assert added.token_bytes(500) == b"<my token>"
    assert added.decode([500]) == "<my token>"


def test_ids_and_tokens(tokenizer: Tokenizer) -> None:
    for token, token_id in tokenizer.vocabulary.items():
        assert tokenizer.token_to_id(token) == token_id
        assert tokenizer.id_to_token(token_id) == token
    with pytest.raises(ValueError, match=r"token id 275 is not in the vocabulary \(ids 0 to 274\)"):
        tokenizer.id_to_token(275)
    with pytest.raises(ValueError, match="token id -1 is not in the vocabulary"):
        tokenizer.id_to_token(-1)
    with pytest.raises(ValueError, match="token 'nope' is not in the vocabulary"):
        tokenizer.token_to_id("nope")


# === Vocabularies that lack something ===


@pytest.fixture
def gaps() -> Tokenizer:
    """The vocabulary of Keras's own example: merges pass through tokens that it leaves out."""
    merges = ["Ġ q", "u i", "c k", "ui ck", "Ġq uick", "Ġ f", "o x", "Ġf ox"]
    return Tokenizer({"<pad>": 1, "</s>": 2, "Ġquick": 4, "Ġfox": 5}, merges)


def test_merges_may_pass_through_what_the_vocabulary_lacks(gaps: Tokenizer) -> None:
    assert gaps.encode("The quick fox jumped.") == [4, 5]
    assert gaps.encode_batch([" quick", "ui", " fox quick", ""]) == [[4], [], [5, 4], []]
    assert gaps.decode([4, 5]) == " quick fox"
    assert gaps.vocabulary_size() == 4


def test_a_merged_token_that_the_library_panics_over() -> None:
    """Both of its parts have ids, it has none, and it is longer in bytes than in characters."""
    some = Tokenizer({"<pad>": 1, "</s>": 2, "Ġ": 3, "q": 4}, ["Ġ q"])
    assert some.encode("q q") == [4]
    assert some.encode("q ") == [4, 3]


@given(ANY_TEXT)
def test_passing_tokens_never_come_out(text: str) -> None:
    merges = ["Ġ t", "h e", "Ġt he", "Ã ©"]
    some = Tokenizer({"<pad>": 1, "</s>": 2, "Ġthe": 9, "Ã": 6, "e": 7}, merges)
    assert set(some.encode(text)) <= {1, 2, 9, 6, 7}


@pytest.mark.parametrize("token", ["</s>", "<pad>"])
def test_a_vocabulary_needs_the_special_tokens(token: str) -> None:
    vocabulary = {other: i for other, i in SPECIAL.items() if other != token}
    with pytest.raises(ValueError, match=f"Cannot find special token '{token}' in the vocabulary of 3"):
        Tokenizer(vocabulary, [])


@pytest.mark.parametrize("token_id", [-1, 1.5, "7", None, True])
def test_ids_are_whole_numbers(token_id: Any) -> None:
    with pytest.raises(ValueError, match=r"the vocabulary maps 'a' to .* not to an id"):
        Tokenizer({**SPECIAL, "a": token_id}, [])


def test_tokens_are_strings() -> None:
    with pytest.raises(ValueError, match="the vocabulary maps 7 to 8, not to an id"):
        Tokenizer({**SPECIAL, 7: 8}, [])  # type: ignore[dict-item]


def test_ids_are_given_once() -> None:
    with pytest.raises(ValueError, match="the vocabulary gives one id to two tokens"):
        Tokenizer({**SPECIAL, "a": 3}, [])


@pytest.mark.parametrize("vocabulary", [["a"], None, 5])
def test_a_vocabulary_is_a_mapping(vocabulary: Any) -> None:
    with pytest.raises(ValueError, match="the vocabulary must map token strings to ids, got"):
        Tokenizer(vocabulary, [])


@pytest.mark.parametrize("rule", ["ab", "a b c", "a ", " b"])
def test_a_merge_rule_is_two_tokens(rule: str) -> None:
    with pytest.raises(ValueError, match=f"a merge rule must be two tokens .* got '{rule}'"):
        Tokenizer(SPECIAL, ["a b", rule])


# === Files ===


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.save(tmp_path) == ["vocabulary.json", "merges.txt"]
    again = Tokenizer.from_folder(tmp_path)
    assert again.vocabulary == tokenizer.vocabulary
    assert again.merges == tokenizer.merges
    assert again.encode("Zoë, the quick café 😀") == tokenizer.encode("Zoë, the quick café 😀")


def test_the_bundle_has_the_tokenizer(bundle: Bundle, tokenizer: Tokenizer) -> None:
    assert bundle.tokenizer is not None
    assert bundle.tokenizer.vocabulary == tokenizer.vocabulary


@pytest.mark.parametrize("as_type", [str, Path])
def test_files_as_gpt_2_writes_them(tmp_path: Path, as_type: Any) -> None:
    """A version line, Windows line ends and an empty last line."""
    vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocabulary.write_text(json.dumps({**SPECIAL, "h": 4, "e": 5, "he": 6}), "utf-8")
    merges.write_bytes(b"#version: 0.2\r\nh e\r\n\r\n")
    loaded = Tokenizer(as_type(vocabulary), as_type(merges))
    assert loaded.merges == ["h e"]
    assert loaded.encode("hehhe") == [6, 4, 6]


def test_a_rule_may_begin_with_a_hash() -> None:
    hashes = small(["# #", "## #"])
    assert [hashes.id_to_token(i) for i in hashes.encode("####")] == ["##", "##"]
    assert [hashes.id_to_token(i) for i in hashes.encode("###")] == ["###"]


def test_bad_vocabulary_files(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text("{", "utf-8")
    with pytest.raises(ValueError, match=r"the vocabulary in .*vocabulary\.json is not JSON"):
        Tokenizer(path, [])
    path.write_text("[]", "utf-8")
    with pytest.raises(ValueError, match=r"vocabulary\.json must map token strings to ids, got list"):
        Tokenizer(path, [])
    with pytest.raises(FileNotFoundError):
        Tokenizer(tmp_path / "missing.json", [])
