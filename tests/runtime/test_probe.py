"""The probe that verification runs in a process of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime import probe
from runtime.session import SessionDecoder
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
