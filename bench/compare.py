"""`python -m bench.compare`: this project beside other systems, on the same weights and prompts."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.checkpoint_set import BUNDLE, export_bundle, find_checkpoints, make_checkpoints
from bench.command import check_counts, check_output, print_progress, write_json
from bench.comparison import Comparison, Settings, compare
from bench.comparison_table import format_comparison
from bench.measure import check_room
from bench.shapes import SHAPES
from bench.system import describe_hardware
from bench.workers.process import Worker
from bench.workers.systems import SYSTEMS, System
from runtime.command import run_command

DESCRIPTION = """\
Compare this project with other systems, each in a process of its own, on the same random weights.

Generation is greedy, never stops early, and takes new random prompts in each trial; the systems take
turns within a trial. What counts as what is in bench/README.md.
"""

EXAMPLES = """\
examples:
  python -m bench.compare --shape opt_125m
      makes the checkpoints and the bundle in a temporary folder
  python -m bench.compare --shape opt_1.3b --layers 2 --systems opt-onnx,transformers
  python -m bench.make_checkpoint --shape opt_125m --format huggingface --output checkpoints/huggingface
  python -m bench.make_checkpoint --shape opt_125m --format keras --output checkpoints/keras
  python -m bench.compare --checkpoint checkpoints --json figures.json --markdown figures.md
      the same with checkpoints that stay; the bundle is exported anew each time
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
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
        "--bundle", metavar="DIR", help="use this bundle (default: export one from huggingface/)"
    )
    parser.add_argument(
        "--systems",
        default=",".join(SYSTEMS),
        metavar="NAME,NAME",
        help=f"in the order to take turns (default: {','.join(SYSTEMS)})",
    )
    for option, default, text in (
        ("--prompt-tokens", Settings.prompt_tokens, "of each row"),
        ("--new-tokens", Settings.new_tokens, "of each row"),
        ("--batch", Settings.batch, "rows"),
        ("--trials", Settings.trials, "of each system"),
        ("--threads", Settings.threads, "CPU threads of each system"),
        ("--seed", Settings.seed, "of the random weights and prompts"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument("--json", metavar="FILE", help="all figures; - prints JSON and no table")
    parser.add_argument("--markdown", metavar="FILE", help="the table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("compare", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    check_counts(options, layers=1, prompt_tokens=1, new_tokens=2, batch=1, trials=1, threads=1, seed=0)
    if options.layers is not None and options.shape is None:
        raise ValueError("--layers goes with --shape")
    if options.bundle is not None and not Path(options.bundle).is_dir():
        raise ValueError(f"--bundle: there is no folder {options.bundle}")
    check_output("--json", options.json)
    check_output("--markdown", options.markdown)
    systems = parse_systems(options.systems)
    settings = Settings(
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        batch=options.batch,
        trials=options.trials,
        threads=options.threads,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory(prefix="opt-compare-") as temporary:
        folder = Path(options.checkpoint or temporary)
        bundle = Path(options.bundle or Path(temporary, "bundle"))
        kinds = {system.checkpoint for system in systems}
        if options.shape is not None:
            config = SHAPES[options.shape]
            config = replace(config, num_layers=options.layers or config.num_layers)
            check_room(config, settings.prompt_tokens, settings.new_tokens)
            make_checkpoints(config, folder, kinds, options.seed, progress=print_progress)
        comparison = run_systems(systems, folder, bundle, settings)
    hardware = describe_hardware()
    table = format_comparison(comparison, hardware)
    if options.json != "-":
        print(table)
    if options.json is not None:
        write_json({**comparison.to_dict(), "hardware": str(hardware)}, options.json)
    if options.markdown is not None:
        Path(options.markdown).write_text(table + "\n", encoding="utf-8")


def parse_systems(text: str) -> list[System]:
    """The systems of a list of names.

    Raises:
        ValueError: if a name is unknown or given twice.
    """
    names = text.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise ValueError(f"--systems: there is no {unknown[0]!r}; choose among {', '.join(SYSTEMS)}")
    if len(set(names)) != len(names):
        raise ValueError(f"--systems names a system twice: {text}")
    return [SYSTEMS[name] for name in names]


def run_systems(
    systems: Sequence[System], folder: Path, bundle: Path, settings: Settings
) -> Comparison:
    """Starts a worker for each system and compares them.

    Args:
        systems: in the order to take turns.
        folder: has the checkpoints `huggingface` and `keras`.
        bundle: exported where it does not exist.
        settings: what to measure.
    """
    kinds = {system.checkpoint for system in systems}
    checkpoints = find_checkpoints(folder, kinds, bundle)
    check_room(checkpoints.config, settings.prompt_tokens, settings.new_tokens)
    if BUNDLE in kinds and not bundle.exists():
        print_progress("exporting a bundle")
        export_bundle(checkpoints, bundle)
    with contextlib.ExitStack() as stack:
        workers = []
        for system in systems:
            print_progress(f"loading {system.name}")
            worker = Worker(system, checkpoints.folders[system.checkpoint], settings.threads)
            workers.append(stack.enter_context(worker))
        return compare(workers, checkpoints.config, settings, print_progress)


if __name__ == "__main__":
    sys.exit(main())
