"""`python -m bench.serving`: many requests at a time, in process, beside other systems."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.command import check_counts, parse_counts, print_progress, write_json
from bench.compare import prepare_systems
from bench.contestants import choose_contestants
from bench.environments import DEFAULT_FOLDER
from bench.markdown import markdown_table
from bench.measure import Spread, check_room
from bench.system import describe_hardware
from bench.workers.process import Worker
from bench.workers.systems import OURS, SYSTEMS, System
from graphs.contract import ModelConfig
from graphs.manifest import read_manifest
from runtime.command import CommandParser, run_command
from runtime.system.output_file import check_output
from runtime.system.standard_streams import print_out

STATIC = "static"  # this project's generate() on batches that begin and end together
SERVING = (OURS, "openvino")  # what has a worker that serves
HEADER = ["in flight", "system", "tokens/s", "first token ms", "between ms", "99 %", "of static"]

DESCRIPTION = """\
Serve many requests at a time in process: a closed loop, in which a request begins where another ends.
Each system is a process of its own, takes its turn in each trial and gets the same new random prompts.
The row "static" is this project's generate() on batches of that many prompts, which begin and end
together.
"""

EXAMPLES = """\
examples:
  python -m bench.serving --in-process --bundle models/int8
  python -m bench.serving --in-process --bundle models/int8 --systems openvino-int8 \\
      --checkpoint checkpoints
  python -m bench.serving --in-process --bundle models/int8 --prompt-tokens 1024 --shared-tokens 896 \\
      --new-tokens 32 --in-flight 4
      prompts that begin alike, with what is kept of them and without
"""


@dataclass(frozen=True)
class Served:
    """One trial of a system.

    Attributes:
        tokens_per_second: from the first request's start to the last token.
        first_token_seconds: of each request, from its start.
        between_seconds: from each token to the next of its request.
    """

    tokens_per_second: float
    first_token_seconds: list[float]
    between_seconds: list[float]

    @classmethod
    def of(cls, requests: Sequence[dict[str, Any]]) -> Served:
        """The figures of what `bench.workers.closed_loop` gives."""
        begin = min(request["start"] for request in requests)
        end = max(request["times"][-1] for request in requests)
        tokens = sum(len(request["times"]) for request in requests)
        return cls(
            tokens / (end - begin),
            [request["times"][0] - request["start"] for request in requests],
            [float(gap) for request in requests for gap in np.diff(request["times"])],
        )


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.serving",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--in-process", action="store_true", required=True, help="without a server (the only way yet)"
    )
    parser.add_argument(
        "--bundle", metavar="DIR", action="append", required=True, help="of this project; several times"
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="folder of huggingface/, for other systems")
    parser.add_argument(
        "--systems", default="", metavar="NAME,NAME", help="others: openvino-int8, openvino-fp32"
    )
    parser.add_argument(
        "--environments",
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"made by python -m bench.environments (default: {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--in-flight", default="1,4,16", metavar="N,N", help="requests at a time (default: 1,4,16)"
    )
    for option, default, text in (
        ("--prompt-tokens", 128, "of each request"),
        ("--shared-tokens", 0, "of each prompt, which all begin with"),
        ("--new-tokens", 64, "of each request"),
        ("--rounds", 4, "requests of a trial, times those in flight"),
        ("--trials", 3, "of each system, after one that warms up"),
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
    return run_command("serving", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    check_counts(
        options, prompt_tokens=1, shared_tokens=0, new_tokens=2, rounds=1, trials=1, threads=1, seed=0
    )
    in_flight = parse_counts("--in-flight", options.in_flight)
    check_output("--json", options.json)
    config = read_manifest(Path(options.bundle[0])).model
    check_room(config, options.prompt_tokens, options.new_tokens)
    found, versions = measure_serving(config, in_flight, options)
    if options.json != "-":
        print_out(format_serving(found, versions, options))
    if options.json is not None:
        values = {
            f"{count}": {name: [asdict(trial) for trial in trials] for name, trials in row.items()}
            for count, row in found.items()
        }
        facts = {"versions": versions, "hardware": asdict(describe_hardware())}
        write_json({"options": vars(options), "in_flight": values, **facts}, options.json)


Found = dict[int, dict[str, list[Served]]]
Versions = dict[str, dict[str, str]]


def measure_serving(
    config: ModelConfig, in_flight: Sequence[int], options: argparse.Namespace
) -> tuple[Found, Versions]:
    """Each number of requests in flight with each system, which take turns trial by trial.

    Returns:
        The trials by number and system, and the versions of each system's packages.

    Raises:
        WorkerError: if a worker dies or does not do what it was asked to.
    """
    generator = np.random.default_rng(options.seed)
    found: Found = {}
    with contextlib.ExitStack() as stack:
        workers = _start_workers(options, stack)
        for count in in_flight:
            row: dict[str, list[Served]] = {worker.name: [] for worker in workers}
            for trial in range(1 + options.trials):
                prompts = _prompts(generator, config, count * options.rounds, options)
                for worker in workers:
                    print_progress(f"{count} in flight: trial {trial} of {worker.name}")
                    served = Served.of(worker.serve(prompts, options.new_tokens, count))
                    if trial:
                        row[worker.name].append(served)
            found[count] = row
        return found, {worker.name: worker.versions for worker in workers}


def _start_workers(options: argparse.Namespace, stack: contextlib.ExitStack) -> list[Worker]:
    temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opt-serving-")))
    names = [OURS, *filter(None, options.systems.split(","))]
    surplus = [name for name in names if name.partition("-")[0] not in {"opt", *SERVING}]
    if surplus:
        raise ValueError(f"--systems: {', '.join(surplus)} cannot serve here; openvino-int8 can")
    if len(names) > 1 and options.checkpoint is None:
        raise ValueError("--systems needs --checkpoint, the folder that holds huggingface/")
    precisions = [SYSTEMS[name].precision for name in names if name in SYSTEMS] or ["fp32"]
    contestants = choose_contestants(
        names, precisions, options.bundle, Path(options.environments), temporary
    )
    folder = Path(options.checkpoint or temporary)
    checkpoints = prepare_systems(contestants, folder, options.prompt_tokens, options.new_tokens)
    workers = []
    for system in contestants.systems:
        for variant in _variants(system, shared=bool(options.shared_tokens)):
            print_progress(f"loading {variant.name}")
            python = contestants.pythons[system.name]
            worker = Worker(variant, checkpoints.path_of(system), options.threads, python)
            workers.append(stack.enter_context(worker))
    return workers


def _variants(system: System, *, shared: bool) -> list[System]:
    """The engine and static batches of a bundle; with shared beginnings, also one that keeps none."""
    if system.module != "bench.workers.opt_onnx":
        return [replace(system, options={**system.options, "prefixes": shared})]
    found = [system, replace(system, name=f"{system.name} {STATIC}", options={"static": True})]
    if shared:
        without = {"max_prefix_bytes": 0}
        found.append(replace(system, name=f"{system.name} without prefixes", options=without))
    return found


def _prompts(
    generator: np.random.Generator, config: ModelConfig, count: int, options: argparse.Namespace
) -> list[list[int]]:
    shared = generator.integers(4, config.vocabulary_size, options.shared_tokens)
    own = options.prompt_tokens - options.shared_tokens
    rows = generator.integers(4, config.vocabulary_size, (count, own))
    return [[*shared.tolist(), *row.tolist()] for row in rows]


def format_serving(found: Found, versions: Versions, options: argparse.Namespace) -> str:
    """The figures as Markdown."""
    rows = [HEADER]
    for count, row in found.items():
        for name, trials in row.items():
            rates = Spread.of(trial.tokens_per_second for trial in trials)
            first = [1e3 * s for trial in trials for s in trial.first_token_seconds]
            between = [1e3 * s for trial in trials for s in trial.between_seconds]
            cells = [f"{np.median(first):.0f}", f"{np.median(between):.1f}"]
            cells.append(f"{np.percentile(between, 99):.1f}")
            if name.endswith(STATIC):
                cells = ["–"] * 3  # only the end of a batch is seen
            static = row.get(f"{name} {STATIC}")
            share = "–"
            if static:
                ratios = [
                    own.tokens_per_second / other.tokens_per_second
                    for own, other in zip(trials, static, strict=True)
                ]
                share = f"{np.median(ratios):.0%}"
            rows.append([str(count), name, f"{rates.median:.0f}", *cells, share])
    shared = f", of which {options.shared_tokens} shared" if options.shared_tokens else ""
    return "\n".join(
        [
            *markdown_table(rows),
            "",
            f"{options.prompt_tokens} prompt tokens{shared}, {options.new_tokens} new ones, "
            f"{options.rounds} requests for each in flight, {options.trials} interleaved trials, "
            f"{options.threads} threads. {describe_hardware()}.",
            "",
            *(
                f"- {name}: {', '.join(f'{package} {version}' for package, version in own.items())}"
                for name, own in versions.items()
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
