"""The probe that verification runs in a process of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime import BundleError, probe
from runtime.session import SessionDecoder
from runtime.stored_probe import check_probe, make_probe
from tests.runtime.fake_decoder import SequenceDecoder
from tests.runtime.toy import CASES, VOCABULARY

# Two prompts of different lengths with what Keras continues them with, padded with a token.
FIRST, SECOND = CASES[3], CASES[2]
STEPS = len(FIRST["continuation"]) - 1
LENGTHS = [len(FIRST["prompt"]), len(SECOND["prompt"])]
WIDTH = LENGTHS[0] + STEPS
ROWS = [[*case["prompt"], *case["continuation"][:-1]] for case in (FIRST, SECOND)]
TOKENS = [[*row, *[5] * (WIDTH - len(row))] for row in ROWS]
REQUEST = {"token_ids": TOKENS, "prompt_lengths": LENGTHS, "steps": STEPS}


def assert_logits(logits: np.ndarray) -> None:
    assert logits.shape == (2, 1 + STEPS, VOCABULARY)
    assert logits.dtype == np.float32
    for found, case in zip(logits, (FIRST, SECOND), strict=True):
        assert np.abs(found[0] - case["logits_after_prompt"]).max() <= 2e-5
        assert np.abs(found[-1] - case["logits_at_end"]).max() <= 2e-5
        assert found.argmax(axis=1).tolist() == case["continuation"]


def test_teacher_forced_logits_are_those_of_keras(decoder: SessionDecoder) -> None:
    logits = probe.teacher_forced_logits(decoder, np.array(TOKENS), np.array(LENGTHS, np.int32), STEPS)
    assert_logits(logits)


def test_no_steps_is_the_prompt_alone(decoder: SessionDecoder) -> None:
    tokens = np.array([FIRST["prompt"]])
    logits = probe.teacher_forced_logits(decoder, tokens, np.array([LENGTHS[0]], np.int32), 0)
    assert logits.shape == (1, 1, VOCABULARY)


def test_main(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = SimpleNamespace(buffer=io.BytesIO())
    monkeypatch.setattr(sys, "argv", ["probe", str(toy_bundle)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(REQUEST)))
    monkeypatch.setattr(sys, "stdout", output)
    probe.main()
    answer = np.load(io.BytesIO(output.buffer.getvalue()), allow_pickle=False)
    assert_logits(answer["logits"])
    assert answer["peak_memory_bytes"] > 4 * 1024 * 1024


def test_the_command(toy_bundle: Path, repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "runtime.probe", str(toy_bundle)],
        input=json.dumps(REQUEST).encode(),
        capture_output=True,
        cwd=repository,
        check=True,
    )
    assert_logits(np.load(io.BytesIO(result.stdout), allow_pickle=False)["logits"])


def test_the_command_on_no_bundle(tmp_path: Path, repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "runtime.probe", str(tmp_path)],
        input=json.dumps(REQUEST).encode(),
        capture_output=True,
        cwd=repository,
        check=False,
    )
    assert result.returncode == 1
    assert b"is no bundle" in result.stderr
    assert result.stdout == b""


# === The stored run ===


class ChangedDecoder(SequenceDecoder):
    """Says something else of one token, by so much."""

    def __init__(self, token: int = 0, more: float = 0.0) -> None:
        super().__init__(24)
        self._change = token, more

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        found = super().logits(tokens)
        token, more = self._change
        found[token] += more
        return found


def test_a_stored_run_is_repeated() -> None:
    stored = make_probe(ChangedDecoder(), "fp32")
    assert stored is not None
    assert check_probe(ChangedDecoder(), stored) == 0
    unused = next(token for token in range(24) if token not in stored.token_ids)
    assert check_probe(ChangedDecoder(unused, -1.0), stored) == 0
    with pytest.raises(BundleError, match=f"the best token is {unused} and not {stored.token_ids[0]},"):
        check_probe(ChangedDecoder(unused, 100.0), stored)  # all stored logits are as they were
    with pytest.raises(BundleError, match="whose logit is"):
        check_probe(ChangedDecoder(stored.token_ids[0], 3 * stored.tolerance), stored)
    near = check_probe(ChangedDecoder(stored.token_ids[0], stored.tolerance / 2), stored)
    assert near == pytest.approx(stored.tolerance / 2, rel=0.01)
