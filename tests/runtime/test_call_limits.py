"""Timeouts and cancellation: what a call gives that is ended from outside, and what it frees."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import GenerationCancelledError, GenerationTimeoutError, Generator
from runtime import call_limits as module
from runtime.call_limits import CallCut, CallLimits
from runtime.samplers import BeamSampler, GreedySampler
from runtime.tokenization import tokenizer

PROMPT = {"token_ids": np.array([[2, 5, 7, 0, 0, 0]]), "padding_mask": np.array([[1, 1, 1, 0, 0, 0]])}


class CountingSampler(GreedySampler):
    """Greedy search that does something after some draws."""

    def __init__(self, draws: int, then: Any) -> None:
        super().__init__()
        self._draws, self._then = draws, then

    def sample(self, logits: Any, generators: Sequence[np.random.Generator]) -> Any:
        self._draws -= 1
        if self._draws == 0:
            self._then()
        return super().sample(logits, generators)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def pass_a_minute(self) -> None:
        self.now += 60


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def greedy(generator: Generator, prompt: Any, **options: Any) -> Any:
    generator.compile("greedy")
    return generator.generate_results(prompt, stop_token_ids=None, **options)


# === Limits themselves ===


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True, 10**400])
def test_a_timeout_is_a_positive_number(generator: Generator, timeout: Any) -> None:
    for call in (generator.generate, generator.generate_results, generator.stream):
        with pytest.raises(ValueError, match=r"timeout must be a number of seconds above 0, or None"):
            call("a", timeout=timeout)


@pytest.mark.parametrize("cancel", [True, SimpleNamespace(is_set=True)], ids=["flag", "no method"])
def test_cancel_is_an_event(generator: Generator, cancel: Any) -> None:
    with pytest.raises(
        ValueError, match=r"cancel must be a threading\.Event or None, got (True|namespace)"
    ):
        generator.generate("a", cancel=cancel)


def test_without_limits_nothing_ends_a_call() -> None:
    CallLimits().check()
    CallLimits(60, threading.Event()).check()


def test_the_error_counts_tokens() -> None:
    for tokens, text in ((0, "0 new tokens;"), (1, "1 new token;"), (2, "2 new tokens;")):
        assert f"cancelled after {text}" in str(CallLimits().error("cancelled", tokens))


def test_the_time_counts_from_the_call(clock: Clock) -> None:
    limits = CallLimits(59)
    limits.check()
    clock.pass_a_minute()
    with pytest.raises(CallCut, match="timeout"):
        limits.check()


# === In the middle of a text ===


def test_cancelled_results_have_the_text_so_far(generator: Generator) -> None:
    whole = greedy(generator, ["ab", "cde"], max_length=30)
    event = threading.Event()
    generator.compile(CountingSampler(4, event.set))
    cut = generator.generate_results(["ab", "cde"], max_length=30, stop_token_ids=None, cancel=event)
    assert [result.finish_reason for result in cut] == ["cancelled", "cancelled"]
    assert [result.token_ids for result in cut] == [result.token_ids[:4] for result in whole]
    assert whole[0].text.startswith(cut[0].text)
    assert json.loads(json.dumps(cut[0].to_dict()))["finish_reason"] == "cancelled"
    assert generator.cache_bytes_in_use == 0


def test_rows_that_had_ended_keep_their_reason(generator: Generator) -> None:
    (whole,) = greedy(generator, "ab", max_length=10)
    event = threading.Event()
    generator.compile(CountingSampler(3, event.set))
    first = whole.token_ids[0]
    results = generator.generate_results(
        ["ab", "cde"], max_length=30, stop_token_ids=[first], cancel=event
    )
    assert [result.finish_reason for result in results] == ["stop", "cancelled"]
    assert results[0].token_ids == (first,)


def test_a_timeout_in_the_middle(generator: Generator, clock: Clock) -> None:
    generator.compile(CountingSampler(2, clock.pass_a_minute))
    (result,) = generator.generate_results("ab", max_length=30, stop_token_ids=None, timeout=30)
    assert (result.finish_reason, result.generated_tokens) == ("timeout", 2)


def test_generate_raises_since_its_result_would_not_tell(generator: Generator, clock: Clock) -> None:
    generator.compile(CountingSampler(2, clock.pass_a_minute))
    with pytest.raises(GenerationTimeoutError) as raised:
        generator.generate("ab", max_length=30, stop_token_ids=None, timeout=30)
    assert str(raised.value) == (
        "the call reached its timeout of 30 s after 2 new tokens; generate_results() gives the text "
        "so far with its finish_reason"
    )
    assert isinstance(raised.value, TimeoutError)
    # The exception is still here, and keeps nothing of the call.
    assert generator.cache_bytes_in_use == 0


def test_generate_of_tokens_raises_too(generator: Generator) -> None:
    event = threading.Event()
    generator.compile(CountingSampler(1, event.set))
    with pytest.raises(GenerationCancelledError, match=r"cancelled after 1 new token;"):
        generator.generate(PROMPT, stop_token_ids=None, cancel=event)


def test_a_stream_gives_what_there_is_and_then_raises(generator: Generator) -> None:
    (whole,) = greedy(generator, "ab", max_length=30)
    event = threading.Event()
    generator.compile("greedy")
    pieces: list[str] = []

    def consume() -> None:
        for piece in generator.stream("ab", max_length=30, stop_token_ids=None, cancel=event):
            pieces.append(piece)
            if len(pieces) == 6:
                event.set()

    with pytest.raises(GenerationCancelledError):
        consume()
    assert len(pieces) == 6
    assert whole.text.startswith("".join(pieces))
    assert generator.cache_bytes_in_use == 0


def test_a_call_cancelled_before_it_begins_takes_nothing(generator: Generator) -> None:
    event = threading.Event()
    event.set()
    (result,) = greedy(generator, "ab", max_length=30, cancel=event)
    assert (result.finish_reason, result.token_ids, result.text) == ("cancelled", (), "ab")
    generator.compile("beam")
    (result,) = generator.generate_results("ab", max_length=30, cancel=event)
    assert (result.finish_reason, result.token_ids) == ("cancelled", ())


def test_no_batch_is_read_after_the_one_that_was_cut(generator: Generator) -> None:
    event = threading.Event()
    read = []

    def batches() -> Iterator[list[str]]:
        for number in range(1000):
            read.append(number)
            if number == 2:
                event.set()
            yield ["ab"]

    results = greedy(generator, batches(), max_length=8, cancel=event)
    assert [result.finish_reason for result in results] == ["length", "length", "cancelled"]
    assert read == [0, 1, 2]


# === While prompts are read ===


@pytest.fixture
def slow(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> Generator:
    """A generator that looks at its limits between any two prompts."""
    monkeypatch.setattr(tokenizer, "PART_CHARACTERS", 1)
    return generator


def test_results_of_prompts_that_were_not_read(slow: Generator) -> None:
    options: dict[str, Any] = {"stop_token_ids": None, "max_length": 30}
    for sampler in ("greedy", "contrastive", BeamSampler(num_beams=2, return_all_beams=True)):
        slow.compile(sampler)
        results = slow.generate_results(["ab", "cde", "f"], **options, cancel=Expiring(1))
        assert [result.finish_reason for result in results] == ["cancelled"] * 3
        assert {(r.text, r.prompt_token_ids, r.token_ids) for r in results} == {("", (), ())}
    assert {beam.finish_reason for result in results for beam in result.beams or ()} == {"cancelled"}
    assert len(results[0].beams or ()) == 2
    assert slow.cache_bytes_in_use == 0


def test_calls_that_end_before_their_prompts_are_read(slow: Generator) -> None:
    for call in (slow.generate, slow.generate_results):
        with pytest.raises(ValueError, match="more than max_length=2"):
            call(["abc", "d"], max_length=2, cancel=Expiring(9))
    with pytest.raises(GenerationCancelledError, match="cancelled after 0 new tokens"):
        slow.generate(["ab", "cd"], cancel=Expiring(0))
    event = threading.Event()
    event.set()
    long = "the quick " * 1000
    with pytest.raises(GenerationCancelledError, match="cancelled after 0 new tokens"):
        list(slow.stream(long[:600], cancel=event))


def test_the_time_runs_while_prompts_are_read(slow: Generator, clock: Clock) -> None:
    slow.compile("greedy")
    encode = tokenizer.Tokenizer._encode

    def take_a_minute(*arguments: Any) -> Any:
        clock.pass_a_minute()
        return encode(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer.Tokenizer, "_encode", take_a_minute)
        with pytest.raises(GenerationTimeoutError, match=r"timeout of 90 s after 0 new tokens"):
            slow.generate(["a", "b", "c", "d"], timeout=90)
        (first, *_) = slow.generate_results(["a", "b", "c", "d"], timeout=90)
    assert first.finish_reason == "timeout"


@pytest.mark.parametrize("batch", [False, True])
def test_a_prompt_of_megabytes_is_refused_at_once(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    monkeypatch.setattr(tokenizer.Tokenizer, "encode_batch", lambda *_: pytest.fail("encoded"))
    prompt = "the quick king " * 1_400_000
    inputs: Any = ["a", prompt] if batch else prompt
    for call in (generator.generate, generator.generate_results, generator.stream):
        started = time.monotonic()
        with pytest.raises(ValueError, match=r"^(a prompt has 21,000,000 bytes|stream)") as raised:
            call(inputs)
        assert time.monotonic() - started < 2  # it took minutes
        assert len(str(raised.value)) < 500


def test_prompts_of_megabytes_in_all_are_read_in_groups(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, taken = tokenizer.Tokenizer._encode, []

    def count(*arguments: Any) -> Any:
        taken.append(sum(map(len, arguments[1])))
        return encode(*arguments)

    monkeypatch.setattr(tokenizer.Tokenizer, "_encode", count)
    prompts = ["a b c d e f g h i j k l m n o p"] * 20_000
    results = generator.generate_results(prompts, cancel=Expiring(1))
    assert {result.finish_reason for result in results} == {"cancelled"}
    assert 1 <= len(taken) <= 2
    assert max(taken) < 70_000


# === Searches ===


class Expiring:
    """An event that is set once it has been asked some times."""

    def __init__(self, times: int) -> None:
        self._times = times

    def is_set(self) -> bool:
        self._times -= 1
        return self._times < 0


def test_a_cut_beam_search_gives_its_best_beams_so_far(generator: Generator) -> None:
    generator.compile(BeamSampler(num_beams=3, return_all_beams=True))
    # Asked before each step, the first of which reads the prompt.
    (result,) = generator.generate_results("ab", max_length=30, stop_token_ids=None, cancel=Expiring(5))
    whole = generator.generate_results("ab", max_length=3 + 5, stop_token_ids=None)[0]
    assert whole.generated_tokens == 5
    assert result.finish_reason == "cancelled"
    assert result.token_ids == whole.token_ids
    assert result.beams is not None
    assert whole.beams is not None
    assert [b.token_ids for b in result.beams] == [b.token_ids for b in whole.beams]
    assert {b.finish_reason for b in result.beams} == {"cancelled"}


def test_a_cut_contrastive_search_gives_its_tokens_so_far(generator: Generator) -> None:
    generator.compile("contrastive")
    options: dict[str, Any] = {"max_length": 30, "stop_token_ids": None}
    (whole,) = generator.generate_results("ab", **options)
    (result,) = generator.generate_results("ab", **options, cancel=Expiring(1 + 4))
    assert result.finish_reason == "cancelled"
    assert result.token_ids == whole.token_ids[:4]


# === The sampler of a call ===


def test_a_call_keeps_the_sampler_it_began_with(generator: Generator) -> None:
    (whole,) = greedy(generator, "ab", max_length=30)
    pieces = generator.stream("ab", max_length=30, stop_token_ids=None)
    generator.compile("random")
    first = next(pieces)
    generator.compile(CountingSampler(1, lambda: pytest.fail("another call's sampler")))
    assert first + "".join(pieces) == whole.text


def test_all_batches_of_a_call_have_one_sampler(generator: Generator) -> None:
    alone = [result.text for result in greedy(generator, ["ab", "cde"], max_length=30)]

    def batches() -> Iterator[list[str]]:
        yield ["ab"]
        generator.compile("random")
        yield ["cde"]

    generator.compile("greedy")
    assert generator.generate(batches(), max_length=30, stop_token_ids=None) == alone
