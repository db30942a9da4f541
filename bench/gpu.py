"""`python -m bench.gpu`: everything that is measured on a card, in one command and one table."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.command import print_progress, write_json
from bench.gpu_bundles import KINDS
from bench.gpu_plan import DEFAULT_SHAPES, GPU_SHAPES, START_SECONDS, Budget, Section, plan
from bench.gpu_section import Order, write_record
from bench.gpu_table import format_table
from bench.system import describe_hardware
from bench.traced_graphs import graph_path, trace_shape
from graphs.versions import package_versions
from runtime.command import CommandParser, run_command
from runtime.system.child_process import python_command, python_environment
from runtime.system.output_file import check_output
from runtime.system.standard_streams import print_out

PACKAGES = ("opt-onnx", "onnxruntime", "onnxruntime-gpu", "torch", "transformers", "numpy")
ERROR_LINES = 3  # of a process that ended without a word
GRACE_SECONDS = 5.0  # at the end, to print the table

DESCRIPTION = """\
Measure bundles on an NVIDIA GPU beside transformers: parity, decode, prefill. Makes checkpoints of
random weights in the published shapes, exports and measures them; prints one table.
"""

EXAMPLES = """\
examples:
  python -m bench.gpu --trace traced
      where TensorFlow is: the graphs of all shapes, without weights, some hundred kB each
  python -m bench.gpu --traced traced --json gpu.json
      on the card's machine, without TensorFlow
  python -m bench.gpu --traced traced --shapes opt_2.7b --work /dev/shm/bench
      a single shape; checkpoints and bundles in memory, which for opt_6.7b take 32 GB
  python -m bench.gpu
      both, where everything is on one machine
  python -m bench.gpu --device cpu --shapes tiny
      the same steps on a toy model in a minute, to try the command out
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.gpu",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trace", metavar="DIR", help="write the traced graphs there, and end")
    parser.add_argument("--traced", metavar="DIR", help="use graphs that were traced elsewhere")
    parser.add_argument(
        "--shapes",
        default=",".join(DEFAULT_SHAPES),
        metavar="NAME,NAME",
        help=f"in the order of their value, of {', '.join(GPU_SHAPES)} (default: %(default)s)",
    )
    parser.add_argument("--device", choices=KINDS, default="cuda", help="default: cuda")
    parser.add_argument(
        "--minutes", type=float, default=8.0, metavar="N", help="to stay within (default: 8)"
    )
    parser.add_argument(
        "--work", metavar="DIR", help="for checkpoints and bundles (default: a temporary folder)"
    )
    parser.add_argument("--json", metavar="FILE", help="all figures; - prints JSON and no table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("gpu", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    budget = Budget(60 * options.minutes - GRACE_SECONDS)
    shapes = _parse_shapes(options.shapes)
    if not options.minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {options.minutes:g}")
    check_output("--json", options.json)
    if options.trace is not None:
        trace_shapes(Path(options.trace), shapes, options.device)
        return
    if options.work is not None:
        Path(options.work).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-", dir=options.work) as work:
        traced = Path(options.traced or Path(work, "traced"))
        if options.traced is None:
            trace_shapes(traced, shapes, options.device)
        records = measure(plan(shapes), options.device, traced, Path(work), budget)
    if options.json != "-":
        print_out(format_table(records))
    if options.json is not None:
        facts = {"versions": package_versions(PACKAGES), "hardware": asdict(describe_hardware())}
        write_json({"options": vars(options), **facts, "records": records}, options.json)


def _parse_shapes(text: str) -> tuple[str, ...]:
    shapes = tuple(text.split(","))
    if unknown := [shape for shape in shapes if shape not in GPU_SHAPES]:
        raise ValueError(f"--shapes: {unknown[0]!r} is not among {', '.join(GPU_SHAPES)}")
    return shapes


def trace_shapes(folder: Path, shapes: Sequence[str], device: str) -> None:
    """Traces the graphs that the device's bundles of these shapes are made from."""
    for section in plan(tuple(shapes)):
        if not section.shape:
            continue
        phases = {p for name in section.precisions for p in KINDS[device][name].traced_phases}
        missing = [p for p in sorted(phases) if not graph_path(folder, section.shape, p).exists()]
        if missing:
            print_progress(f"tracing {section.shape}")
            trace_shape(folder, section.shape, GPU_SHAPES[section.shape], missing)


def measure(
    sections: Sequence[Section], device: str, traced: Path, work: Path, budget: Budget
) -> list[dict[str, Any]]:
    """Runs each section in a process of its own; the records of all steps.

    Args:
        sections: in the order of their value.
        device: `"cuda"` or `"cpu"`.
        traced: folder of traced graphs.
        work: folder for checkpoints and bundles; those of a shape are removed after its last section.
        budget: time for all of it.
    """
    path = work / "records.jsonl"
    path.touch()
    for i, section in enumerate(sections):
        needed = START_SECONDS + section.step_seconds(section.steps[0])
        reason = budget.refusal(needed)
        if reason is None:
            print_progress(f"{section.name}, {budget.left:.0f} s left")
            _run_section(section, device, traced, work, path, budget)
        _complete(path, section, reason or "the process of the section ended before")
        if section.shape and section.shape not in [later.shape for later in sections[i + 1 :]]:
            shutil.rmtree(work / section.shape, ignore_errors=True)
    return _read_records(path)


def _run_section(
    section: Section, device: str, traced: Path, work: Path, records: Path, budget: Budget
) -> None:
    """Runs a section until it ends or the time is over, and tells what its process died of."""
    order = Order(asdict(section), device, str(traced), str(work), str(records), budget.left)
    log = work / "section.log"
    with log.open("w+b") as output:
        process = subprocess.Popen(
            python_command("-m", "bench.gpu_section"),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=python_environment(section.environment),
            start_new_session=True,  # ended with what it starts, torch's compilers for one
        )
        try:
            process.communicate(json.dumps(asdict(order)).encode(), timeout=max(0.0, budget.left))
            problem = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            problem = "ended when the time was over"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        told = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        text = " / ".join([problem, *told[-ERROR_LINES:]])
        with records.open("a", encoding="utf-8") as file:
            write_record(file, section, "process", {"error": text[:500]})


def _complete(records: Path, section: Section, reason: str) -> None:
    """Tells of the steps that nothing is known of why they are missing."""
    known = {(record["section"], record["step"]) for record in _read_records(records)}
    with records.open("a", encoding="utf-8") as file:
        for step in section.steps:
            if (section.name, step) not in known:
                write_record(file, section, step, {"skipped": reason})


def _read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
