"""`opt-bench`: how fast a bundle is on this machine, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.bundle_speed import Report, Settings, measure_bundle
from bench.command import check_counts, parse_counts, print_progress, write_json
from bench.measure import Spread
from runtime.command import CommandParser, run_command
from runtime.system.output_file import check_output
from runtime.system.standard_streams import print_out

DESCRIPTION = """\
Measure an exported OPT bundle: loading, prefill and decode at several batch sizes, memory.

Prompts are random tokens, new ones for each trial. The first generation of each batch size warms up
and is not counted. Generation is greedy and never stops early.
"""

EXAMPLES = """\
examples:
  opt-bench opt_tiny_en
  opt-bench models/opt_125m --prompt-tokens 512 --batch 1 --threads 2
  opt-bench opt_tiny_en --batch 1,4,16 --json figures.json
      the table on the terminal, and all figures in a file
  opt-bench opt_tiny_en --json - | python -m json.tool
      nothing but JSON
Make a bundle with: opt-export --preset opt_tiny_en
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="opt-bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle folder that opt-export made")
    for option, default, text in (
        ("--prompt-tokens", Settings.prompt_tokens, "of each row"),
        ("--new-tokens", Settings.new_tokens, "of each row"),
        ("--trials", Settings.trials, "of each batch size"),
        ("--seed", Settings.seed, "of the random prompts"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument(
        "--batch", default="1,8", metavar="N,N", help="batch sizes to measure (default: 1,8)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: one for each physical core)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--no-packed-weights",
        action="store_true",
        help="pack the weights in memory at every start and write nothing beside the bundle",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all figures to a file; - prints JSON and no table"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("opt-bench", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    check_counts(options, prompt_tokens=1, new_tokens=2, trials=1, threads=1, seed=0)
    check_output("--json", options.json)
    settings = Settings(
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        batches=parse_counts("--batch", options.batch),
        trials=options.trials,
        threads=options.threads,
        device=options.device,
        packed_weights=not options.no_packed_weights,
        seed=options.seed,
    )
    report = measure_bundle(options.bundle, settings, print_progress)
    if options.json != "-":
        print_out(format_report(report))
    if options.json is not None:
        write_json(report.to_dict(), options.json)


def format_report(report: Report) -> str:
    """The report for people."""
    manifest, model, settings = report.manifest, report.manifest.model, report.settings
    threads = "default" if settings.threads is None else settings.threads
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    facts = {
        "Bundle": f"{report.bundle} ({manifest.precision}, {manifest.target}, "
        f"{manifest.total_bytes / 1e6:.1f} MB)",
        "Model": f"{model.num_parameters:,} parameters: {model.num_layers} layers, "
        f"{model.num_heads} heads, hidden {model.hidden_dim}, inner {model.intermediate_dim}, "
        f"vocabulary {model.vocabulary_size}, {model.max_sequence_length} positions",
        "Hardware": f"{report.hardware}",
        "Versions": versions,
        "Settings": f"device {settings.device}, threads {threads}, {settings.prompt_tokens} prompt "
        f"tokens, {settings.new_tokens} new tokens, {settings.trials} trials, seed {settings.seed}",
        "Load": f"{report.loading.seconds * 1e3:.1f} ms; to the first token of a prompt "
        f"{report.loading.to_first_token_seconds * 1e3:.1f} ms",
        "Serving": _format_serving(report),
        "Peak memory": f"{report.peak_memory_bytes / 1e6:.0f} MB",
    }
    lines = [f"{name:<13}{value}" for name, value in facts.items()]
    lines += ["", _row("batch", "prefill ms", "tokens/s", "decode ms/token", "tokens/s")]
    lines += [
        _row(
            str(batch.batch),
            _format_spread(batch.prefill_ms),
            f"{batch.prefill_tokens_per_second:.0f}",
            _format_spread(batch.decode_ms_per_token),
            f"{batch.decode_tokens_per_second:.1f}",
        )
        for batch in report.batches
    ]
    lines += ["", "ms: median (minimum, maximum); tokens/s: of all rows, at the median"]
    return "\n".join(lines)


def _format_serving(report: Report) -> str:
    found = report.serving
    if found is None:
        return "memory in RAM is told on Linux only"
    resident = found.resident
    return (
        f"{resident.total / 1e6:.0f} MB in RAM at batch {report.settings.batches[0]} "
        f"({resident.private / 1e6:.0f} private, {resident.mapped / 1e6:.0f} mapped; before loading "
        f"{found.before.total / 1e6:.0f}): {found.ratio:.2f} x weights and cache of "
        f"{(found.weight_bytes + found.cache_bytes) / 1e6:.0f} MB, without what was before "
        f"{found.ratio_of_bundle:.2f} x"
    )


def _row(*cells: str) -> str:
    widths = (5, 28, 10, 28, 10)
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _format_spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.minimum:.2f}, {spread.maximum:.2f})"


if __name__ == "__main__":
    sys.exit(main())
