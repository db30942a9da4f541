"""The generation loop: rows that do not depend on each other, stops, lengths, and streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator
from runtime.engine.request import Request
from runtime.results import GenerationResult
from runtime.samplers import GreedySampler, Sampler, TopKSampler
from runtime.session import SessionDecoder
from tests.runtime import engine_runs
from tests.runtime.toy import (
    CASES,
    END,
    POSITIONS,
    ScriptedSampler,
    edit_manifest,
)

TEXTS = ["", "the king", "The quick", "t", "Zoë, café: 😀", "re" * 20, "in the inn, a quick ring"]
TEXT_CASES = [case for case in CASES if case["text"] is not None]
SEEDED = TopKSampler(k=5, seed=11)


def tokens(results: Sequence[GenerationResult]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


def run(
    decoder: Any, requests: Sequence[Request], sampler: Sampler
) -> list[tuple[list[int], str | None]]:
    """Each row's tokens and finish reason."""
    found = engine_runs.run(decoder, requests, sampler).sequences
    return [(sequence.token_ids, sequence.finish_reason) for sequence in found]


# === What Keras says ===


def test_greedy_text_has_the_tokens_of_keras(generator: Generator) -> None:
    generator.compile("greedy")
    for case in TEXT_CASES:
        length = len(case["prompt"]) + len(case["continuation"])
        (result,) = generator.generate_results(
            case["text"], max_length=min(length, POSITIONS), stop_token_ids=None
        )
        assert result.prompt_token_ids == tuple(case["prompt"])
        assert result.token_ids == tuple(case["continuation"])


def test_a_batch_has_the_tokens_of_keras(generator: Generator) -> None:
    generator.compile("greedy")
    results = generator.generate_results(
        [case["text"] for case in TEXT_CASES], max_length=POSITIONS, stop_token_ids=None
    )
    for case, result in zip(TEXT_CASES, results, strict=True):
        shared = len(case["continuation"])
        assert result.token_ids[:shared] == tuple(case["continuation"])
        assert len(result.token_ids) == POSITIONS - len(case["prompt"])


# === Rows are independent ===


@pytest.mark.parametrize("sampler", [GreedySampler(), SEEDED], ids=["greedy", "top_k"])
@pytest.mark.parametrize("stops", [None, (43, 192, 258)], ids=["no stop", "stops"])
def test_a_row_is_the_same_alone_and_in_any_batch(
    generator: Generator, sampler: Sampler, stops: tuple[int, ...] | None
) -> None:
    generator.compile(sampler)
    options: dict[str, Any] = {"max_length": POSITIONS, "stop_token_ids": stops}
    alone = {text: generator.generate_results(text, **options)[0] for text in TEXTS}
    assert len({result.token_ids for result in alone.values()}) == len(TEXTS)
    if stops:
        assert {result.finish_reason for result in alone.values()} >= {"stop"}
        assert len({len(result.token_ids) for result in alone.values()}) > 3
    for batch in (TEXTS, TEXTS[::-1], TEXTS[1:3], [TEXTS[5], TEXTS[0]]):
        results = generator.generate_results(batch, **options)
        assert tokens(results) == [alone[text].token_ids for text in batch]
        assert [r.finish_reason for r in results] == [alone[t].finish_reason for t in batch]
        assert [r.text for r in results] == [alone[text].text for text in batch]


@pytest.mark.parametrize("sampler", [GreedySampler(), SEEDED], ids=["greedy", "top_k"])
def test_rows_may_have_limits_and_stops_of_their_own(decoder: SessionDecoder, sampler: Sampler) -> None:
    prompts = [tuple(case["prompt"]) for case in CASES]
    requests = [
        Request(prompt, min(POSITIONS, len(prompt) + more), frozenset(stops))
        for prompt, more, stops in zip(
            prompts, (5, 30, 0, 12, 1, 9, 1), ([], [114], [], [198, 40], [], [298], []), strict=True
        )
    ]
    alone = [run(decoder, [request], sampler)[0] for request in requests]
    assert {reason for _, reason in alone} == {"stop", "length"}
    assert run(decoder, requests, sampler) == alone
    assert run(decoder, requests[::-1], sampler) == alone[::-1]
    for request, (found, reason) in zip(requests, alone, strict=True):
        assert not set(found[:-1]) & request.stop_token_ids
        if reason == "stop":
            assert found[-1] in request.stop_token_ids
        else:
            assert len(found) == request.max_length - len(request.prompt)


def test_the_same_prompt_twice_gives_two_texts(generator: Generator) -> None:
    generator.compile(SEEDED)
    options: dict[str, Any] = {"max_length": 40, "stop_token_ids": None}
    (alone,) = tokens(generator.generate_results(["the"], **options))
    repeated = tokens(generator.generate_results(["the", "t", "the", "the"], **options))
    assert repeated[0] == alone
    assert len({repeated[0], repeated[2], repeated[3]}) == 3
    assert tokens(generator.generate_results(["the", "t", "the", "the"], **options)) == repeated


def test_greedy_gives_the_same_prompt_the_same_text(generator: Generator) -> None:
    generator.compile("greedy")
    first, second = generator.generate(["the", "the"])
    assert first == second


# === Text ===


def test_strip_prompt(generator: Generator) -> None:
    generator.compile(SEEDED)
    whole = generator.generate("Zoë, café: 😀", stop_token_ids=None)
    stripped = generator.generate("Zoë, café: 😀", stop_token_ids=None, strip_prompt=True)
    assert whole == "Zoë, café: 😀" + stripped
    both = generator.generate(["the", "a"], stop_token_ids=None, strip_prompt=True)
    full = generator.generate(["the", "a"], stop_token_ids=None)
    assert full == ["the" + both[0], "a" + both[1]]


def test_special_tokens_are_not_in_the_text(generator: Generator) -> None:
    generator.compile(ScriptedSampler([50, 1, 60, END]))
    text = generator.generate("t</s>", strip_prompt=False)
    assert text == "t" + generator.tokenizer.decode([50]) + generator.tokenizer.decode([60])


def test_a_string_gives_a_string_and_a_list_a_list(generator: Generator) -> None:
    generator.compile("greedy")
    single = generator.generate("the")
    assert isinstance(single, str)
    assert generator.generate(["the"]) == [single]


def test_bytes_of_a_character_in_several_tokens_come_out_whole(generator: Generator) -> None:
    """`😀` is three tokens here, and the prompt's text is followed by half of an `é`."""
    ids = generator.tokenizer.encode("😀é")
    generator.compile(ScriptedSampler([*ids, ids[0], END]))
    pieces = list(generator.stream("t", strip_prompt=True))
    assert "".join(pieces) == "😀é\ufffd"
    assert all(piece for piece in pieces)
    assert pieces[-1] == "\ufffd"


# === Streams ===


@pytest.mark.parametrize("strip_prompt", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_joined_is_generate(generator: Generator, text: str, strip_prompt: bool) -> None:
    generator.compile(SEEDED)
    options: dict[str, Any] = {"max_length": POSITIONS, "strip_prompt": strip_prompt}
    for stops in ("auto", None, (198,)):
        pieces = list(generator.stream(text, stop_token_ids=stops, **options))
        assert "".join(pieces) == generator.generate(text, stop_token_ids=stops, **options)
        assert all(pieces)
        if text and not strip_prompt:
            assert pieces[0] == text


def test_a_stream_comes_token_by_token(generator: Generator) -> None:
    """After the first piece, one token has been drawn and not all of them."""
    sampler = ScriptedSampler([50, 60, 70])
    generator.compile(sampler)
    stream = generator.stream("t", max_length=5)
    assert sampler.rows_seen == []
    assert next(stream) == "t"
    assert sampler.rows_seen == []
    assert next(stream) == generator.tokenizer.decode([50])
    assert sampler.rows_seen == [1]


def test_an_abandoned_stream_leaves_nothing_behind(generator: Generator) -> None:
    generator.compile(SEEDED)
    whole = generator.generate("the king", stop_token_ids=None)
    abandoned = generator.stream("the king", stop_token_ids=None)
    begun = [next(abandoned) for _ in range(4)]
    assert generator.generate("the king", stop_token_ids=None) == whole
    other = "".join(generator.stream("the king", stop_token_ids=None))
    assert "".join([*begun, *abandoned]) == other == whole
    closed = generator.stream("the king", stop_token_ids=None)
    next(closed)
    closed.close()  # type: ignore[attr-defined]
    assert generator.generate("the king", stop_token_ids=None) == whole


def test_two_streams_at_a_time(generator: Generator) -> None:
    generator.compile(SEEDED)
    options: dict[str, Any] = {"max_length": 30, "stop_token_ids": None}
    wanted = [generator.generate(text, **options) for text in ("the", "a quick")]
    streams = [generator.stream(text, **options) for text in ("the", "a quick")]
    found = ["", ""]
    for _ in range(40):
        for i, stream in enumerate(streams):
            found[i] += next(stream, "")
    assert found == wanted


def test_stream_takes_one_string(generator: Generator) -> None:
    for inputs in (["the"], {"token_ids": [[2]], "padding_mask": [[1]]}):
        with pytest.raises(ValueError, match=r"stream\(\) takes one string, got"):
            generator.stream(inputs)  # type: ignore[arg-type]


def test_stream_errors_come_at_the_call(generator: Generator) -> None:
    with pytest.raises(ValueError, match="more than max_length=2"):
        generator.stream("ttt", max_length=2)


# === The generator itself ===


def test_from_bundle_takes_the_defaults_of_the_bundle(toy_bundle_copy: Path) -> None:
    def edit(values: dict[str, Any]) -> None:
        config = {"k": 3, "temperature": 0.5, "seed": 4}
        values["generation"] = {
            "max_length": 20,
            "sampler": {"class_name": "TopKSampler", "config": config},
        }

    edit_manifest(toy_bundle_copy, edit)
    loaded = Generator.from_bundle(str(toy_bundle_copy), device="cpu", threads=1)
    assert isinstance(loaded.sampler, TopKSampler)
    assert (loaded.sampler.k, loaded.sampler.temperature, loaded.sampler.seed) == (3, 0.5, 4)
    assert loaded.max_length == 20
    assert loaded.config.max_sequence_length == POSITIONS
    (result,) = loaded.generate_results("t", stop_token_ids=None)
    assert result.prompt_tokens + result.generated_tokens == 20


def test_compile_takes_names_and_samplers(generator: Generator) -> None:
    generator.compile()
    assert isinstance(generator.sampler, TopKSampler)
    generator.compile(sampler="greedy")
    assert isinstance(generator.sampler, GreedySampler)
    with pytest.raises(ValueError, match="unknown sampler 'best'"):
        generator.compile("best")
    assert isinstance(generator.sampler, GreedySampler)
