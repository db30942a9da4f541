"""The generation loop: rows that do not depend on each other, stops, lengths, and streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Generator
from runtime.bundle import Bundle
from runtime.decoder import StepOutput
from runtime.generation import GenerationRun, RowRequest
from runtime.results import GenerationResult
from runtime.samplers import GreedySampler, Sampler, TopKSampler
from runtime.session import SessionDecoder
from tests.runtime.toy import (
    CASES,
    DEFAULT_LENGTH,
    END,
    POSITIONS,
    START,
    ScriptedSampler,
    edit_manifest,
)

TEXTS = ["", "the king", "The quick", "t", "Zoë, café: 😀", "re" * 20, "in the inn, a quick ring"]
TEXT_CASES = [case for case in CASES if case["text"] is not None]
SEEDED = TopKSampler(k=5, seed=11)


def tokens(results: Sequence[GenerationResult]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


def run(
    decoder: SessionDecoder, requests: Sequence[RowRequest], sampler: Sampler
) -> list[tuple[list[int], str | None]]:
    """Each row's tokens and finish reason."""
    generation = GenerationRun(decoder, requests, sampler)
    for _ in generation.steps():
        pass
    return [(row.token_ids, row.finish_reason) for row in generation.rows]


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
        RowRequest(prompt, min(POSITIONS, len(prompt) + more), frozenset(stops))
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


@pytest.mark.parametrize("stops", ["end", "", "2"])
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


class CountingDecoder:
    """A model whose next token is the last one plus one; records what the loop asks of it."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.calls: list[tuple[list[list[int]], list[int]]] = []

    def new_cache(self, batch: int, capacity: int) -> Any:
        self.capacity = capacity
        return np.zeros(batch, np.int32)

    def append(self, cache: Any, token_ids: Any, new_lengths: Any) -> StepOutput:
        self.calls.append((token_ids.tolist(), new_lengths.tolist()))
        logits = np.zeros((len(token_ids), self.config.vocabulary_size), np.float32)
        last = token_ids[np.arange(len(token_ids)), np.maximum(new_lengths - 1, 0)]
        logits[np.arange(len(token_ids)), (last + 1) % self.config.vocabulary_size] = 1
        return StepOutput(logits)


def test_any_decoder_will_do_and_each_token_is_appended_once(bundle: Bundle) -> None:
    decoder = CountingDecoder(bundle.manifest.model)
    generation = GenerationRun(
        decoder,
        [RowRequest((5, 6), 5), RowRequest((50,), 9, frozenset({52})), RowRequest((9, 9, 9), 6)],
        GreedySampler(),
    )
    steps = list(generation.steps())
    assert steps == [{0: 7, 1: 51, 2: 10}, {0: 8, 1: 52, 2: 11}, {0: 9, 2: 12}]
    assert [row.finish_reason for row in generation.rows] == ["length", "stop", "length"]
    assert decoder.capacity == 9
    assert decoder.calls == [
        ([[5, 6, 0], [50, 0, 0], [9, 9, 9]], [2, 1, 3]),
        ([[7], [51], [10]], [1, 1, 1]),
        ([[8], [52], [11]], [1, 0, 1]),
    ]


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 20), st.sets(st.integers(0, 40), max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_lengths_and_stops_hold_for_any_batch(
    bundle: Bundle, rows: list[tuple[int, int, set[int]]]
) -> None:
    """With a model that counts, every row's tokens can be told in advance."""
    requests = [RowRequest((i,) * n, limit, frozenset(s)) for i, (n, limit, s) in enumerate(rows)]
    generation = GenerationRun(CountingDecoder(bundle.manifest.model), requests, GreedySampler())
    for _ in generation.steps():
        pass
    for i, (row, (n, limit, stops)) in enumerate(zip(generation.rows, rows, strict=True)):
        wanted = list(range(i + 1, i + 1 + max(0, limit - n)))
        end = next((at + 1 for at, token in enumerate(wanted) if token in stops), None)
        assert row.token_ids == wanted[:end]
        assert row.finish_reason == ("length" if end is None else "stop")
