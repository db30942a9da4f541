"""Every sampler with every form of input, and what `generate` gives with all beams."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from runtime import Generator, samplers
from runtime.engine.request import Request
from runtime.samplers import BeamSampler, Sampler
from runtime.session import SessionDecoder
from tests.runtime import engine_runs
from tests.runtime.toy import CASES, POSITIONS, FakeDataset, FakeTensor

TEXTS = ["the king", "", "Zoë, café: 😀", "a quick"]
STOPS = (11, 27, 198)
OPTIONS: dict[str, Any] = {"max_length": 22, "stop_token_ids": STOPS}
SEEDED = {"random", "top_k", "top_p"}


def seeded(name: str) -> Sampler:
    config: dict[str, Any] = {"seed": 4} if name in SEEDED else {}
    if name == "top_p":
        config["p"] = 0.9
    return samplers.deserialize({"class_name": name, "config": config})


@pytest.fixture(params=samplers.NAMES)
def sampled(request: pytest.FixtureRequest, generator: Generator) -> Generator:
    """A generator with each of the samplers in turn."""
    generator.compile(seeded(request.param))
    return generator


def pack(generator: Generator, length: int = 22) -> dict[str, np.ndarray]:
    """The texts as a token dictionary."""
    assert generator.tokenizer is not None
    ids, mask = np.full((len(TEXTS), length), 1), np.zeros((len(TEXTS), length), bool)
    for i, text in enumerate(TEXTS):
        prompt = [2, *generator.tokenizer.encode(text)]
        ids[i, : len(prompt)], mask[i, : len(prompt)] = prompt, True
    return {"token_ids": ids, "padding_mask": mask}


# === Rows ===


def test_a_row_is_the_same_alone_and_in_any_batch(sampled: Generator) -> None:
    alone = [sampled.generate_results(text, **OPTIONS)[0] for text in TEXTS]
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 2), (3, 0)):
        results = sampled.generate_results([TEXTS[i] for i in order], **OPTIONS)
        for result, i in zip(results, order, strict=True):
            assert result.token_ids == alone[i].token_ids
            assert result.finish_reason == alone[i].finish_reason
            assert result.text == alone[i].text


@pytest.mark.parametrize("name", samplers.NAMES)
def test_rows_may_have_limits_and_stops_of_their_own(decoder: SessionDecoder, name: str) -> None:
    limits, stops = (5, 14, 0, 9, 1, 7, 1), ([], [11], [], [198, 27], [], [298], [])
    requests = [
        Request(tuple(case["prompt"]), min(POSITIONS, len(case["prompt"]) + n), frozenset(ids))
        for case, n, ids in zip(CASES, limits, stops, strict=True)
    ]

    def run(batch: list[Request]) -> list[tuple[list[int], str | None]]:
        found = engine_runs.run(decoder, batch, seeded(name)).sequences
        return [(sequence.token_ids, sequence.finish_reason) for sequence in found]

    alone = [run([request])[0] for request in requests]
    assert run(requests) == alone
    for request, (ids, reason) in zip(requests, alone, strict=True):
        assert reason == request.finish_reason(ids)
        assert not set(ids[:-1]) & request.stop_token_ids


def test_a_stream_joined_is_generate(sampled: Generator) -> None:
    for text in TEXTS:
        pieces = list(sampled.stream(text, **OPTIONS))
        assert "".join(pieces) == sampled.generate(text, **OPTIONS)


def test_times_are_taken(sampled: Generator) -> None:
    (result,) = sampled.generate_results("the", max_length=22, stop_token_ids=None)
    assert result.prefill_seconds > 0
    assert result.decode_seconds > 0


# === Forms of input ===


def test_text_in_every_form(sampled: Generator) -> None:
    wanted = sampled.generate(TEXTS, **OPTIONS)
    assert [sampled.generate(text, **OPTIONS) for text in TEXTS] == wanted
    encoded = [text.encode() for text in TEXTS]
    for inputs in (
        np.array(TEXTS),
        FakeTensor(np.array(encoded, object)),
        FakeDataset(encoded),
        FakeDataset([np.array(encoded[:3], object), np.array(encoded[3:], object)]),
        iter(TEXTS),
        (TEXTS[i : i + 2] for i in (0, 2)),
    ):
        assert sampled.generate(inputs, **OPTIONS) == wanted


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int32, np.int64, np.uint8])
def test_tokens_in_every_form(sampled: Generator, dtype: Any) -> None:
    tokens = pack(sampled)
    wanted = sampled.generate(tokens, stop_token_ids=STOPS)
    results = sampled.generate_results(TEXTS, **OPTIONS)
    for row, mask, result in zip(*wanted.values(), results, strict=True):
        assert row[mask].tolist() == [*result.prompt_token_ids, *result.token_ids]
    tokens["padding_mask"] = tokens["padding_mask"].astype(dtype)
    rows = [{name: value[i] for name, value in tokens.items()} for i in range(len(TEXTS))]
    halves = [{name: value[i : i + 2] for name, value in tokens.items()} for i in (0, 2)]
    tensors = {name: FakeTensor(value) for name, value in tokens.items()}
    for inputs in (tensors, iter(rows), FakeDataset(rows), iter(halves), FakeDataset(halves)):
        found = sampled.generate(inputs, stop_token_ids=STOPS)
        assert sorted(found) == ["padding_mask", "token_ids"]
        for name in found:
            assert found[name].tolist() == wanted[name].tolist()


@pytest.mark.parametrize("name", samplers.NAMES)
def test_without_a_tokenizer(generator: Generator, decoder: SessionDecoder, name: str) -> None:
    generator.compile(seeded(name))
    bare = Generator(decoder, None, sampler=seeded(name))
    tokens = pack(generator)
    found, wanted = (g.generate(tokens, stop_token_ids=STOPS) for g in (bare, generator))
    assert found["token_ids"].tolist() == wanted["token_ids"].tolist()
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        bare.generate("text")


# === All beams ===


@pytest.fixture
def all_beams(generator: Generator) -> Generator:
    """A generator that gives three beams."""
    generator.compile(BeamSampler(num_beams=3, return_all_beams=True))
    return generator


def test_beams_of_texts(all_beams: Generator) -> None:
    texts, scores = all_beams.generate(TEXTS, **OPTIONS)
    assert (scores.shape, scores.dtype) == ((4, 3), np.float32)
    assert (np.diff(scores, axis=1) <= 0).all()
    for text, beams, row in zip(TEXTS, texts, scores, strict=True):
        assert len(set(beams)) >= 2
        assert all(beam.startswith(text) for beam in beams)
        alone, alone_scores = all_beams.generate(text, **OPTIONS)
        assert alone == beams
        assert np.abs(alone_scores - row).max() < 1e-4
    stripped, _ = all_beams.generate(TEXTS, strip_prompt=True, **OPTIONS)
    assert [[t + beam for beam in row] for t, row in zip(TEXTS, stripped, strict=True)] == texts


def test_beams_of_tokens(all_beams: Generator) -> None:
    tokens = pack(all_beams)
    found = all_beams.generate(tokens, stop_token_ids=STOPS)
    assert sorted(found) == ["padding_mask", "scores", "token_ids"]
    assert (found["token_ids"].shape, found["token_ids"].dtype) == ((4, 3, 22), np.int32)
    assert (found["padding_mask"].shape, found["padding_mask"].dtype) == ((4, 3, 22), np.bool_)
    assert (found["scores"].shape, found["scores"].dtype) == ((4, 3), np.float32)
    results = all_beams.generate_results(TEXTS, **OPTIONS)
    ended = 0
    for i, result in enumerate(results):
        assert result.beams is not None
        assert (result.text, result.token_ids) == (result.beams[0].text, result.beams[0].token_ids)
        for j, beam in enumerate(result.beams):
            mask = found["padding_mask"][i, j]
            row = found["token_ids"][i, j]
            assert row[mask].tolist() == [*result.prompt_token_ids, *beam.token_ids]
            assert (row[~mask] == 1).all()  # as it was given
            assert abs(found["scores"][i, j] - beam.score) < 1e-4
            assert (beam.token_ids[-1] in STOPS) == (beam.finish_reason == "stop")
            ended += beam.finish_reason == "stop"
    assert 0 < ended < 12
    stripped = all_beams.generate(tokens, stop_token_ids=STOPS, strip_prompt=True)
    for i, result in enumerate(results):
        assert result.beams is not None
        for j, beam in enumerate(result.beams):
            mask = stripped["padding_mask"][i, j]
            assert stripped["token_ids"][i, j][mask].tolist() == list(beam.token_ids)


def test_beams_of_one_row_of_tokens(all_beams: Generator) -> None:
    tokens = pack(all_beams)
    whole = all_beams.generate(tokens, stop_token_ids=None)
    row = {name: value[2] for name, value in tokens.items()}
    found = all_beams.generate(row, stop_token_ids=None)
    assert found["token_ids"].tolist() == whole["token_ids"][2].tolist()
    assert found["padding_mask"].shape == (3, 22)
    assert found["scores"].shape == (3,)


def test_beams_of_streams_of_batches_are_joined(all_beams: Generator) -> None:
    texts, scores = all_beams.generate(TEXTS, **OPTIONS)
    found, found_scores = all_beams.generate(iter([TEXTS[:1], TEXTS[1], TEXTS[2:]]), **OPTIONS)
    assert found == texts
    assert np.abs(found_scores - scores).max() < 1e-4
    tokens = pack(all_beams)
    whole = all_beams.generate(tokens, stop_token_ids=STOPS)
    rows = [{name: value[i] for name, value in tokens.items()} for i in range(4)]
    joined = all_beams.generate(iter(rows), stop_token_ids=STOPS)
    assert joined["token_ids"].tolist() == whole["token_ids"].tolist()
    assert joined["scores"].shape == (4, 3)


def test_a_full_prompt_has_its_text_in_every_beam(all_beams: Generator) -> None:
    texts, scores = all_beams.generate(["tttt", "t"], max_length=5, stop_token_ids=None)
    assert texts[0] == ["tttt"] * 3
    assert scores[0].tolist() == [0, 0, 0]
    assert scores[1].max() < 0


def test_beams_go_into_json(all_beams: Generator) -> None:
    (result,) = all_beams.generate_results("the", max_length=6, stop_token_ids=None)
    values = json.loads(json.dumps(result.to_dict()))
    assert [sorted(beam) for beam in values["beams"]] == [
        ["finish_reason", "score", "text", "token_ids"]
    ] * 3
    assert values["beams"][0]["token_ids"] == values["token_ids"]
    all_beams.compile(BeamSampler())
    (result,) = all_beams.generate_results("the", max_length=6)
    assert result.beams is None
    assert "beams" not in result.to_dict()
