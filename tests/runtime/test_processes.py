"""A generator and other processes: forked, started anew, and its way there."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator
from runtime.samplers import RandomSampler, TopKSampler

FORK = "fork" in multiprocessing.get_all_start_methods()
needs_fork = pytest.mark.skipif(not FORK, reason="this system cannot fork")
WAIT_SECONDS = 120

FORKING = """\
import os, signal, sys
from runtime import ForkedProcessError, Generator
generator = Generator.from_bundle(sys.argv[1], device="cpu", threads=2)
generator.compile("greedy")
stream = generator.stream("ab", max_length=30, stop_token_ids=None)
next(stream), next(stream), next(stream), next(stream)
text = generator.generate(["ab", "cd"], max_length=20)
{}
child = os.fork()
if child == 0:
    signal.alarm(60)  # it would outlive the test
    {}
    print("child leaves", flush=True)
    sys.exit(0)
print("child:", os.waitpid(child, 0)[1], flush=True)
assert generator.generate(["ab", "cd"], max_length=20) == text
print("parent goes on:", len(list(stream)) > 0)
"""


def run_forking(bundle: Path, child: str, parent: str = "") -> list[str]:
    """Lines of a process that forks after `parent`; a child that hangs is an error."""
    inside = textwrap.indent(textwrap.dedent(child), "    ").strip()
    script = FORKING.format(textwrap.dedent(parent), inside)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, str(bundle)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


@needs_fork
@pytest.mark.parametrize(
    "use",
    [
        'generator.generate("ab")',
        'generator.generate_results("ab")',
        'generator.stream("ab")',
        "next(stream)",
    ],
)
def test_a_forked_process_is_told_what_to_do(toy_bundle: Path, use: str) -> None:
    lines = run_forking(
        toy_bundle,
        f"""
        try:
            {use}
        except ForkedProcessError as error:
            print(error, flush=True)
        """,
    )
    assert lines[0].startswith("this Generator was made in process ")
    assert "the threads of ONNX Runtime do not live on in a forked process" in lines[0]
    assert "multiprocessing's 'spawn' or 'forkserver'" in lines[0]
    assert lines[1:] == ["child leaves", "child: 0", "parent goes on: True"]


@needs_fork
@pytest.mark.parametrize("use", ['generator.agenerate("ab")', 'generator.astream("ab").__anext__()'])
def test_a_forked_process_is_told_in_an_event_loop_too(toy_bundle: Path, use: str) -> None:
    """Although it has inherited the pool of a loop's calls, whose threads are not there."""
    lines = run_forking(
        toy_bundle,
        f"""
        import asyncio
        async def use():
            await {use}
        try:
            asyncio.run(use())
        except ForkedProcessError as error:
            print(error, flush=True)
        """,
        parent="""
        import asyncio, time
        async def use():
            await generator.agenerate("ab", max_length=10)
        asyncio.run(use())
        time.sleep(0.1)  # until its thread counts as one that can take the next call
        """,
    )
    assert lines[0].startswith("this Generator was made in process ")
    assert lines[1:] == ["child leaves", "child: 0", "parent goes on: True"]


@needs_fork
@pytest.mark.parametrize("child", ["pass", "del generator, stream", "stream.close()"])
def test_a_forked_process_ends(toy_bundle: Path, child: str) -> None:
    """Although it inherits sessions whose threads are not there."""
    assert run_forking(toy_bundle, child) == ["child leaves", "child: 0", "parent goes on: True"]


@needs_fork
def test_a_forked_process_can_make_its_own(toy_bundle: Path) -> None:
    lines = run_forking(
        toy_bundle,
        """
        generator = Generator.from_bundle(sys.argv[1], device="cpu", threads=2)
        generator.compile("greedy")
        print(generator.generate(["ab", "cd"], max_length=20) == text, flush=True)
        """,
    )
    assert lines == ["True", "child leaves", "child: 0", "parent goes on: True"]


# === Passed on ===


def generate(generator: Generator, results: Any) -> None:
    """What a worker does; a pipe, because a queue would start a thread."""
    text = generator.generate(["ab", "cde"], stop_token_ids=None)
    results.send((os.getpid(), text, type(generator.sampler).__name__, generator.max_length))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_generator_is_passed_to_a_process(toy_bundle: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    generator = Generator.from_bundle(toy_bundle, device="cpu", threads=1)
    generator.compile(RandomSampler(seed=4))
    generator.max_length = 20
    context = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=generate, args=(generator, sending))
    process.start()
    sending.close()
    worker, text, sampler, length = receiving.recv()
    process.join(WAIT_SECONDS)
    assert process.exitcode == 0
    assert worker != os.getpid()
    assert (sampler, length) == ("RandomSampler", 20)
    assert text == generator.generate(["ab", "cde"], stop_token_ids=None)


def test_pickling_keeps_how_it_was_opened(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(toy_bundle.parent)
    generator = Generator.from_bundle("toy_bundle", device="cpu", threads=1, max_cache_bytes=20_000)
    generator.compile(TopKSampler(k=3, seed=9))
    data = pickle.dumps(generator)
    assert len(data) < 2000  # a path, no weights
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(data)
    assert again.sampler.get_config() == generator.sampler.get_config()
    assert again._source == generator._source
    text = generator.generate("ab", max_length=20)
    assert again.generate("ab", max_length=20) == text
    with pytest.raises(RuntimeError, match=r"max_cache_bytes is 20 KB"):
        again.generate("ab", max_length=60)
    assert copy.deepcopy(generator).generate("ab", max_length=20) == text


def test_what_was_made_from_a_decoder_stays_here(generator: Generator) -> None:
    with pytest.raises(TypeError, match=r"only a Generator that Generator\.from_bundle made can be"):
        pickle.dumps(generator)
