"""What a constraint takes from logits: of single texts, of beams, with and without stop tokens."""

from __future__ import annotations

import re

import numpy as np
import pytest

from runtime.errors import StructuredOutputError
from runtime.structured import constraint as module
from runtime.structured.constraint import GrammarConstraint
from runtime.structured.description import StructuredOutput
from runtime.structured.grammar import Grammar, GrammarCompiler
from runtime.tokenization.tokenizer import Tokenizer
from tests.runtime.structured.sampling import END, ROWS, allowed, compiled, draw, tiny_tokenizer

pytest.importorskip("llguidance")

REGEXES = [
    r"ab?c+",
    r"(yes|no|maybe)( please)?",
    r"[0-9]{1,3}(\.[0-9]{1,3}){3}",
    r"[A-Z][a-z]{1,8}( [A-Z][a-z]{1,8}){0,3}\.",
    r"/[^/\n]{1,5}/\d+",
    r"[α-ω]{2,4}\s?😀{1,2}",
    r"(?i)select [a-z_]{1,9} from t",
    r'"(\\["\\]|[^"\\\n]){0,9}"',
    r"^x{3,5}$",
    r"(a|b|)(c|d)\t\x41",
]


@pytest.mark.parametrize("pattern", REGEXES)
def test_texts_match_a_regular_expression(pattern: str) -> None:
    tokenizer = tiny_tokenizer()
    grammar = compiled(regex=pattern)
    complete = 0
    for seed in range(20):
        new = draw(GrammarConstraint(grammar, {END}), np.random.default_rng(seed), 40)
        if new[-1] == END:
            complete += 1
            assert re.fullmatch(pattern, tokenizer.decode(new[:-1])), (pattern, tokenizer.decode(new))
        else:
            assert allowed(GrammarConstraint(grammar, {END}), new)
    assert complete > 10


def test_texts_are_choices() -> None:
    tokenizer = tiny_tokenizer()
    choices = ["a", "ab", "ab c", "Straße", "😀\n\t", '"quoted" \\ and/or (x|y)*', "\x00\x1f"]
    grammar = compiled(choice=choices)
    seen = set()
    for seed in range(60):
        new = draw(GrammarConstraint(grammar, {END}), np.random.default_rng(seed), 60)
        assert new[-1] == END
        seen.add(tokenizer.decode(new[:-1]))
    assert seen <= set(choices)
    assert len(seen) > 4


def test_texts_of_a_grammar() -> None:
    tokenizer = tiny_tokenizer()
    grammar = compiled(grammar='start: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/')
    for seed in range(10):
        new = draw(GrammarConstraint(grammar, {END}), np.random.default_rng(seed), 60)
        assert new[-1] == END
        assert re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2})*", tokenizer.decode(new[:-1]))


# === Stop tokens ===


def test_stop_tokens_are_allowed_where_a_text_is_complete_and_nothing_else_is_after_its_end() -> None:
    tokenizer = tiny_tokenizer()
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    constraint = GrammarConstraint(compiled(regex="ab?"), {END, 7})
    assert not {END, 7} & set(allowed(constraint, []))
    assert {END, 7, b} <= set(allowed(constraint, [a]))
    assert allowed(constraint, [a, b]) == [END, 7]
    assert allowed(constraint, [a, b, END]) == [END, 7]
    assert [constraint.accepting(new) for new in ([], [a], [a, b], [a, END])] == [
        False,
        True,
        True,
        True,
    ]
    assert [constraint.is_complete(new) for new in ([], [a], [a, b], [a, END])] == [
        False,
        False,
        True,
        True,
    ]


def test_without_a_stop_token_a_text_says_that_it_is_complete() -> None:
    tokenizer = tiny_tokenizer()
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    constraint = GrammarConstraint(compiled(regex="ab?"))
    assert b in allowed(constraint, [a])
    assert constraint.is_complete([a, b])
    with pytest.raises(StructuredOutputError, match="there is no token to stop it"):
        allowed(constraint, [a, b])


def test_a_stop_token_that_is_a_word_is_no_part_of_a_text() -> None:
    tokenizer = tiny_tokenizer()
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    constraint = GrammarConstraint(compiled(regex="(a|b){2}"), {a})
    assert a not in allowed(constraint, [])
    assert a not in allowed(constraint, [b])
    assert a in allowed(constraint, [b, b])
    with pytest.raises(StructuredOutputError, match="no part of texts, or stop them"):
        allowed(GrammarConstraint(compiled(regex="a"), {a}), [])


def test_a_token_that_was_not_allowed_is_an_error() -> None:
    constraint = GrammarConstraint(compiled(regex="ab?"), {END})
    wrong = tiny_tokenizer().encode("x")
    with pytest.raises(StructuredOutputError, match="the regex cannot be followed through 1 new"):
        allowed(constraint, wrong)
    assert allowed(constraint, [])


# === Vocabularies ===


def test_special_tokens_and_rows_without_a_token_are_never_allowed() -> None:
    """Not by a grammar that asks for all of them, either."""
    tokenizer = tiny_tokenizer()
    no_text = {1, 2, *range(tokenizer.vocabulary_size(), ROWS)}
    for grammar in (compiled(regex=r"(.|\n)*"), compiled(grammar="start: <[*]> <[*]>")):
        found = set(allowed(GrammarConstraint(grammar, {END}), []))
        assert found
        assert found & no_text <= {END}


def test_a_tokenizer_with_gaps_a_prefix_space_and_added_tokens() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 2, "<pad>": 1, **{token: i + 5 for i, token in enumerate(alphabet)}}
    vocabulary["ab"] = 300
    backend = Backend(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>", "<pad>"])
    special = '{"start_token_id": 2, "end_token_id": 2, "pad_token_id": 1}'
    tokenizer = Tokenizer.from_files(
        {"tokenizer.json": backend.to_str(), "special_tokens.json": special}
    )
    grammar = GrammarCompiler(tokenizer, 320).compile(StructuredOutput(regex="ABab{1,2} </s>"))
    for seed in range(5):
        new = draw(GrammarConstraint(grammar, {END}), np.random.default_rng(seed), 40, rows=320)
        assert new[-1] == END
        assert re.fullmatch("ABab{1,2} </s>", tokenizer.decode(new[:-1]))


def test_forced_text_comes_in_the_tokens_that_encoding_gives() -> None:
    tokenizer = tiny_tokenizer()
    text = "The return value of this function is a list"
    new = draw(GrammarConstraint(compiled(choice=[text]), {END}), np.random.default_rng(0), 60)
    assert new[:-1] == tokenizer.encode(text)


# === Continuations ===

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "additionalProperties": {"type": "array", "items": {"type": "boolean"}},
}


@pytest.mark.parametrize("kept", [64, 3])
def test_masks_of_forked_continuations_are_those_of_fresh_matchers(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beams die, fork and come in any order, some drafted tokens ahead; few matchers may be kept."""
    monkeypatch.setattr(module, "MAX_MATCHERS", kept)
    generator = np.random.default_rng(5)
    grammar = compiled(json_schema=SCHEMA)
    constraint = GrammarConstraint(grammar, {END})
    beams: list[list[int]] = [[]]
    for _ in range(30):
        candidates = []
        for number in generator.permutation(len(beams)):
            beam = beams[number]
            found = allowed(constraint, beam)
            assert found == allowed(GrammarConstraint(grammar, {END}), beam)
            for token in generator.choice(found, size=min(3, len(found)), replace=False):
                ahead = [*beam, int(token)]
                if token != END:
                    candidates.append(ahead)
                    if generator.random() < 0.3:
                        assert constraint.accepting(ahead) == GrammarConstraint(grammar).accepting(
                            ahead
                        )
        chosen = generator.choice(len(candidates), size=min(4, len(candidates)), replace=False)
        beams = [candidates[i] for i in chosen]
    assert len(constraint._kept) <= kept >= len(constraint._moved)


def test_a_step_takes_one_token_and_reads_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = GrammarConstraint._read
    monkeypatch.setattr(
        GrammarConstraint, "_read", lambda self, new: read.append(new) or original(self, new)
    )
    new = draw(GrammarConstraint(compiled(regex="[a-z ]{100}"), {END}), np.random.default_rng(0), 30)
    assert len(new) > 10
    assert read == [()]


def test_a_lexer_that_is_full_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text needs states that no other does."""
    from runtime.structured import grammar as grammars

    monkeypatch.setattr(grammars, "LIMITS", {**grammars.LIMITS, "max_lexer_states": 1200})
    compiler = GrammarCompiler(tiny_tokenizer(), ROWS)
    grammar = compiler.compile(StructuredOutput(regex="(a|b)*a(a|b){40}"))
    first = grammar.start
    a, b = (tiny_tokenizer().encode(text)[0] for text in "ab")
    for seed in range(6):
        constraint = GrammarConstraint(grammar, {END})
        new: list[int] = []
        for token in np.random.default_rng(seed).choice([a, b], 100):
            new.append(int(token))
            allowed(constraint, new)
    assert grammar.start is not first


def test_a_text_that_takes_too_much_is_an_error() -> None:
    grammar = compiled(regex=".{1,1000}" * 20)
    assert isinstance(grammar, Grammar)
    with pytest.raises(StructuredOutputError, match="cannot be followed through"):
        draw(GrammarConstraint(grammar), np.random.default_rng(0), 300)
