"""The engine over a model that counts: what becomes of each row can be told in advance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundle import Bundle
from runtime.decoder import StepOutput
from runtime.engine.request import Request
from runtime.samplers import GreedySampler, Sampler
from tests.runtime import engine_runs
from tests.runtime.fake_decoder import SequenceDecoder


def run(
    decoder: Any, requests: Sequence[Request], sampler: Sampler
) -> list[tuple[list[int], str | None]]:
    """Each row's tokens and finish reason."""
    found = engine_runs.run(decoder, requests, sampler).sequences
    return [(sequence.token_ids, sequence.finish_reason) for sequence in found]


class CountingDecoder(SequenceDecoder):
    """A model whose next token is the last one plus one; records what the engine asks of it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.vocabulary_size)
        self.calls: list[tuple[list[list[int]], list[int]]] = []

    def slot_capacity(self, tokens: int) -> int:
        return -(-tokens // 16) * 16

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        size = self.config.vocabulary_size
        return np.eye(size, dtype=np.float32)[(tokens[-1] + 1) % size]

    def append(self, cache: Any, token_ids: Any, new_lengths: Any, **options: Any) -> StepOutput:
        self.calls.append((token_ids.tolist(), new_lengths.tolist()))
        return super().append(cache, token_ids, new_lengths, **options)


def test_any_decoder_will_do_and_each_token_is_appended_once(bundle: Bundle) -> None:
    decoder = CountingDecoder(bundle.manifest.model)
    found = run(
        decoder,
        [Request((5, 6), 5), Request((50,), 9, frozenset({52})), Request((9, 9, 9), 6)],
        GreedySampler(),
    )
    assert found == [([7, 8, 9], "length"), ([51, 52], "stop"), ([10, 11, 12], "length")]
    assert [(len(cache.lengths), cache.capacity) for cache in decoder.caches] == [(3, 16)]
    assert decoder.calls == [
        ([[5, 6, 0], [50, 0, 0], [9, 9, 9]], [2, 1, 3]),
        ([[7], [51], [10]], [1, 1, 1]),
        ([[8], [11]], [1, 1]),  # the last row is in the place of the one that has ended
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
    requests = [Request((i,) * n, limit, frozenset(s)) for i, (n, limit, s) in enumerate(rows)]
    found = run(CountingDecoder(bundle.manifest.model), requests, GreedySampler())
    for i, ((token_ids, reason), (n, limit, stops)) in enumerate(zip(found, rows, strict=True)):
        wanted = list(range(i + 1, i + 1 + max(0, limit - n)))
        end = next((at + 1 for at, token in enumerate(wanted) if token in stops), None)
        assert token_ids == wanted[:end]
        assert reason == ("length" if end is None else "stop")
