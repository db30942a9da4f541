"""Revision 4 of the contract: the tensors of graphs whose memory is a device's, pinned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from graphs.contract import (
    CACHE_BYTES,
    MOST_BEST_LOGITS,
    ModelConfig,
    Phase,
    Revision,
    TensorSpec,
    best_count,
    graph_inputs,
    graph_outputs,
)

CONFIG = ModelConfig(300, 2, 4, 32, 64, 64)
CACHE = ("batch", 4, "capacity", 8)


def test_the_revisions() -> None:
    assert [(one.name, int(one)) for one in Revision] == [("HOST", 3), ("DEVICE", 4)]


def test_inputs_and_outputs_are_those_of_revision_4() -> None:
    """A change here is a new revision: bundles that were written before do not follow it."""
    assert graph_inputs(CONFIG, Phase.PREFILL, "float16", Revision.DEVICE) == [
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("positions", "int64", ("batch", "sequence")),
        TensorSpec("output_positions", "int64", ("outputs",)),
        TensorSpec("last_positions", "int32", ("batch",)),
        TensorSpec("total_length", "int32", (1,)),
        TensorSpec("inverse_temperatures", "float32", ("outputs", 1)),
        TensorSpec("past_key_values.0.key", "float16", CACHE),
        TensorSpec("past_key_values.0.value", "float16", CACHE),
        TensorSpec("past_key_values.1.key", "float16", CACHE),
        TensorSpec("past_key_values.1.value", "float16", CACHE),
    ]
    assert graph_outputs(CONFIG, Phase.PREFILL, "float16", Revision.DEVICE) == [
        TensorSpec("logits", "float32", ("outputs", 300)),
        TensorSpec("hidden_states", "float32", ("batch", "sequence", 32)),
        TensorSpec("best_logits", "float32", ("outputs", 64)),
        TensorSpec("best_ids", "int64", ("outputs", 64)),
        TensorSpec("weight_totals", "float32", ("outputs",)),
        TensorSpec("present.0.key", "float16", CACHE),
        TensorSpec("present.0.value", "float16", CACHE),
        TensorSpec("present.1.key", "float16", CACHE),
        TensorSpec("present.1.value", "float16", CACHE),
    ]


@pytest.mark.parametrize("function", [graph_inputs, graph_outputs])
def test_decode_differs_by_one_token_only(function: Any) -> None:
    prefill = function(CONFIG, Phase.PREFILL, "float16", Revision.DEVICE)
    fixed = [
        replace(spec, shape=tuple(1 if d == "sequence" else d for d in spec.shape)) for spec in prefill
    ]
    assert function(CONFIG, Phase.DECODE, "float16", Revision.DEVICE) == fixed != prefill


@pytest.mark.parametrize("function", [graph_inputs, graph_outputs])
@pytest.mark.parametrize("dtype", CACHE_BYTES)
def test_only_the_cache_has_the_dtype_of_the_cache(function: Any, dtype: str) -> None:
    for spec in function(CONFIG, Phase.PREFILL, dtype, Revision.DEVICE):
        if spec.shape == CACHE:
            assert spec.dtype == dtype
        else:
            assert spec.dtype in ("int32", "int64", "float32")


def test_bytes_of_a_cache_s_entries() -> None:
    assert CACHE_BYTES == {"float32": 4, "float16": 2, "bfloat16": 2}


def test_the_host_s_is_what_is_meant_without_a_word() -> None:
    for phase in Phase:
        assert graph_inputs(CONFIG, phase) == graph_inputs(CONFIG, phase, "float32", Revision.HOST)
        assert graph_outputs(CONFIG, phase) == graph_outputs(CONFIG, phase, "float32", Revision.HOST)


@pytest.mark.parametrize(("vocabulary", "count"), [(1, 1), (63, 63), (64, 64), (65, 64), (50272, 64)])
def test_a_small_vocabulary_is_ranked_whole(vocabulary: int, count: int) -> None:
    config = replace(CONFIG, vocabulary_size=vocabulary)
    assert best_count(config) == count <= MOST_BEST_LOGITS == 64
    shapes = {
        spec.name: spec.shape
        for spec in graph_outputs(config, Phase.DECODE, "float16", Revision.DEVICE)
    }
    assert shapes["best_logits"] == shapes["best_ids"] == ("outputs", count)


def test_hidden_states_are_as_wide_as_the_embedding() -> None:
    narrow = replace(CONFIG, embedding_dim=16)
    assert graph_inputs(narrow, Phase.PREFILL, "float16", Revision.DEVICE) == graph_inputs(
        CONFIG, Phase.PREFILL, "float16", Revision.DEVICE
    )
    outputs = graph_outputs(narrow, Phase.PREFILL, "float16", Revision.DEVICE)
    others = graph_outputs(CONFIG, Phase.PREFILL, "float16", Revision.DEVICE)
    changed = [new for old, new in zip(others, outputs, strict=True) if old != new]
    assert changed == [TensorSpec("hidden_states", "float32", ("batch", "sequence", 16))]
