"""`python -m bench.startup`: from the start of a process to its first tokens, beside other systems."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.checkpoint_set import CheckpointSet
from bench.command import check_counts, print_progress, write_json
from bench.compare import prepare_systems
from bench.contestants import Contestants, choose_contestants
from bench.environments import DEFAULT_FOLDER
from bench.markdown import markdown_table
from bench.measure import Spread, random_prompts
from bench.system import describe_hardware
from bench.workers.process import SETTLE_SECONDS, Worker
from bench.workers.systems import OURS, PRECISIONS, SYSTEMS, System
from runtime.bundle import load_bundle
from runtime.command import CommandParser, run_command
from runtime.system.child_process import python_command, python_environment
from runtime.system.output_file import check_output
from runtime.system.standard_streams import print_out

HEADER = ["system", "to the last token s", "of it loading s", "peak MB"]
COMMAND, COMMAND_MODULE = "opt-generate", "runtime.cli"

DESCRIPTION = """\
Measure what a fresh process takes: from its start to the last of some new tokens after one prompt,
imports and loading included, and its peak memory. With --new-tokens 1 that is the first token.

Systems take turns within a trial, each time in a new process, and the first round is not counted: it
brings the files into the page cache and makes what a system keeps between starts, packed weights say.
"""

EXAMPLES = """\
examples:
  python -m bench.startup models/int8 models/int4
  python -m bench.startup models/int8 --peers ctranslate2-int8,openvino-int8,transformers,keras-hub \\
      --checkpoint checkpoints --environments bench-environments
  python -m bench.startup models/int8 --peers keras-hub --checkpoint checkpoints --prompt-tokens 128 \\
      --new-tokens 64
      a whole generation from the start of the process
"""


@dataclass
class Starts:
    """What the starts of one system took.

    Attributes:
        seconds: from the start of the process to the last token.
        load_seconds: of these, imports and loading, as `Worker` tells them; none for the command.
        peak_memory_bytes: of each process, where it can be told.
    """

    seconds: list[float] = field(default_factory=list)
    load_seconds: list[float] = field(default_factory=list)
    peak_memory_bytes: list[int] = field(default_factory=list)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.startup",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bundles", nargs="+", metavar="BUNDLE", help="bundle folder that opt-export made"
    )
    parser.add_argument(
        "--peers",
        metavar="NAME,NAME",
        help=f"other systems, or environments for all of theirs: {','.join(SYSTEMS)}",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="for the peers: folder with the checkpoints huggingface/ and keras/ of the same model, as "
        "bench.compare takes it",
    )
    parser.add_argument(
        "--environments", default=DEFAULT_FOLDER, metavar="DIR", help=f"default: {DEFAULT_FOLDER}"
    )
    for option, default, text in (
        ("--prompt-tokens", 16, "of the prompt"),
        ("--new-tokens", 1, "after it"),
        ("--trials", 7, "of each system, after one that is not counted"),
        ("--threads", 2, "CPU threads of each system"),
        ("--seed", 0, "of the prompts"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument("--json", metavar="FILE", help="all figures; - prints JSON and no table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("startup", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    check_counts(options, prompt_tokens=1, new_tokens=1, trials=1, threads=1, seed=0)
    check_output("--json", options.json)
    peers = options.peers.split(",") if options.peers else []
    if peers and options.checkpoint is None:
        raise ValueError("--peers needs --checkpoint, the same model as the peers read it")
    with tempfile.TemporaryDirectory(prefix="opt-startup-") as temporary:
        contestants = choose_contestants(
            [OURS, *peers], PRECISIONS, options.bundles, Path(options.environments), Path(temporary)
        )
        folder = Path(options.checkpoint or temporary)
        checkpoints = prepare_systems(contestants, folder, options.prompt_tokens, options.new_tokens)
        found = measure_starts(contestants, checkpoints, options)
    if options.json != "-":
        print_out(format_starts(found, options))
    if options.json is not None:
        systems = {name: asdict(starts) for name, starts in found.items()}
        facts = {"hardware": asdict(describe_hardware())}
        write_json({"options": vars(options), "systems": systems, **facts}, options.json)


def measure_starts(
    contestants: Contestants, checkpoints: CheckpointSet, options: argparse.Namespace
) -> dict[str, Starts]:
    """Starts every system in turn, trial by trial, with a new prompt each time.

    A bundle with a tokenizer also takes part by its command, from text to text.

    Raises:
        WorkerError: if a worker dies or does not do what it was asked to.
        RuntimeError: if the command fails.
    """
    generator = np.random.default_rng(options.seed)
    vocabulary = checkpoints.config.vocabulary_size
    commands = {f"{COMMAND} {path}": path for path in contestants.bundles.values() if _has_text(path)}
    found: dict[str, Starts] = {s.name: Starts() for s in contestants.systems}
    found |= {name: Starts() for name in commands}
    for trial in range(1 + options.trials):
        print_progress(f"trial {trial} of {options.trials}")
        prompt = random_prompts(generator, vocabulary, 1, options.prompt_tokens)
        for system in contestants.systems:
            python = contestants.pythons[system.name]
            _add(found[system.name], trial, *_start(system, checkpoints, prompt, python, options))
        for name, path in commands.items():
            _add(found[name], trial, _start_command(path, options))
    return found


def _add(
    starts: Starts,
    trial: int,
    seconds: float,
    load_seconds: float | None = None,
    peak_memory_bytes: int | None = None,
) -> None:
    if trial == 0:
        return
    starts.seconds.append(seconds)
    if load_seconds is not None:
        starts.load_seconds.append(load_seconds)
    if peak_memory_bytes is not None:
        starts.peak_memory_bytes.append(peak_memory_bytes)


def _start(
    system: System,
    checkpoints: CheckpointSet,
    prompt: NDArray[np.int64],
    python: str,
    options: argparse.Namespace,
) -> tuple[float, float, int | None]:
    """Seconds to the last token, seconds of loading, and peak memory of a new worker."""
    time.sleep(SETTLE_SECONDS)
    started = time.perf_counter()
    with Worker(system, checkpoints.path_of(system), options.threads, python) as worker:
        worker.generate(prompt, options.new_tokens, settle=False)
        seconds = time.perf_counter() - started
        return seconds, worker.load_seconds, worker.peak_memory_bytes


def _has_text(bundle: Path) -> bool:
    return load_bundle(bundle).tokenizer is not None


def _start_command(bundle: Path, options: argparse.Namespace) -> float:
    """Seconds from the start of `opt-generate` to its end, for a prompt of words that are tokens."""
    length = options.prompt_tokens + options.new_tokens
    prompt = " the" * (options.prompt_tokens - 1)
    command = python_command("-m", COMMAND_MODULE, str(bundle), prompt, "--sampler", "greedy")
    command += ["--no-stop", "--max-length", str(length), "--threads", str(options.threads)]
    time.sleep(SETTLE_SECONDS)
    started = time.perf_counter()
    result = subprocess.run(
        command, capture_output=True, text=True, env=python_environment(), check=False
    )
    seconds = time.perf_counter() - started
    if result.returncode:
        raise RuntimeError(f"{COMMAND_MODULE} failed: {result.stderr.strip()}")
    return seconds


def format_starts(found: dict[str, Starts], options: argparse.Namespace) -> str:
    """The figures as Markdown; ratios are to the first system, which is a bundle."""
    rows = [HEADER]
    base = Spread.of(next(iter(found.values())).seconds).median
    for name, starts in found.items():
        spread = Spread.of(starts.seconds)
        seconds = f"{spread.median:.3f} ({spread.minimum:.3f}–{spread.maximum:.3f})"
        load, peak = starts.load_seconds, starts.peak_memory_bytes
        rows.append(
            [
                name,
                f"{seconds}, {spread.median / base:.2f}×",
                f"{Spread.of(load).median:.3f}" if load else "–",
                f"{Spread.of(peak).median / 1e6:.0f}" if peak else "–",
            ]
        )
    notes = [
        "",
        f"Medians (minimum–maximum) of {options.trials} fresh processes each, in turn, × the first; "
        f"{options.prompt_tokens} prompt tokens, {options.new_tokens} new, {options.threads} threads. "
        f"{describe_hardware()}.",
    ]
    if any(name.startswith(COMMAND) for name in found):
        notes.append(
            f"{COMMAND}: the whole command, from text to text, the end of its process included."
        )
    return "\n".join([*markdown_table(rows), *notes])


if __name__ == "__main__":
    sys.exit(main())
