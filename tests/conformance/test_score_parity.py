"""Scores are those that transformers' logits give, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import Generator
from tests.exporter.conftest import (  # noqa: F401
    hf_folder,
    hf_logits,
    hf_model,
    quick_tracing,
    toy_merges,
    toy_vocabulary,
    transformers,
)

pytestmark = pytest.mark.reference
TEXTS = 50


def wanted(logits, row, first):
    """Log-probabilities of a row's tokens from `first` on, by logits [length, vocabulary]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs[np.arange(first - 1, len(row) - 1), row[first:]]


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_tokens_have_the_probabilities_of_transformers(
    target,
    hf_folder,  # noqa: F811
    hf_logits,  # noqa: F811
    hf_model,  # noqa: F811
    quick_tracing,  # noqa: F811
    tmp_path,
):
    from exporter import export_bundle

    export_bundle(hf_folder, tmp_path / "bundle", target=target)
    generator = Generator.from_bundle(tmp_path / "bundle", device="cpu", threads=1)
    chance = np.random.default_rng(6)
    size, positions = generator.config.vocabulary_size, generator.config.max_sequence_length
    rows = [chance.integers(3, size, n).tolist() for n in chance.integers(2, positions + 1, TEXTS)]
    firsts = [int(chance.integers(1, len(row))) for row in rows]
    found = generator.score(
        [row[first:] for row, first in zip(rows, firsts, strict=True)],
        [row[:first] for row, first in zip(rows, firsts, strict=True)],
    )
    worst = 0.0
    for score, row, first in zip(found, rows, firsts, strict=True):
        logits = hf_logits(np.array([row]), np.ones((1, len(row)), int))[0].astype(np.float64)
        assert score.token_ids == tuple(row[first:])
        worst = max(worst, np.abs(wanted(logits, row, first) - score.log_probabilities).max())
        assert list(score.greedy) == (logits[first - 1 : -1].argmax(axis=-1) == row[first:]).tolist()
    assert worst < 1e-4
