"""Pieces, stop strings and offsets of one sequence, by example."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from runtime.engine.text.answer_text import AnswerText
from runtime.engine.text.stop_strings import StopMatch, StopStrings
from runtime.tokenization.tokenizer import Tokenizer
from runtime.tokenization.vocabulary import byte_alphabet

SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2}
IDS = {byte: i for i, byte in enumerate(byte_alphabet().values(), start=len(SPECIAL))}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token for each byte."""
    return Tokenizer({**SPECIAL, **{c: IDS[byte] for c, byte in byte_alphabet().items()}}, [])


def tokens(text: str | bytes) -> list[int]:
    return [IDS[byte] for byte in (text.encode() if isinstance(text, str) else text)]


def pieces(answer: AnswerText, ids: Sequence[int]) -> list[str]:
    found = []
    for token_id in ids:
        answer.push(token_id)
        found.append(answer.take())
    answer.finish()
    return [*found, answer.take()]


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    assert pieces(AnswerText(tokenizer), tokens("é€")) == ["", "é", "", "", "€", ""]


def test_an_unfinished_character_ends_as_a_replacement(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer)
    assert pieces(answer, tokens(b"a\xf0\x9f")) == ["a", "", "", "\ufffd"]
    assert answer.text == "a\ufffd"


def test_bytes_that_can_be_no_character_do_not_wait(tokenizer: Tokenizer) -> None:
    ids = tokens(b"\xed\xa0\x80\xf0\x80")
    assert pieces(AnswerText(tokenizer), ids) == [
        "", "\ufffd\ufffd", "\ufffd", "", "\ufffd\ufffd", "",
    ]  # fmt: skip
    assert tokenizer.decode(ids) == 5 * "\ufffd"


def test_special_tokens_have_no_text_and_break_no_character(tokenizer: Tokenizer) -> None:
    first, second = tokens("é")
    answer = AnswerText(tokenizer)
    assert pieces(answer, [2, first, 1, second, 2]) == ["", "", "", "é", "", ""]
    assert answer.offsets == [0, 0, 0, 0, 1]
    spelled = AnswerText(tokenizer, skip_special_tokens=False)
    assert "".join(pieces(spelled, [*tokens("a"), 2])) == "a</s>"


def test_what_may_become_a_stop_string_waits_and_no_more(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, StopStrings(["abac", "x"]))
    assert pieces(answer, tokens("ababaz")) == ["", "", "", "ab", "", "abaz", ""]
    assert answer.match is None


def test_what_waits_is_given_at_the_end(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, StopStrings(["abc"]))
    assert pieces(answer, tokens("zab")) == ["z", "", "", "ab"]


@pytest.mark.parametrize(("include", "text"), [(False, "ü"), (True, "üé\n")])
def test_a_stop_string_over_tokens_and_within_characters(
    tokenizer: Tokenizer, include: bool, text: str
) -> None:
    answer = AnswerText(tokenizer, StopStrings(["é\n"], include=include))
    assert "".join(pieces(answer, tokens("üé\nmore"))) == answer.text == text
    assert answer.match == StopMatch("é\n", start=1, end=3, tokens=5)
    assert len(answer.offsets) == 5  # what came after it is not counted


@pytest.mark.parametrize(
    ("stops", "stop", "text"),
    [
        (["abcd", "bc"], "bc", "a"),  # complete first
        (["abc", "ab"], "ab", ""),
        (["bc", "abc"], "bc", "a"),  # both complete with the c: the first in the list
        (["abc", "bc"], "abc", ""),
        (["cd", "cd"], "cd", "ab"),
    ],
)
def test_the_stop_string_that_is_complete_first_wins(
    tokenizer: Tokenizer, stops: list[str], stop: str, text: str
) -> None:
    answer = AnswerText(tokenizer, StopStrings(stops))
    assert "".join(pieces(answer, tokens("abcde"))) == text
    assert answer.match is not None
    assert answer.match.stop == stop


def test_a_stop_string_does_not_begin_in_the_prompt(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, StopStrings(["ab"]), prompt=tokens("xab a"))
    assert answer.take() == "xab a"
    assert pieces(answer, tokens("bcab")) == ["b", "c", "", "", ""]
    assert answer.match == StopMatch("ab", start=7, end=9, tokens=4)


def test_nor_within_a_character_of_the_prompts(tokenizer: Tokenizer) -> None:
    first, *rest = tokens("é")
    for prompt, text in (([first], "éa"), ([], "\ufffda")):
        answer = AnswerText(tokenizer, StopStrings(["éa", "é", "z"]), prompt=prompt)
        assert "".join([answer.take(), *pieces(answer, [*rest, *tokens("az")])]) == text
        assert answer.match is not None
        assert answer.match.stop == "z"


def test_the_first_tokens_end_no_text(tokenizer: Tokenizer) -> None:
    def found(min_tokens: int) -> StopMatch | None:
        answer = AnswerText(tokenizer, StopStrings(["ab"]), tokens("prompt"), min_tokens=min_tokens)
        pieces(answer, tokens("ab ab"))
        return answer.match

    assert [match and match.tokens for match in map(found, (0, 1, 2, 4, 5))] == [2, 2, 5, 5, None]


def test_offsets_say_which_text_is_a_tokens(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, prompt=[2, *tokens("p")])
    pieces(answer, tokens("aé") + tokens(b"\xe2") + tokens("b") + tokens(b"\xe2"))
    assert answer.text == "paé\ufffdb\ufffd"
    assert answer.offsets == [0, 0, 1, 2, 2, 3, 3, 5]
    ends = [*answer.offsets[1:], len(answer.text)]
    texts = [answer.text[start:end] for start, end in zip(answer.offsets, ends, strict=True)]
    assert texts == ["", "p", "a", "", "é", "", "\ufffdb", "\ufffd"]


def test_a_long_text_costs_each_token_the_same(tokenizer: Tokenizer) -> None:
    """Nothing that was given out is looked at again."""
    answer = AnswerText(tokenizer, StopStrings(["ab" * 20 + "c"]))
    for token_id in tokens("ab" * 5000):
        answer.push(token_id)
        answer.take()
        assert sum(map(len, answer._rest)) == answer.held <= 40


def test_a_character_that_begins_after_the_stop_string_is_no_part_of_the_text() -> None:
    letters = {**SPECIAL, **{c: IDS[byte] for c, byte in byte_alphabet().items()}}
    merged = Tokenizer({**letters, "aÃ": len(letters)}, ["a Ã"])
    assert merged.token_bytes(len(letters)) == b"a\xc3"
    answer = AnswerText(merged, StopStrings(["a"], include=True))
    assert pieces(answer, [*tokens("b"), len(letters)]) == ["b", "a", ""]
    assert answer.text == "ba"
