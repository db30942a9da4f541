"""`python -m bench.stalls`: what long prompts do to the streams beside them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from bench.command import check_counts, print_progress, write_json
from bench.markdown import markdown_table
from bench.measure import check_room
from bench.system import describe_hardware
from runtime.bundle import load_bundle
from runtime.call_limits import CallLimits
from runtime.command import CommandParser, run_command
from runtime.decoder import Decoder
from runtime.engine.call import Call
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.engine.scheduler import STEP_TOKENS
from runtime.samplers import GreedySampler
from runtime.system.output_file import check_output
from runtime.system.standard_streams import print_out

HEADER = ["long prompts", "tokens", "between ms, median", "99 %", "most", "of the undisturbed median"]

DESCRIPTION = """\
Measure the time between the tokens of streams while long prompts arrive, and without them: the engine
reads a prompt in parts between the steps of the others.
"""

EXAMPLES = """\
examples:
  python -m bench.stalls models/int8
  python -m bench.stalls models/int8 --streams 8 --arriving-tokens 1024 --every 1.0 --step-tokens 128
"""


@dataclass(frozen=True)
class Gaps:
    """Seconds between one token and the next, of all streams."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Half of them are shorter."""
        return float(np.median(self.seconds))

    @property
    def p99(self) -> float:
        """One in a hundred is longer."""
        return float(np.percentile(self.seconds, 99))


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.stalls",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle folder that opt-export made, for CPUs")
    for option, default, text in (
        ("--streams", 8, "that are running"),
        ("--prompt-tokens", 128, "of each stream"),
        ("--new-tokens", 300, "of each stream"),
        ("--arriving-tokens", 1024, "of each prompt that arrives"),
        ("--step-tokens", STEP_TOKENS, "of prompts in a step while streams wait"),
        ("--threads", 2, "of the CPU"),
        ("--seed", 0, "of the prompts"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="S", help="seconds between arrivals (default: 1.0)"
    )
    parser.add_argument("--json", metavar="FILE", help="all figures; - prints JSON and no table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("stalls", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    from runtime.session import SessionDecoder

    names = ("streams", "prompt_tokens", "new_tokens", "arriving_tokens", "step_tokens", "threads")
    check_counts(options, **dict.fromkeys(names, 1), seed=0)
    check_output("--json", options.json)
    bundle = load_bundle(options.bundle)
    check_room(bundle.manifest.model, options.prompt_tokens, options.new_tokens)
    check_room(bundle.manifest.model, options.arriving_tokens, 1)
    decoder = SessionDecoder(bundle, threads=options.threads)
    found = {}
    for name, every in (("none", None), (f"every {options.every:g} s", options.every)):
        print_progress(f"long prompts: {name}")
        found[name] = measure_gaps(decoder, every, options)
    if options.json != "-":
        print_out(format_gaps(found, options))
    if options.json is not None:
        facts = {"hardware": asdict(describe_hardware())}
        gaps = {name: gaps.seconds for name, gaps in found.items()}
        write_json({"options": vars(options), "between_seconds": gaps, **facts}, options.json)


def measure_gaps(decoder: Decoder, every: float | None, options: argparse.Namespace) -> Gaps:
    """Runs the streams to their ends, with a long prompt of one token to write now and then."""
    chance = np.random.default_rng(options.seed)
    engine = Engine(decoder, max_prefix_bytes=0, step_tokens=options.step_tokens)
    streams = [
        _begin(engine, decoder, chance, options.prompt_tokens, options.new_tokens)
        for _ in range(options.streams)
    ]
    while any(not call.sequences[0].token_ids for call in streams):
        engine.step()  # none waits for a first token while another one's prompt is read
    marks: dict[int, list[float]] = {i: [] for i in range(len(streams))}
    arrival = time.perf_counter()
    while not all(call.ended for call in streams):
        if every is not None and time.perf_counter() >= arrival:
            arrival += every
            _begin(engine, decoder, chance, options.arriving_tokens, 1)
        known = [len(call.sequences[0].token_ids) for call in streams]
        engine.step()
        now = time.perf_counter()
        for i, call in enumerate(streams):
            if len(call.sequences[0].token_ids) > known[i]:
                marks[i].append(now)
    return Gaps([float(gap) for times in marks.values() for gap in np.diff(times)])


def _begin(
    engine: Engine, decoder: Decoder, chance: np.random.Generator, prompt: int, new: int
) -> Call:
    tokens = tuple(chance.integers(4, decoder.config.vocabulary_size, prompt).tolist())
    requests = [Request(tokens, prompt + new)]
    search = GreedySampler().search(requests, decoder.config.vocabulary_size)
    call = Call(requests, search, CallLimits())
    engine.check(call)
    engine.add(call)
    return call


def format_gaps(found: dict[str, Gaps], options: argparse.Namespace) -> str:
    """The figures as Markdown."""
    undisturbed = next(iter(found.values())).median
    rows = [HEADER]
    for name, gaps in found.items():
        cells = [1e3 * gaps.median, 1e3 * gaps.p99, 1e3 * max(gaps.seconds)]
        figures = [f"{cell:.1f}" for cell in cells]
        rows.append([name, str(len(gaps.seconds)), *figures, f"{gaps.p99 / undisturbed:.1f}x at 99 %"])
    return "\n".join(
        [
            *markdown_table(rows),
            "",
            f"{options.streams} streams of {options.prompt_tokens} prompt tokens and "
            f"{options.new_tokens} new ones; prompts of {options.arriving_tokens} tokens; steps of "
            f"{options.step_tokens} prompt tokens; {options.threads} threads. {describe_hardware()}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
