"""Texts drawn from random logits under a constraint, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from runtime.structured.constraint import GrammarConstraint
from runtime.structured.description import StructuredOutput
from runtime.structured.grammar import Grammar, GrammarCompiler
from runtime.tokenization.tokenizer import Tokenizer
from tests.conftest import REPOSITORY

PROMPT = [2, 40, 41]
END = 2
ASSETS = REPOSITORY / "exporter" / "presets" / "opt_tiny_en" / "assets" / "tokenizer"
ROWS = 4100  # of the logits; four more than there are tokens


@cache
def tiny_tokenizer() -> Tokenizer:
    """That of the preset opt_tiny_en: 4,096 tokens."""
    return Tokenizer(ASSETS / "vocabulary.json", ASSETS / "merges.txt")


@cache
def tiny_compiler() -> GrammarCompiler:
    """A compiler for it."""
    return GrammarCompiler(tiny_tokenizer(), ROWS, most=8)


def compiled(**values: object) -> Grammar:
    """The grammar of a description."""
    return tiny_compiler().compile(StructuredOutput(**values))  # type: ignore[arg-type]


def allowed(constraint: GrammarConstraint, new: Sequence[int], rows: int = ROWS) -> list[int]:
    """Ids of the tokens that may follow."""
    logits = np.zeros(rows, np.float32)
    constraint.process([*PROMPT, *new], len(PROMPT), logits)
    assert set(np.unique(logits)) <= {-np.inf, 0}
    return [int(i) for i in np.flatnonzero(logits == 0)]


def draw(
    constraint: GrammarConstraint,
    generator: np.random.Generator,
    most: int,
    *,
    end: int = END,
    bias: Sequence[int] = (),
    rows: int = ROWS,
) -> list[int]:
    """New tokens up to a stop token or `most`; tokens of `bias` and `end` are more probable."""
    new: list[int] = []
    while len(new) < most and new[-1:] != [end]:
        logits = generator.standard_normal(rows).astype(np.float32)
        logits[list(bias)] += 4
        logits[end] += 6
        constraint.process([*PROMPT, *new], len(PROMPT), logits)
        new.append(int(logits.argmax()))
        assert logits[new[-1]] > -np.inf
    return new


def closing(tokenizer: Tokenizer) -> list[int]:
    """Tokens that bring JSON to its end."""
    return [tokenizer.token_to_id(token) for token in ('"', "}", "]", "0", "1", "a")]
