"""`python -m bench.compare`: this project beside other systems, on the same weights and prompts."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench.checkpoint_set import (
    BUNDLE,
    CheckpointSet,
    convert_checkpoint,
    export_bundle,
    find_checkpoints,
    make_checkpoints,
)
from bench.command import check_counts, parse_counts, print_progress, write_json
from bench.comparison import compare
from bench.comparison_plot import check_plotting, plot_comparison
from bench.comparison_result import Comparison, Settings
from bench.comparison_table import format_comparison
from bench.contestants import Contestants, choose_contestants
from bench.environments import DEFAULT_FOLDER
from bench.measure import check_room
from bench.read_bandwidth import METHOD, BandwidthMeter
from bench.shapes import SHAPES
from bench.system import describe_hardware
from bench.weight_bytes import bundle_weight_bytes, folder_bytes
from bench.workers.process import Worker
from bench.workers.systems import OURS, PRECISIONS, SYSTEMS, System
from runtime.command import CommandParser, run_command
from runtime.system.output_file import check_output, write_output
from runtime.system.standard_streams import print_out

DESCRIPTION = """\
Compare this project with other systems, each in a process of its own, on the same random weights.

Generation is greedy, never stops early, and takes new random prompts in each trial; the systems take
turns within a trial. What counts as what is in bench/README.md.
"""

EXAMPLES = """\
examples:
  python -m bench.environments
      makes the environments of the other systems, once
  python -m bench.compare --shape opt_125m
      makes the checkpoints, conversions and bundles in a temporary folder
  python -m bench.compare --shape opt_1.3b --layers 2 --systems opt-onnx,openvino --precision int8,int4
  python -m bench.make_checkpoint --shape opt_125m --format huggingface --output checkpoints/huggingface
  python -m bench.make_checkpoint --shape opt_125m --format keras --output checkpoints/keras
  python -m bench.compare --checkpoint checkpoints --batch 1,8 --prompt-tokens 128,512 \\
      --json figures.json --markdown figures.md --plot figures.png
      the same with checkpoints and conversions that stay; bundles are exported anew each time
  python -m bench.compare --checkpoint checkpoints --bundle models/int8 --bundle models/int4
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.compare",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--shape", choices=SHAPES, help="make random checkpoints of these sizes")
    model.add_argument(
        "--checkpoint", metavar="DIR", help="folder with the checkpoints huggingface/ and keras/"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="with --shape: fewer or more")
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        action="append",
        help="a bundle of this project, of any precision; several times for several bundles "
        "(default: export one of each precision from huggingface/)",
    )
    names = [OURS, *SYSTEMS]
    parser.add_argument(
        "--systems",
        default=",".join(names),
        metavar="NAME,NAME",
        help="in the order to take turns; the name of an environment stands for all of its systems "
        f"(default: {','.join(names)})",
    )
    parser.add_argument(
        "--precision",
        default=",".join(PRECISIONS),
        metavar="NAME,NAME",
        help=f"of the other systems, and of the bundles to export (default: {','.join(PRECISIONS)})",
    )
    parser.add_argument(
        "--environments",
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"made by python -m bench.environments (default: {DEFAULT_FOLDER}); for a system that has "
        "none there, the running Python is tried",
    )
    for option, default, text in (
        ("--prompt-tokens", Settings.prompt_tokens, "of each row"),
        ("--batch", Settings.batches, "rows"),
    ):
        shown = ",".join(map(str, default))
        parser.add_argument(
            option, default=shown, metavar="N,N", help=f"{text}, one or more (default: {shown})"
        )
    for option, number, text in (
        ("--new-tokens", Settings.new_tokens, "of each row"),
        ("--trials", Settings.trials, "of each system and case"),
        ("--threads", Settings.threads, "CPU threads of each system"),
        ("--seed", Settings.seed, "of the random weights and prompts"),
    ):
        parser.add_argument(
            option, type=int, default=number, metavar="N", help=f"{text} (default: {number})"
        )
    parser.add_argument("--json", metavar="FILE", help="all figures; - prints JSON and no table")
    parser.add_argument("--markdown", metavar="FILE", help="the tables")
    parser.add_argument("--plot", metavar="FILE", help="a picture, PNG; needs matplotlib")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("compare", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    check_counts(options, layers=1, new_tokens=2, trials=1, threads=1, seed=0)
    if options.layers is not None and options.shape is None:
        raise ValueError("--layers goes with --shape")
    for option in ("json", "markdown", "plot"):
        check_output(f"--{option}", getattr(options, option))
    if options.plot is not None:
        check_plotting()
    settings = Settings(
        batches=parse_counts("--batch", options.batch),
        prompt_tokens=parse_counts("--prompt-tokens", options.prompt_tokens),
        new_tokens=options.new_tokens,
        trials=options.trials,
        threads=options.threads,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory(prefix="opt-compare-") as temporary:
        contestants = choose_contestants(
            systems=options.systems.split(","),
            precisions=options.precision.split(","),
            bundles=options.bundle,
            environments=Path(options.environments),
            temporary=Path(temporary),
        )
        folder = Path(options.checkpoint or temporary)
        if options.shape is not None:
            config = SHAPES[options.shape]
            config = replace(config, num_layers=options.layers or config.num_layers)
            check_room(config, max(settings.prompt_tokens), settings.new_tokens)
            kinds = {system.checkpoint for system in contestants.systems}
            make_checkpoints(config, folder, kinds, options.seed, progress=print_progress)
        comparison = run_systems(contestants, folder, settings)
    _report(comparison, options)


def _report(comparison: Comparison, options: argparse.Namespace) -> None:
    hardware = describe_hardware()
    table = format_comparison(comparison, hardware)
    if options.json != "-":
        print_out(table)
    if options.json is not None:
        origin = {"hardware": asdict(hardware), "read_bandwidth_method": METHOD}
        write_json({**comparison.to_dict(), **origin}, options.json)
    if options.markdown is not None:
        write_output("--markdown", options.markdown, f"{table}\n".encode("utf-8", "backslashreplace"))
    if options.plot is not None:
        write_output("--plot", options.plot, plot_comparison(comparison, hardware))


def run_systems(contestants: Contestants, folder: Path, settings: Settings) -> Comparison:
    """Makes what is missing, starts a worker for each system and compares them.

    Args:
        contestants: who takes part.
        folder: has the checkpoints `huggingface` and `keras`; conversions are kept there.
        settings: what to measure.
    """
    systems = contestants.systems
    checkpoints = prepare_systems(contestants, folder, max(settings.prompt_tokens), settings.new_tokens)
    with contextlib.ExitStack() as stack:
        workers = []
        for system in systems:
            print_progress(f"loading {system.name}")
            python = contestants.pythons[system.name]
            worker = Worker(system, checkpoints.path_of(system), settings.threads, python)
            workers.append(stack.enter_context(worker))
        meter = stack.enter_context(BandwidthMeter(settings.threads))
        weight_bytes = _weight_bytes(systems, checkpoints)
        return compare(
            workers, checkpoints.config, settings, weight_bytes, meter.measure, print_progress
        )


def prepare_systems(
    contestants: Contestants, folder: Path, prompt_tokens: int, new_tokens: int
) -> CheckpointSet:
    """Finds the checkpoints of the systems, and converts and exports what is missing.

    Args:
        contestants: who takes part.
        folder: has the checkpoints `huggingface` and `keras`; conversions are kept there.
        prompt_tokens, new_tokens: of the longest row; see `check_room`.
    """
    kinds = {system.checkpoint for system in contestants.systems}
    checkpoints = find_checkpoints(folder, kinds, contestants.bundles)
    check_room(checkpoints.config, prompt_tokens, new_tokens)
    for system in contestants.systems:
        _prepare(system, checkpoints, contestants.pythons[system.name])
    return checkpoints


def _prepare(system: System, checkpoints: CheckpointSet, python: str) -> None:
    if system.converted:
        print_progress(f"converting for {system.name}, unless that is done")
        convert_checkpoint(checkpoints, system, python)
    if system.checkpoint == BUNDLE and not checkpoints.path_of(system).exists():
        print_progress(f"exporting {system.name}")
        export_bundle(checkpoints, system)


def _weight_bytes(systems: Sequence[System], checkpoints: CheckpointSet) -> Mapping[str, int]:
    return {
        system.name: (bundle_weight_bytes if system.checkpoint == BUNDLE else folder_bytes)(
            checkpoints.path_of(system)
        )
        for system in systems
    }


if __name__ == "__main__":
    sys.exit(main())
