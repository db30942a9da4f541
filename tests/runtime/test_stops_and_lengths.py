"""When a text ends: stop tokens and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from runtime import Generator
from runtime.bundle import Bundle
from runtime.results import GenerationResult
from runtime.samplers import TopKSampler
from runtime.session import SessionDecoder
from tests.runtime.toy import CASES, DEFAULT_LENGTH, END, POSITIONS, START, ScriptedSampler

SEEDED = TopKSampler(k=5, seed=11)


def tokens(results: Sequence[GenerationResult]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


# === Stops ===


def test_auto_stops_at_the_end_token(generator: Generator) -> None:
    generator.compile(ScriptedSampler([50, 60, END, 70]))
    (result,) = generator.generate_results("t")
    assert result.token_ids == (50, 60, END)
    assert result.finish_reason == "stop"
    assert result.text == "t" + generator.tokenizer.decode([50, 60])


def test_none_goes_past_the_end_token(generator: Generator) -> None:
    generator.compile(ScriptedSampler([50, END, 60, END, 70]))
    (result,) = generator.generate_results("t", max_length=7, stop_token_ids=None)
    assert result.token_ids == (50, END, 60, END, 70)
    assert result.finish_reason == "length"


@pytest.mark.parametrize("stops", [(60,), [60, 61], {60}, np.array([60, 7])])
def test_stop_ids_replace_the_end_token(generator: Generator, stops: Any) -> None:
    generator.compile(ScriptedSampler([50, END, 60, 70]))
    (result,) = generator.generate_results("t", stop_token_ids=stops)
    assert result.token_ids == (50, END, 60)
    assert result.finish_reason == "stop"


def test_no_stop_ids(generator: Generator) -> None:
    generator.compile(ScriptedSampler([END, 60, 70]))
    (result,) = generator.generate_results("t", max_length=5, stop_token_ids=())
    assert result.token_ids == (END, 60, 70)


def test_a_stop_token_as_the_last_that_fits(generator: Generator) -> None:
    generator.compile(ScriptedSampler([50, END]))
    (result,) = generator.generate_results("t", max_length=4)
    assert (result.token_ids, result.finish_reason) == ((50, END), "stop")


def test_a_stop_token_in_the_prompt_does_not_stop(generator: Generator) -> None:
    generator.compile(ScriptedSampler([50, END]))
    (result,) = generator.generate_results("t</s>t")
    assert result.prompt_token_ids[2] == END
    assert result.token_ids == (50, END)


def test_rows_that_have_ended_are_not_sampled(generator: Generator) -> None:
    sampler = ScriptedSampler([50, 60, 70, 80])
    generator.compile(sampler)
    results = generator.generate_results(["t", "tt", "ttt"], max_length=5, stop_token_ids=None)
    assert sampler.rows_seen == [3, 2, 1]
    assert tokens(results) == [(50, 60, 70), (50, 60), (50,)]


@pytest.mark.parametrize("stops", ["end", "", "2", np.array(2)])
def test_stops_by_name(generator: Generator, stops: str) -> None:
    with pytest.raises(ValueError, match="stop_token_ids must be 'auto', None or token ids, got"):
        generator.generate("t", stop_token_ids=stops)  # type: ignore[arg-type]


@pytest.mark.parametrize("stops", [[300], [-1], [5, 1000]])
def test_stops_outside_the_vocabulary(generator: Generator, stops: list[int]) -> None:
    with pytest.raises(ValueError, match="stop_token_ids must be ids from 0 to 299, got"):
        generator.generate("t", stop_token_ids=stops)


@pytest.mark.parametrize("stops", [2, 2.5, [2.5], [None], ["2"]])
def test_stops_that_are_no_ids(generator: Generator, stops: Any) -> None:
    with pytest.raises(ValueError, match="stop_token_ids must be"):
        generator.generate("t", stop_token_ids=stops)


# === Lengths ===


@pytest.mark.parametrize(
    ("text", "length"), [("", 1), ("", 2), ("", 9), ("the", 8), ("the", POSITIONS)]
)
def test_max_length_counts_prompt_and_start_token(generator: Generator, text: str, length: int) -> None:
    generator.compile(SEEDED)
    (result,) = generator.generate_results(text, max_length=length, stop_token_ids=None)
    assert result.prompt_token_ids[0] == START
    assert result.prompt_tokens + result.generated_tokens == length
    assert result.finish_reason == "length"


def test_an_empty_prompt_generates_from_the_start_token(generator: Generator) -> None:
    generator.compile("greedy")
    case = CASES[0]
    assert case["prompt"] == [START]
    (result,) = generator.generate_results("", max_length=25, stop_token_ids=None)
    assert result.token_ids == tuple(case["continuation"])
    assert generator.generate([""], max_length=25, stop_token_ids=None) == [result.text]


def test_a_prompt_of_the_full_length_gets_nothing(generator: Generator) -> None:
    sampler = ScriptedSampler([])
    generator.compile(sampler)
    (result,) = generator.generate_results("tttt", max_length=5)
    assert (result.token_ids, result.finish_reason, result.text) == ((), "length", "tttt")
    assert (result.prefill_seconds, result.decode_seconds) == (0.0, 0.0)
    assert list(generator.stream("tttt", max_length=5)) == ["tttt"]


def test_a_full_prompt_beside_others(generator: Generator) -> None:
    generator.compile(ScriptedSampler([50, 60]))
    results = generator.generate_results(["tttt", "tt"], max_length=5, stop_token_ids=None)
    assert tokens(results) == [(), (50, 60)]


def test_the_default_length_is_that_of_the_bundle(generator: Generator) -> None:
    generator.compile(SEEDED)
    (result,) = generator.generate_results("the", stop_token_ids=None)
    assert result.prompt_tokens + result.generated_tokens == DEFAULT_LENGTH


def test_a_prompt_longer_than_max_length(generator: Generator) -> None:
    message = (
        "a prompt has 6 tokens with the start token, more than max_length=5; raise max_length "
        r"\(the model has 64 positions\) or shorten the prompt"
    )
    with pytest.raises(ValueError, match=message):
        generator.generate(["t", "ttttt"], max_length=5)


def test_a_prompt_longer_than_the_default(generator: Generator) -> None:
    with pytest.raises(ValueError, match=r"more than max_length=48; raise max_length"):
        generator.generate("t" * 50)
    assert len(generator.generate_results("t" * 50, max_length=60)[0].prompt_token_ids) == 51


def test_a_prompt_longer_than_the_model(generator: Generator) -> None:
    message = "a prompt has 65 tokens .* shorten the prompt to below the model's 64 positions"
    with pytest.raises(ValueError, match=message):
        generator.generate("t" * 64)


def test_a_prompt_of_all_the_models_positions(generator: Generator) -> None:
    """It would fit under a larger max_length, with no room for a token of an answer."""
    message = "a prompt has 64 tokens .* shorten the prompt to below the model's 64 positions"
    with pytest.raises(ValueError, match=message):
        generator.generate("t" * 63, max_length=60)


def test_a_length_beyond_the_model(generator: Generator) -> None:
    with pytest.raises(ValueError, match="max_length is 65, more than the model's 64 positions"):
        generator.generate("t", max_length=65)


@pytest.mark.parametrize("length", [0, -3, 2.0, "8", True])
def test_bad_lengths(generator: Generator, length: Any) -> None:
    with pytest.raises(ValueError, match="max_length must be a whole number of at least 1, got"):
        generator.generate("t", max_length=length)


@pytest.mark.parametrize("length", [0, -1, POSITIONS + 1])
def test_the_default_length_is_checked_too(
    bundle: Bundle, decoder: SessionDecoder, length: int
) -> None:
    with pytest.raises(ValueError, match="max_length"):
        Generator(decoder, bundle.tokenizer, max_length=length)


def test_numpy_numbers_are_lengths(generator: Generator) -> None:
    generator.compile(ScriptedSampler([50, 60, 70]))
    (result,) = generator.generate_results("t", max_length=np.int64(4))  # type: ignore[arg-type]
    assert result.token_ids == (50, 60)
