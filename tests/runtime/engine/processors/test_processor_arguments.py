"""What processors do not take is told in one sentence that names field, value and what is allowed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from runtime.engine import processors
from runtime.engine.processors import check_token_ids

SIZE = 10
NO_NUMBERS = [True, "1", None, float("nan"), float("inf"), -float("inf"), 10**400]
NO_IDS = [3, "12", b"12", None, {1: 2}, [1.0], [True], [None], ["1"], [-1], [SIZE], [10**30], [[1]]]
NO_IDS += [np.array(3), np.array([1.0])]


def refusal(make: Any, *args: Any) -> str:
    with pytest.raises(ValueError, match="must") as raised:
        make(*args)
    told = str(raised.value)
    assert "\n" not in told
    assert len(told) < 600
    return told


@pytest.mark.parametrize("name", ["repetition_penalty", "temperature"])
def test_factors(name: str) -> None:
    make = {"repetition_penalty": processors.RepetitionPenalty, "temperature": processors.Temperature}
    for value in (*NO_NUMBERS, 0, -1):
        assert refusal(make[name], value).startswith(f"{name} must be a number above 0, got ")
    for value in (1e-60, 1e39):
        assert refusal(make[name], value).startswith(f"{name} must be a number from 1.4e-45 to 3.4e+38")
    for value in (1, np.float32(0.5), 1e-40, 3e38):
        make[name](value)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_penalties(name: str) -> None:
    make: Any = {
        "presence_penalty": processors.PresencePenalty,
        "frequency_penalty": processors.FrequencyPenalty,
    }[name]
    for value in (*NO_NUMBERS, 2.001, -2.001):
        assert refusal(make, value).startswith(f"{name} must be a number from -2 to 2, got ")
    for value in (-2, 2, 0, np.float64(1)):
        make(value)


@pytest.mark.parametrize("name", ["top_p", "min_p"])
def test_shares(name: str) -> None:
    make: Any = {"top_p": processors.TopP, "min_p": processors.MinP}[name]
    for value in (*NO_NUMBERS, -0.001, 1.001):
        assert refusal(make, value).startswith(f"{name} must be a number from 0 to 1, got ")


@pytest.mark.parametrize("name", ["typical_p", "epsilon_cutoff", "eta_cutoff"])
def test_inner_shares(name: str) -> None:
    make: Any = {
        "typical_p": processors.TypicalP,
        "epsilon_cutoff": processors.EpsilonCutoff,
        "eta_cutoff": processors.EtaCutoff,
    }[name]
    for value in (*NO_NUMBERS, 0, 1):
        assert refusal(make, value).startswith(f"{name} must be a number above 0 and below 1, got ")


def test_counts() -> None:
    for value in (*NO_NUMBERS[:4], 0, 1.0):
        told = refusal(processors.TopK, value)
        assert told.startswith("top_k must be a whole number of at least 1, got ")
        told = refusal(processors.NoRepeatNgram, value)
        assert told.startswith("no_repeat_ngram_size must be a whole number of at least 1, got ")
    told = refusal(processors.MinNewTokens, -1, [2], SIZE)
    assert told == "min_new_tokens must be a whole number of at least 0, got -1"


@pytest.mark.parametrize("ids", NO_IDS, ids=lambda ids: re.sub(r"\W+", " ", repr(ids))[:30])
def test_token_ids(ids: Any) -> None:
    for make, name in (
        (lambda ids: processors.SuppressTokens(ids, SIZE), "suppress_tokens"),
        (lambda ids: processors.BeginSuppressTokens(ids, SIZE), "begin_suppress_tokens"),
        (lambda ids: processors.AllowedTokens(ids, SIZE), "allowed_token_ids"),
        (lambda ids: processors.MinNewTokens(1, ids, SIZE), "end_token_ids"),
        (lambda ids: processors.BadWords([[1]], SIZE, ids), "end_token_ids"),
        (lambda ids: processors.BadWords([[1], ids], SIZE), "each sequence of bad_words_ids"),
        (lambda ids: processors.SequenceBias([[ids, 1.0]], SIZE), "each sequence of sequence_bias"),
        (lambda ids: check_token_ids("ids", ids, SIZE), "ids"),
    ):
        told = refusal(make, ids)
        assert told.startswith(f"{name} must be a list of whole numbers from 0 to 9, got ")


def test_token_ids_are_plain_numbers_in_the_order_given() -> None:
    found = check_token_ids("ids", np.array([3, 1, 3], np.int32), SIZE)
    assert found == (3, 1, 3)
    assert {type(i) for i in found} == {int}
    assert check_token_ids("ids", [], SIZE) == ()


def test_some_must_be_given() -> None:
    wanted = "must be a list of at least one"
    assert wanted in refusal(processors.AllowedTokens, [], SIZE)
    assert wanted in refusal(processors.BadWords, [], SIZE)
    assert wanted in refusal(processors.BadWords, [[1], []], SIZE)
    assert wanted in refusal(processors.SequenceBias, {}, SIZE)
    assert wanted in refusal(processors.SequenceBias, {(): 1.0}, SIZE)


def test_biases() -> None:
    for value in (*NO_NUMBERS, 100.5, -101):
        told = refusal(processors.LogitBias, {1: value}, SIZE)
        assert told.startswith("each number of logit_bias must be a number from -100 to 100, got ")
    for value in (*NO_NUMBERS, 1e39):
        told = refusal(processors.SequenceBias, {(1,): value}, SIZE)
        assert told.startswith("each number of sequence_bias must be a number from -3.40282e+38 to ")
    for key in (-1, SIZE, "1", 1.5, True):
        told = refusal(processors.LogitBias, {key: 1}, SIZE)
        assert told.startswith("the keys of logit_bias must be a list of whole numbers from 0 to 9")
    assert (
        refusal(processors.LogitBias, [1], SIZE) == "logit_bias must map token ids to numbers, got [1]"
    )
    for pairs in ([1], [[[1]]], ["ab"], [[[1], 1.0, 2]]):
        told = refusal(processors.SequenceBias, pairs, SIZE)
        assert told.startswith("sequence_bias must be a list of pairs of token ids and a number")
    for value in (3, "ab", None, [1.5]):
        assert refusal(processors.BadWords, value, SIZE)
        assert refusal(processors.SequenceBias, value, SIZE)
