"""Bundles of target cuda in every precision, exported and run on a real GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter import export_bundle
from runtime.bundle import load_bundle
from runtime.open_decoder import open_decoder
from tests.data.make_toy_bundle import make_model
from tests.runtime.gpu.test_gpu import assert_near
from tests.runtime.test_session import append
from tests.runtime.toy import CASES, POSITIONS

pytestmark = pytest.mark.gpu


def last_logits(decoder: Any, case: Any) -> np.ndarray:
    """After a prompt and its continuation, one token at a time."""
    cache = decoder.new_cache(1, POSITIONS)
    logits = append(decoder, cache, [case["prompt"]])
    for token in case["continuation"][:-1]:
        logits = append(decoder, cache, [[token]])
    found: np.ndarray = logits[0]
    return found


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
def test_every_precision(tmp_path: Path, precision: str) -> None:
    """Those that the CPU runs give its logits; bfloat16, of 8 bits, those of Keras less exactly."""
    folder = tmp_path / "toy"
    export_bundle(make_model(), folder, target="cuda", precision=precision)
    bundle = load_bundle(folder)
    decoder = open_decoder(bundle, "cuda")
    for case in CASES[2:5]:
        found = last_logits(decoder, case)
        if precision == "bf16":
            assert_near(found, case["logits_at_end"], share=0.1)
        else:
            assert_near(found, last_logits(open_decoder(bundle, "cpu", threads=1), case), share=0.02)
