"""`python -m bench.step_overhead`: time of a decode step that is spent outside ONNX Runtime."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from bench.command import check_counts, print_progress, write_json
from bench.markdown import markdown_table
from bench.measure import Spread, check_room, random_prompts
from bench.system import describe_hardware
from graphs.versions import package_versions
from runtime.bundle import load_bundle
from runtime.call_limits import CallLimits
from runtime.command import CommandParser, run_command
from runtime.decoder import Decoder
from runtime.engine.call import Call
from runtime.engine.engine import MAX_SLOTS, Engine
from runtime.engine.request import Request
from runtime.samplers import GreedySampler, RandomSampler, Sampler, TopKSampler, TopPSampler
from runtime.system.output_file import check_output
from runtime.system.standard_streams import print_out

PACKAGES = ("opt-onnx", "onnxruntime", "onnxruntime-gpu", "numpy")
HEADER = ["sampler", "step ms", "outside µs", "of the step"]
TEXT_SPREAD = 5.0  # of logits on text: the likeliest of 50,272 tokens then has about a third
RUN_METHOD = "run_with_iobinding"

DESCRIPTION = """\
Measure what the engine costs around ONNX Runtime: of each decode step the time from one token to the
next, less the time inside the session. The samplers take turns, trial by trial.
"""

EXAMPLES = """\
examples:
  python -m bench.step_overhead opt_tiny_en
  python -m bench.step_overhead models/int4 --threads 2 --new-tokens 128 --trials 5
  python -m bench.step_overhead models/int4 --spread 0
      logits as they are: those of random weights are nearly flat, top-p's dearest case
"""


@dataclass
class SessionClock:
    """Seconds inside ONNX Runtime so far, and how many runs that were."""

    seconds: float = 0.0
    runs: int = 0


@dataclass
class StepTimes:
    """Seconds of each decode step of a sampler: the whole step, and outside ONNX Runtime."""

    whole: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Median over the steps of the part outside ONNX Runtime."""
        pairs = zip(self.outside, self.whole, strict=True)
        return Spread.of(outside / whole for outside, whole in pairs).median


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.step_overhead",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle folder that opt-export made")
    for option, default, text in (
        ("--prompt-tokens", 128, "of each row"),
        ("--new-tokens", 64, "of each row and trial"),
        ("--batch", 1, "rows"),
        ("--trials", 5, "of each sampler, after one that warms up"),
        ("--seed", 0, "of prompts and samplers"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument(
        "--spread",
        type=float,
        default=TEXT_SPREAD,
        metavar="S",
        help="sample at the temperature that gives the logits this standard deviation, as on text; "
        f"0 samples at 1 (default: {TEXT_SPREAD:g})",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--json", metavar="FILE", help="all figures; - prints JSON and no table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("step_overhead", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    # A missing ONNX Runtime is so an error that `main` tells about.
    from runtime.session import SessionDecoder

    check_counts(options, prompt_tokens=1, new_tokens=3, batch=1, trials=1, threads=1, spread=0, seed=0)
    check_output("--json", options.json)
    bundle = load_bundle(options.bundle)
    check_room(bundle.manifest.model, options.prompt_tokens, options.new_tokens)
    with session_clock() as clock:
        decoder = SessionDecoder(bundle, threads=options.threads)
        found = measure_overhead(decoder, clock, options)
    if options.json != "-":
        print_out(format_overhead(found, options))
    if options.json is not None:
        values = {
            name: {"step_seconds": asdict(Spread.of(times.whole)), "share": times.share}
            | {"outside_seconds": asdict(Spread.of(times.outside)), "steps": len(times.whole)}
            for name, times in found.items()
        }
        facts = {"versions": package_versions(PACKAGES), "hardware": asdict(describe_hardware())}
        write_json({"options": vars(options), "samplers": values, **facts}, options.json)


@contextlib.contextmanager
def session_clock() -> Iterator[SessionClock]:
    """Times every run of every ONNX Runtime session while it lasts."""
    import onnxruntime

    clock = SessionClock()
    sessions = onnxruntime.InferenceSession
    run = getattr(sessions, RUN_METHOD)

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        run(*arguments)
        clock.seconds += time.perf_counter() - started
        clock.runs += 1

    setattr(sessions, RUN_METHOD, timed)
    try:
        yield clock
    finally:
        setattr(sessions, RUN_METHOD, run)


def measure_overhead(
    decoder: Decoder, clock: SessionClock, options: argparse.Namespace
) -> dict[str, StepTimes]:
    """Steps of each sampler, which take turns trial by trial; the first trial warms up.

    Args:
        decoder: the model, whose sessions the clock times.
        clock: from `session_clock`.
        options: the command's.

    Raises:
        RuntimeError: if a step runs no session, or not one.
    """
    generator = np.random.default_rng(options.seed)
    shape = (decoder.config.vocabulary_size, options.batch, options.prompt_tokens)
    temperature = temperature_for(decoder, random_prompts(generator, *shape), options.spread)
    samplers = _samplers(options.seed, temperature)
    found = {name: StepTimes() for name in samplers}
    engine = new_engine(decoder, options.batch)
    for trial in range(1 + options.trials):
        print_progress(f"trial {trial} of {options.trials}")
        prompts = random_prompts(generator, *shape).tolist()
        for name, sampler in samplers.items():
            times = time_steps(engine, new_call(decoder, sampler, prompts, options.new_tokens), clock)
            if trial:
                found[name].whole += times.whole
                found[name].outside += times.outside
    return found


def _samplers(seed: int, temperature: float) -> dict[str, Sampler]:
    given: dict[str, Any] = {"seed": seed, "temperature": temperature}
    return {
        "greedy": GreedySampler(),
        "top_k, k=5": TopKSampler(**given),
        "top_k, k=50": TopKSampler(k=50, **given),
        "top_p, p=0.1": TopPSampler(**given),
        "top_p, p=0.95": TopPSampler(p=0.95, **given),
        "random": RandomSampler(**given),
    }


def temperature_for(decoder: Decoder, prompts: Any, spread: float) -> float:
    """What brings the logits after these prompts to a standard deviation; 1 for a deviation of 0."""
    if not spread:
        return 1.0
    rows, length = prompts.shape
    cache = decoder.new_cache(rows, length)
    logits = decoder.append(cache, prompts, np.full(rows, length, np.int32)).logits
    return float(logits.std(axis=1).mean()) / spread


def new_engine(decoder: Decoder, batch: int) -> Engine:
    """One whose steps are to be timed: it keeps its cache from call to call, and no prompts."""
    return Engine(decoder, max_prefix_bytes=0, max_slots=max(batch, MAX_SLOTS))


def new_call(
    decoder: Decoder, sampler: Sampler, prompts: Sequence[Sequence[int]], new_tokens: int
) -> Call:
    """A call without stop tokens or limits."""
    requests = [Request(tuple(prompt), len(prompt) + new_tokens) for prompt in prompts]
    search = sampler.search(requests, decoder.config.vocabulary_size)
    return Call(requests, search, CallLimits())


def time_steps(engine: Engine, call: Call, clock: SessionClock) -> StepTimes:
    """The engine's steps once all prompts have been read, each of which gives every row a token.

    Args:
        engine: has no other call.
        call: of rows that begin and end together.
        clock: of the engine's sessions.

    Raises:
        RuntimeError: if a step runs no session, or not one.
    """
    times = StepTimes()
    engine.check(call)
    engine.add(call)
    while not (call.ended or all(sequence.token_ids for sequence in call.sequences)):
        engine.step()
    while not call.ended:
        marked = replace(clock)
        started = time.perf_counter()
        engine.step()
        whole = time.perf_counter() - started
        if clock.runs != marked.runs + 1:
            raise RuntimeError(
                f"a decode step ran {clock.runs - marked.runs} sessions by {RUN_METHOD}, not one: "
                "what the clock wraps is no longer what runtime.session calls"
            )
        times.whole.append(whole)
        times.outside.append(whole - (clock.seconds - marked.seconds))
    call.check_complete()
    return times


def format_overhead(found: dict[str, StepTimes], options: argparse.Namespace) -> str:
    """The figures as Markdown."""
    rows = [HEADER]
    for name, times in found.items():
        whole, outside = Spread.of(times.whole), Spread.of(times.outside)
        cell = f"{outside.median * 1e6:.0f} ({outside.minimum * 1e6:.0f})"
        rows.append([name, f"{whole.median * 1e3:.2f}", cell, f"{times.share:.1%}"])
    steps = len(next(iter(found.values())).whole)
    spread = f"brought to {options.spread:g}" if options.spread else "as it is"
    return "\n".join(
        [
            *markdown_table(rows),
            "",
            f"Medians of {steps} steps (least); {options.bundle}, batch {options.batch}, after "
            f"{options.prompt_tokens} prompt tokens; standard deviation of the logits {spread}. "
            f"{describe_hardware()}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
