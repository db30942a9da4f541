"""The bundle gives the logits and the greedy tokens of transformers and of keras-hub."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("target", [pytest.param("portable", marks=pytest.mark.slow), "cpu"])
@pytest.mark.parametrize(
    "shape",
    [
        "toy",
        pytest.param("opt_125m", marks=pytest.mark.slow),
        pytest.param("opt_1.3b_two_layers", marks=pytest.mark.slow),
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
