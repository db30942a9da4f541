"""The same bundle, prompt, seed and threads give the same text, wherever and beside whatever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator, samplers, session_opener
from runtime.bundle import Bundle

PROMPTS = ["ab", "", "The import statement", "xyz", "ab"]
SAMPLERS: list[dict[str, Any]] = [
    {"class_name": "greedy"},
    {"class_name": "random", "config": {"seed": 1}},
    {"class_name": "top_k", "config": {"k": 20, "seed": 2}},
    {"class_name": "top_p", "config": {"p": 0.9, "seed": 3}},
    {"class_name": "beam", "config": {"num_beams": 3}},
    {"class_name": "contrastive", "config": {"k": 4}},
]
LENGTH = 40

SCRIPT = """\
import json, sys
from runtime import Generator
from tests.runtime.test_determinism import generate_all
generator = Generator.from_bundle(sys.argv[1], device="cpu", threads=int(sys.argv[2]))
print(json.dumps(generate_all(generator)))
"""


def generate_all(generator: Generator) -> list[list[str]]:
    """Texts of all prompts in one batch, by sampler."""
    found = []
    for config in SAMPLERS:
        generator.compile(config)
        found.append(generator.generate(PROMPTS, max_length=LENGTH, stop_token_ids=None))
    return found


@pytest.fixture(params=["toy_bundle", "cpu_bundle_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def test_every_process_and_thread_count_gives_the_same(folder: Path) -> None:
    """Between thread counts it is what ONNX Runtime's kernels do, not what they promise."""
    here = generate_all(Generator.from_bundle(folder, device="cpu", threads=1))
    for threads in ("1", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), threads],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            check=True,
        )
        assert json.loads(done.stdout) == here


def test_a_batch_gives_what_its_prompts_give_alone(folder: Path) -> None:
    generator = Generator.from_bundle(folder, device="cpu", threads=1)
    for config, batch in zip(SAMPLERS, generate_all(generator), strict=True):
        generator.compile(config)
        options: dict[str, Any] = {"max_length": LENGTH, "stop_token_ids": None}
        alone = [generator.generate(prompt, **options) for prompt in PROMPTS[:-1]]
        streamed = ["".join(generator.stream(prompt, **options)) for prompt in PROMPTS[:-1]]
        assert batch[:-1] == alone == streamed


def test_a_repeated_prompt_is_a_draw_of_its_own(generator: Generator) -> None:
    found = generate_all(generator)
    assert [texts[0] == texts[-1] for texts in found] == [True, False, False, False, True, True]


def test_opening_in_several_threads_leaves_the_environment(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that ends first does not take away what the other still needs."""
    name = next(iter(session_opener.PLAIN_ATTENTION))
    monkeypatch.delenv(name, raising=False)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with session_opener._environment({name: "1"}):
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(60)
    with session_opener._environment({name: "1"}):
        assert os.environ[name] == "1"
        leave.set()
        thread.join(60)
        assert os.environ[name] == "1"
    assert name not in os.environ
    with monkeypatch.context() as patch:
        patch.setenv(name, "0")
        with session_opener._environment({name: "1"}):
            assert os.environ[name] == "0"
        assert os.environ[name] == "0"


def test_samplers_keep_no_state_between_calls(generator: Generator) -> None:
    for config in SAMPLERS:
        sampler = samplers.deserialize(config)
        before = dict(vars(sampler))
        generator.compile(sampler)
        first = generator.generate(PROMPTS, max_length=LENGTH)
        assert generator.generate(PROMPTS, max_length=LENGTH) == first
        assert vars(sampler) == before
