"""A row of a batch is what it is alone: padding, lengths and stop tokens, on ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Generator
from runtime.samplers import TopKSampler

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.session import SessionDecoder

FEW = settings(max_examples=15)  # each runs the model some dozen times
PROMPTS = st.lists(st.lists(st.integers(4, 260), min_size=1, max_size=14), min_size=1, max_size=4)
LENGTH = st.integers(1, 24)


@pytest.fixture(scope="module")
def generator(bundle: Bundle, decoder: SessionDecoder) -> Generator:
    """Each example compiles it as it needs."""
    return Generator(decoder, bundle.tokenizer)


def padded(prompts: list[list[int]], width: int) -> dict[str, np.ndarray]:
    ids = np.full((len(prompts), width), 1, np.int64)
    mask = np.zeros((len(prompts), width), bool)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = prompt
        mask[i, : len(prompt)] = True
    return {"token_ids": ids, "padding_mask": mask}


def rows(result: dict[str, np.ndarray]) -> list[list[int]]:
    pairs = zip(result["token_ids"], result["padding_mask"], strict=True)
    return [ids[mask.astype(bool)].tolist() for ids, mask in pairs]


@FEW
@given(PROMPTS, LENGTH, st.sampled_from(["greedy", "top_k"]))
def test_a_ragged_batch_is_its_rows_alone(
    generator: Generator, prompts: list[list[int]], more: int, sampler: str
) -> None:
    generator.compile("greedy" if sampler == "greedy" else TopKSampler(k=5, seed=7))
    width = max(map(len, prompts)) + more
    together = rows(generator.generate(padded(prompts, width), stop_token_ids=None))
    assert [row[: len(prompt)] for row, prompt in zip(together, prompts, strict=True)] == prompts
    assert [len(row) for row in together] == [width] * len(prompts)
    alone = [
        rows(generator.generate(padded([prompt], width), stop_token_ids=None))[0]
        for prompt in prompts[: 1 if sampler == "top_k" else None]  # a row's seed has its number in it
    ]
    assert together[: len(alone)] == alone


@FEW
@given(PROMPTS, LENGTH, st.sets(st.integers(4, 260), min_size=1, max_size=200))
def test_a_row_ends_with_its_first_stop_token(
    generator: Generator, prompts: list[list[int]], more: int, stops: set[int]
) -> None:
    generator.compile("greedy")
    width = max(map(len, prompts)) + more
    free = rows(generator.generate(padded(prompts, width), stop_token_ids=None))
    found = rows(generator.generate(padded(prompts, width), stop_token_ids=sorted(stops)))
    for prompt, whole, row in zip(prompts, free, found, strict=True):
        new = whole[len(prompt) :]
        end = next((i + 1 for i, token in enumerate(new) if token in stops), len(new))
        assert row == prompt + new[:end]


@FEW
@given(st.lists(st.text(max_size=5), min_size=1, max_size=3), st.integers(22, 40))
def test_texts_keep_their_prompts_and_their_length(
    generator: Generator, prompts: list[str], length: int
) -> None:
    generator.compile("greedy")
    whole = generator.generate_results(prompts, max_length=length)
    bare = generator.generate(prompts, max_length=length, strip_prompt=True)
    for prompt, result, rest in zip(prompts, whole, bare, strict=True):
        assert len(result.prompt_token_ids) + len(result.token_ids) <= length
        if "</s>" not in prompt and "<pad>" not in prompt:
            assert result.text == prompt + rest
