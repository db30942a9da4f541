"""`opt-generate` on devices: what it takes, and what it tells of that."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator, RuntimeMissingError, cli
from runtime.gpu import open_device
from runtime.gpu import requirements as cuda_requirements
from runtime.session_opener import SessionOpener
from tests.runtime.test_open_decoder import Gpu

WARNING = (
    "Warning: device='auto' takes the CPU, on which a bundle for GPUs is slow and good for checks only"
)


@pytest.fixture
def wanted(cuda_bundle_folder: Path) -> str:
    generator = Generator.from_bundle(cuda_bundle_folder, "cpu", threads=1)
    generator.compile("greedy")
    return str(generator.generate("The quick", max_length=30))


def arguments(bundle: Path, *options: str) -> list[str]:
    given = [str(bundle), "The quick", "--max-length", "30", "--sampler", "greedy", "--threads", "1"]
    return [*given, *options]


def test_a_bundle_for_gpus_on_the_cpu(
    cuda_bundle_folder: Path, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(cuda_bundle_folder, "--device", "cpu")) == 0
    assert capsys.readouterr() == (f"{wanted}\n", "")


def test_the_logger_of_the_library_is_left_as_it_was(
    toy_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A program may call the command's function, and log at a level of its own."""
    logger = logging.getLogger("runtime")
    caplog.set_level(logging.ERROR, logger="runtime")
    handlers = [*logger.handlers]
    assert cli.main(arguments(toy_bundle, "--device", "cpu")) == 0
    assert (logger.level, logger.handlers) == (logging.ERROR, handlers)


def test_auto_without_a_gpu_says_once_why(
    cuda_bundle_folder: Path,
    wanted: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(index: int) -> str:
        raise RuntimeMissingError("there is none")

    monkeypatch.setattr(cuda_requirements, "require_cuda", refuse)
    assert cli.main(arguments(cuda_bundle_folder)) == 0
    assert capsys.readouterr() == (f"{wanted}\n", f"{WARNING}: there is none\n")
    assert cli.main(arguments(cuda_bundle_folder, "--device", "cuda")) == 2
    assert capsys.readouterr() == ("", "opt-generate: there is none\n")


@pytest.mark.parametrize(
    ("options", "told", "graphs", "stray"),
    [
        ([], "device='auto' takes cuda:0, GPU 0", True, False),
        (["--device", "cuda:3"], "device='cuda:3' is GPU 3", True, False),
        (["--no-cuda-graphs"], "device='auto' takes cuda:0, GPU 0", False, False),
        (["--device", "cuda", "--allow-cpu-nodes"], "device='cuda' is GPU 0", True, True),
    ],
)
def test_the_gpu_that_is_taken_is_named(
    cuda_bundle_folder: Path,
    wanted: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    told: str,
    graphs: bool,
    stray: bool,
) -> None:
    opened = []

    def on_cuda(opener: SessionOpener, graph: Any, device: Any, **settings: Any) -> Any:
        opened.append(settings)
        return opener.packed_in_memory(graph)

    monkeypatch.setattr(cuda_requirements, "require_cuda", lambda index: f"GPU {index}")
    monkeypatch.setattr(open_device, "_memory", lambda device: Gpu())
    monkeypatch.setattr(SessionOpener, "on_cuda", on_cuda)
    assert cli.main(arguments(cuda_bundle_folder, *options)) == 0
    assert capsys.readouterr() == (f"{wanted}\n", f"{told}\n")
    assert opened == [{"cuda_graphs": graphs, "allow_cpu_nodes": stray, "max_arena_bytes": None}]


def test_batches_from_a_file(
    cuda_bundle_folder: Path, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, texts = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    lines = [json.dumps({"prompt": prompt}) for prompt in ("The quick", "a", "The quick")]
    prompts.write_text("\n".join(lines), "utf-8")
    given = [str(cuda_bundle_folder), "--input", str(prompts), "--output", str(texts)]
    given += ["--max-length", "30", "--sampler", "greedy", "--threads", "1", "--device", "cpu"]
    assert cli.main([*given, "--batch-size", "2"]) == 0
    found = [json.loads(line)["text"] for line in texts.read_text("utf-8").splitlines()]
    assert (found[0], found[2], len(found)) == (wanted, wanted, 3)
    assert capsys.readouterr() == ("", "")


def test_the_command_itself(cuda_bundle_folder: Path, wanted: str, repository: Path) -> None:
    command = [sys.executable, "-m", "runtime.cli", *arguments(cuda_bundle_folder, "--device", "cpu")]
    done = subprocess.run(
        command,
        capture_output=True,
        cwd=repository,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("utf-8") == f"{wanted}\n"
