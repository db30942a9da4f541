"""What ends a text where a model has several such tokens: in the loop, in searches and in streams."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import BundleError, Generator
from runtime.bundle import Bundle
from runtime.samplers import BeamSampler, ContrastiveSampler, GreedySampler, Sampler, TopKSampler
from runtime.session import SessionDecoder
from tests.runtime.toy import CASES, END, ScriptedSampler, edit_manifest

PROMPT = next(case for case in CASES if case["text"] is not None and len(case["continuation"]) > 6)
SAMPLERS = [
    GreedySampler(),
    TopKSampler(k=3, seed=4),
    BeamSampler(num_beams=2),
    ContrastiveSampler(k=3, alpha=0.4),
]


def written(generator: Generator, **options: Any) -> tuple[tuple[int, ...], str]:
    (result,) = generator.generate_results(PROMPT["text"], max_length=40, **options)
    return result.token_ids, result.finish_reason


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_each_of_them_ends_a_text(bundle: Bundle, decoder: SessionDecoder, sampler: Sampler) -> None:
    free, _ = written(Generator(decoder, bundle.tokenizer, sampler), stop_token_ids=None)
    for position in (3, 5):
        ends = (END, free[position])
        generator = Generator(decoder, bundle.tokenizer, sampler, end_token_ids=ends)
        found, reason = written(generator)
        assert reason == "stop"
        assert found[-1] in ends
        assert not set(found[:-1]) & set(ends)
        assert (found, reason) == written(generator, stop_token_ids=ends)
        pieces = generator.stream(PROMPT["text"], max_length=40)
        assert "".join(pieces) == generator.generate(PROMPT["text"], max_length=40)
        if not isinstance(sampler, BeamSampler):  # whose best beam may be another then
            assert found == free[: free.index(free[position]) + 1]


@pytest.mark.parametrize("end", [9, 7, 8])
def test_any_of_them_not_the_first_only(decoder: SessionDecoder, bundle: Bundle, end: int) -> None:
    generator = Generator(decoder, bundle.tokenizer, end_token_ids=[7, 8, 9])
    generator.compile(ScriptedSampler([5, END, end, 6]))
    (result,) = generator.generate_results("t")
    # The tokenizer's own end token is a token like any other then.
    assert (result.token_ids, result.finish_reason) == ((5, END, end), "stop")


@pytest.mark.parametrize("kind", [tuple, set, iter, np.array], ids=lambda kind: kind.__name__)
def test_without_a_tokenizer_they_count_too(decoder: SessionDecoder, kind: Any) -> None:
    generator = Generator(decoder, None, end_token_ids=kind([7, 8]))
    tokens = {"token_ids": [[2, 4, 0, 0, 0]], "padding_mask": [[1, 1, 0, 0, 0]]}
    for _ in range(2):
        generator.compile(ScriptedSampler([5, 8, 6]))
        mask = generator.generate(tokens)["padding_mask"]
        assert mask.tolist() == [[True, True, True, True, False]]


@pytest.mark.parametrize("ends", [(300,), (-1,), ("2",), 2, np.array(2)])
def test_ids_that_the_model_does_not_have_are_refused(decoder: SessionDecoder, ends: Any) -> None:
    with pytest.raises(ValueError, match="stop_token_ids must be"):
        Generator(decoder, None, end_token_ids=ends)


def test_a_bundle_brings_its_own(toy_bundle_copy: Path) -> None:
    assert Generator.from_bundle(toy_bundle_copy, "cpu", 1).end_token_ids == (2,)
    edit_manifest(
        toy_bundle_copy, lambda v: v["generation"].pop("end_token_ids")
    )  # as of older exports
    assert Generator.from_bundle(toy_bundle_copy, "cpu", 1).end_token_ids is None
    edit_manifest(toy_bundle_copy, lambda v: v["generation"].update(end_token_ids=[7, 2]))
    generator = Generator.from_bundle(toy_bundle_copy, "cpu", 1)
    assert generator.end_token_ids == (7, 2)
    assert pickle.loads(pickle.dumps(generator)).end_token_ids == (7, 2)
    generator.compile(ScriptedSampler([5, 7, 6]))
    assert generator.generate_results("t")[0].token_ids == (5, 7)
    edit_manifest(toy_bundle_copy, lambda v: v["generation"].update(end_token_ids=[300]))
    with pytest.raises(BundleError, match="end_token_ids must be ids from 0 to 299"):
        Generator.from_bundle(toy_bundle_copy, "cpu", 1)
