"""What a generation reports."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from runtime import Generator
from runtime.engine import engine
from runtime.results import Beam, GenerationResult
from tests.runtime.toy import END, ScriptedSampler

RESULT = GenerationResult(
    text="a b",
    prompt_token_ids=(2, 5, 6),
    token_ids=(7, 8, 9, 2, 4),
    finish_reason="stop",
    prefill_seconds=0.5,
    decode_seconds=2.0,
)


def test_counts_and_speeds() -> None:
    assert (RESULT.prompt_tokens, RESULT.generated_tokens) == (3, 5)
    assert RESULT.prefill_tokens_per_second == 6.0
    assert RESULT.decode_tokens_per_second == 2.0  # the first token comes with the prefill


def test_no_time_is_no_speed() -> None:
    nothing = GenerationResult("", (2,), (), "length", 0.0, 0.0)
    assert (nothing.prefill_tokens_per_second, nothing.decode_tokens_per_second) == (0.0, 0.0)
    assert nothing.generated_tokens == 0
    assert GenerationResult("", (2,), (), "length", 1.0, 1.0).decode_tokens_per_second == 0.0


def test_a_result_goes_into_json() -> None:
    assert json.loads(json.dumps(RESULT.to_dict())) == {
        "text": "a b",
        "prompt_token_ids": [2, 5, 6],
        "token_ids": [7, 8, 9, 2, 4],
        "finish_reason": "stop",
        "prefill_seconds": 0.5,
        "decode_seconds": 2.0,
        "cached_prompt_tokens": 0,
        "prompt_tokens": 3,
        "generated_tokens": 5,
        "prefill_tokens_per_second": 6.0,
        "decode_tokens_per_second": 2.0,
    }


def test_beams_go_into_json() -> None:
    result = replace(RESULT, beams=(Beam("a b", (7,), -0.5, "stop"), Beam(None, (8,), -1.5, "length")))
    assert json.loads(json.dumps(result.to_dict()))["beams"] == [
        {"text": "a b", "token_ids": [7], "score": -0.5, "finish_reason": "stop"},
        {"text": None, "token_ids": [8], "score": -1.5, "finish_reason": "length"},
    ]


def test_results_are_not_to_be_changed() -> None:
    with pytest.raises(AttributeError):
        RESULT.text = "other"  # type: ignore[misc]


def test_the_numbers_of_a_real_run(generator: Generator) -> None:
    generator.compile(ScriptedSampler([50, 60, END, 70, 71]))
    stopped, full = generator.generate_results(["t", "t" * 40], max_length=43)
    assert (stopped.finish_reason, stopped.token_ids) == ("stop", (50, 60, END))
    assert (full.finish_reason, full.token_ids) == ("length", (50, 60))
    assert stopped.prefill_seconds == full.prefill_seconds > 0
    assert stopped.decode_seconds > full.decode_seconds > 0  # of its own steps
    json.dumps([stopped.to_dict(), full.to_dict()])


@pytest.mark.parametrize("sampler", ["greedy", "beam", "contrastive"])
def test_the_time_of_decoding_is_that_of_all_steps(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, sampler: Any
) -> None:
    """With a clock that goes on by a second whenever it is looked at, each run takes one."""

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 1
            return self.now

    monkeypatch.setattr(engine, "time", Clock())
    generator.compile(sampler)
    (short,) = generator.generate_results("t", max_length=4, stop_token_ids=None)
    (long,) = generator.generate_results("t", max_length=12, stop_token_ids=None)
    assert long.prefill_seconds == short.prefill_seconds == 1
    assert long.decode_seconds - short.decode_seconds == 8
    assert 1 <= short.decode_seconds <= 2
