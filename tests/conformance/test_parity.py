"""The bundle gives the logits and the greedy tokens of transformers and of keras-hub."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.reference


@pytest.mark.slow
@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize(
    "shape",
    [
        "toy",
        "opt_125m",
        "opt_1.3b_two_layers",
    ],
)
def test_parity_with_both_references(shape, target, tmp_path):
    from tests.conformance import parity

    for found in parity.compare(parity.SHAPES[shape], tmp_path, target):
        tolerance = 1e-3 * found.logits_std
        assert found.prefill_difference <= tolerance, found
        assert found.decode_difference <= tolerance, found
        assert found.single_matches == parity.PROMPTS, found
        assert found.batch_matches == parity.PROMPTS, found
