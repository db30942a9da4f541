"""`python -m bench.compare`: this project beside other systems, on the same weights and prompts."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.checkpoint_set import make_checkpoints, open_checkpoints
from bench.command import check_counts, check_output, print_progress, run_command, write_json
from bench.comparison import Comparison, Settings, compare
from bench.measure import Spread
from bench.shapes import SHAPES
from bench.system import Hardware, describe_hardware
from bench.workers.process import Worker
from bench.workers.systems import SYSTEMS, System

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
    check_counts(
        options, layers=1, prompt_tokens=1, new_tokens=2, batch=1, trials=1, threads=1, seed=0
    )
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
    checkpoints = open_checkpoints(folder, kinds, bundle, progress=print_progress)
    positions = checkpoints.config.max_sequence_length
    if settings.prompt_tokens + settings.new_tokens > positions:
        raise ValueError(
            f"{settings.prompt_tokens} prompt tokens and {settings.new_tokens} new ones are more than "
            f"the model's {positions} positions; lower --prompt-tokens or --new-tokens"
        )
    with contextlib.ExitStack() as stack:
        workers = []
        for system in systems:
            print_progress(f"loading {system.name}")
            worker = Worker(system, checkpoints.folders[system.checkpoint], settings.threads)
            workers.append(stack.enter_context(worker))
        return compare(workers, checkpoints.config, settings, print_progress)


def format_comparison(comparison: Comparison, hardware: Hardware) -> str:
    """The comparison as Markdown."""
    config, settings, base = comparison.config, comparison.settings, comparison.baseline
    rows = [
        [
            "system",
            "prefill ms",
            "decode ms/token",
            "whole s",
            "first call s",
            "load s",
            "peak MB",
            "same tokens",
        ]
    ]
    for system in comparison.systems:
        peak = system.peak_memory_bytes
        rows.append(
            [
                system.name,
                _cell(system.prefill_ms, base.prefill_ms, 1),
                _cell(system.decode_ms_per_token, base.decode_ms_per_token, 2),
                _cell(system.whole_seconds, base.whole_seconds, 3),
                f"{system.first_call_seconds:.2f}",
                f"{system.load_seconds:.2f}",
                "?" if peak is None else f"{peak / 1e6:.0f}",
                f"{system.agreement(base):.1%}",
            ]
        )
    lines = [
        f"{config.num_parameters:,} random parameters ({config.num_layers} layers, hidden "
        f"{config.hidden_dim}, vocabulary {config.vocabulary_size}), float32; batch {settings.batch}, "
        f"{settings.prompt_tokens} prompt tokens, {settings.new_tokens} new tokens, "
        f"{settings.threads} threads, {settings.trials} interleaved trials, seed {settings.seed}.",
        "",
        *_table(rows),
        "",
        f"Medians (minimum to maximum), × the median of {base.name}. {hardware}.",
        "",
    ]
    for system in comparison.systems:
        versions = ", ".join(f"{name} {version}" for name, version in system.versions.items())
        lines.append(f"- {system.name}: {versions}")
    return "\n".join(lines)


def _cell(spread: Spread, base: Spread, digits: int) -> str:
    values = (spread.median, spread.minimum, spread.maximum)
    median, least, most = (f"{value:.{digits}f}" for value in values)
    return f"{median} ({least} to {most}), {spread.median / base.median:.2f}×"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
