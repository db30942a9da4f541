"""`python -m bench.scale`: what it takes to export a checkpoint of any size and to serve it."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.command import check_counts, print_progress, write_json
from bench.markdown import markdown_table
from bench.measure import random_prompts, time_generation
from bench.read_bandwidth import BandwidthMeter
from bench.system import describe_hardware
from graphs.contract import Phase
from graphs.manifest import TARGET_PRECISIONS
from runtime.bundle import load_bundle
from runtime.command import CommandParser, run_command
from runtime.system.child_process import python_command, python_environment, safe_environment
from runtime.system.output_file import check_output
from runtime.system.standard_streams import print_out

COPY_BLOCK = 16 * 1024 * 1024
TOKENS_PROMPT, NEW_TOKENS = 16, 32

_Result = TypeVar("_Result")

DESCRIPTION = """\
Export a checkpoint in several precisions and serve each bundle: time, bytes, peak memory, speed.

Every step is a process of its own: `opt-export`, then `opt-bench` twice, of which the first packs the
weights for this CPU and the second is a later start. Files are taken out of the page cache before an
export and before the plain copy of a bundle's weights that stands beside it.
"""

EXAMPLES = """\
examples:
  python -m bench.make_checkpoint --shape opt_6.7b --dtype float16 --max-shard-size 5 --output hf_6.7b
  python -m bench.scale --checkpoint hf_6.7b --precisions int4,int8 --json scale.json
  python -m bench.scale --checkpoint hf_1.3b --precisions fp32,int8 --portable
      also exports the portable graph and compares 32 greedy tokens with it
"""


@dataclass(frozen=True)
class Export:
    """One run of `opt-export`.

    Attributes:
        seconds: from start to exit of the process.
        peak_memory_bytes: of the process, or of the one that tried the bundle where that took more.
        checkpoint_bytes, bundle_bytes: what there is to read and what was written.
        copy_bytes_per_second: of a plain copy of the bundle's weights, flushed to the disk.
    """

    seconds: float
    peak_memory_bytes: int
    checkpoint_bytes: int
    bundle_bytes: int
    copy_bytes_per_second: float

    @property
    def written_per_second(self) -> float:
        """Bytes of the bundle over the whole time."""
        return self.bundle_bytes / self.seconds


@dataclass(frozen=True)
class Served:
    """What one bundle does.

    Attributes:
        precision, target: of the bundle.
        export: how it was made.
        first_start_seconds, load_seconds: to load it, packing its weights and with them packed.
        packed_bytes: what packing keeps on disk.
        resident_bytes: of the process at batch 1 after a prompt and some steps, its cache there.
        prefill_tokens_per_second, decode_seconds: medians of `opt-bench`.
        step_bytes: weights and cache that a decode step reads.
        read_bytes_per_second: what this machine reads, measured right after.
        token_ids: 32 new tokens, greedy.
    """

    precision: str
    target: str
    export: Export
    first_start_seconds: float
    load_seconds: float
    packed_bytes: int
    resident_bytes: int
    prefill_tokens_per_second: float
    decode_seconds: float
    step_bytes: int
    read_bytes_per_second: float
    token_ids: list[int]

    @property
    def bandwidth_share(self) -> float:
        """Of the machine's read bandwidth, by a decode step."""
        return self.step_bytes / self.decode_seconds / self.read_bytes_per_second


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.scale",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="preset folder, of bench.make_checkpoint say"
    )
    parser.add_argument(
        "--precisions", default="int8,int4", metavar="NAME,NAME", help="default: int8,int4"
    )
    parser.add_argument(
        "--portable", action="store_true", help="export the portable graph too, to compare tokens with"
    )
    parser.add_argument(
        "--workspace",
        default=".",
        metavar="DIR",
        help="where bundles are made and removed (default: .)",
    )
    parser.add_argument("--no-packed-weights", action="store_true", help="pack in memory at each start")
    for option, default, text in (
        ("--prompt-tokens", 128, "of the measured prompts"),
        ("--new-tokens", 16, "after each"),
        ("--trials", 3, "of opt-bench"),
        ("--threads", 2, "CPU threads"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument("--json", metavar="FILE", help="all figures; - prints JSON and no table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("scale", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    check_counts(options, prompt_tokens=1, new_tokens=2, trials=1, threads=1)
    check_output("--json", options.json)
    precisions = options.precisions.split(",")
    known = TARGET_PRECISIONS["cpu"]
    if unknown := sorted(set(precisions) - set(known)):
        raise ValueError(f"--precisions must be among {','.join(known)}; got {','.join(unknown)}")
    checkpoint = Path(options.checkpoint)
    if not checkpoint.is_dir():
        raise ValueError(f"--checkpoint: there is no folder {checkpoint}")
    kinds = [("fp32", "portable")] * options.portable + [(name, "cpu") for name in precisions]
    results = []
    for precision, target in kinds:
        print_progress(f"{precision} {target}: exporting and serving")
        with tempfile.TemporaryDirectory(dir=options.workspace, prefix="scale-") as workspace:
            results.append(measure(checkpoint, precision, target, Path(workspace, "bundle"), options))
    if options.json != "-":
        print_out("\n".join(format_table(results)))
    if options.json is not None:
        values = {
            "checkpoint": checkpoint.name,
            "hardware": asdict(describe_hardware()),
            "settings": {
                k: v for k, v in vars(options).items() if k not in ("checkpoint", "workspace")
            },
            "results": [asdict(result) for result in results],
        }
        write_json(values, options.json)


def measure(
    checkpoint: Path, precision: str, target: str, bundle: Path, options: argparse.Namespace
) -> Served:
    """Exports a checkpoint and serves the bundle."""
    export = _export(checkpoint, precision, target, bundle)
    packed = not options.no_packed_weights
    speed = ["--prompt-tokens", f"{options.prompt_tokens}", "--new-tokens", f"{options.new_tokens}"]
    speed += ["--threads", f"{options.threads}", "--batch", "1"]
    speed += [] if packed else ["--no-packed-weights"]
    once = [*speed, "--trials", "1"]
    first = _run_bench(bundle, once)["load"]["seconds"] if packed else None
    report = _run_bench(bundle, [*speed, "--trials", f"{options.trials}"])
    read_bytes_per_second = _in_a_process(_read_bandwidth, options.threads)
    (batch,) = report["batches"]
    load, serving = report["load"]["seconds"], report["serving_memory"]
    return Served(
        precision=precision,
        target=target,
        export=export,
        first_start_seconds=load if first is None else first,
        load_seconds=load,
        packed_bytes=_size(bundle / "packed"),
        resident_bytes=0
        if serving is None
        else serving["resident"]["private"] + serving["resident"]["mapped"],
        prefill_tokens_per_second=batch["prefill_tokens_per_second"],
        decode_seconds=batch["decode_ms_per_token"]["median"] / 1e3,
        step_bytes=_step_bytes(bundle, options.prompt_tokens + options.new_tokens // 2),
        read_bytes_per_second=read_bytes_per_second,
        token_ids=_in_a_process(_greedy_tokens, f"{bundle}", packed),
    )


def _export(checkpoint: Path, precision: str, target: str, bundle: Path) -> Export:
    _drop_from_page_cache(checkpoint)
    arguments = ["--preset", f"{checkpoint}", "--quiet", "--verify", "graph"]
    arguments += ["--precision", precision, "--target", target, "--output", f"{bundle}"]
    started = time.perf_counter()
    peak = _run_child("exporter.cli", *arguments)
    seconds = time.perf_counter() - started
    return Export(seconds, peak, _size(checkpoint), _size(bundle), _copy_speed(bundle))


def _run_child(module: str, *arguments: str) -> int:
    """Runs a command; the peak memory of it or of a process that it ran, in bytes."""
    command = python_command("-m", module, *arguments)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=python_environment())
    assert process.stderr is not None
    told = process.stderr.read().decode(errors="replace").strip()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"{' '.join([module, *arguments])} failed: {told}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _run_bench(bundle: Path, arguments: list[str]) -> dict[str, Any]:
    command = python_command("-m", "bench.opt_bench", f"{bundle}", *arguments, "--json", "-")
    result = subprocess.run(command, capture_output=True, env=python_environment(), check=False)
    if result.returncode:
        raise ValueError(f"opt-bench failed: {result.stderr.decode(errors='replace').strip()}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def _copy_speed(bundle: Path) -> float:
    """Bytes a second of a plain copy of the weights beside them, from disk to disk."""
    weights = bundle / load_bundle(bundle).manifest.weights.name
    size = weights.stat().st_size
    if shutil.disk_usage(bundle).free < size:
        raise ValueError(f"the disk of {bundle} has no room for a copy of {size / 1e9:.1f} GB")
    copy = bundle.parent / "copy"
    _drop_from_page_cache(bundle)
    started = time.perf_counter()
    with weights.open("rb") as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, COPY_BLOCK)
        target.flush()
        os.fsync(target.fileno())
    seconds = time.perf_counter() - started
    copy.unlink()
    return size / seconds


def _drop_from_page_cache(folder: Path) -> None:
    """Makes the next read of a folder's files one from the disk, where the system lets one."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _step_bytes(bundle: Path, tokens: int) -> int:
    """What a decode step reads: the weights and the cache of so many tokens."""
    manifest = load_bundle(bundle).manifest
    model = manifest.model
    cache = 2 * model.num_layers * model.hidden_dim * 4 * tokens
    one_graph = manifest.graphs[Phase.PREFILL] == manifest.graphs[Phase.DECODE]
    if not one_graph and manifest.target == "cpu":
        raise ValueError("bundles with layers in two precisions are not measured here")
    return manifest.weights.size + cache


def _greedy_tokens(bundle: str, packed: bool) -> list[int]:
    """New tokens after a fixed random prompt."""
    from runtime.session import SessionDecoder

    loaded = load_bundle(bundle)
    size = loaded.manifest.model.vocabulary_size
    prompts = random_prompts(np.random.default_rng(0), size, 1, TOKENS_PROMPT)
    decoder = SessionDecoder(loaded, packed_weights=packed)
    tokens: list[int] = time_generation(decoder, prompts, NEW_TOKENS).token_ids[0].tolist()
    return tokens


def _read_bandwidth(threads: int) -> float:
    """Bytes a second that this machine reads from memory."""
    with BandwidthMeter(threads) as meter:
        return float(np.median([meter.measure() for _ in range(5)]))


def _in_a_process(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Calls a function in a new process: the memory that it takes is not to count as its children's."""
    context = multiprocessing.get_context("spawn")
    with safe_environment(), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def format_table(results: Sequence[Served]) -> list[str]:
    """Lines of a Markdown table: a measurement a row, a bundle a column."""
    portable = next((result for result in results if result.target == "portable"), None)
    rows: dict[str, Callable[[Served], str]] = {
        "export s": lambda r: f"{r.export.seconds:.0f}",
        "checkpoint read GB": lambda r: f"{r.export.checkpoint_bytes / 1e9:.2f}",
        "bundle written GB": lambda r: f"{r.export.bundle_bytes / 1e9:.2f}",
        "peak memory of the export MB": lambda r: f"{r.export.peak_memory_bytes / 1e6:.0f}",
        "written MB/s": lambda r: f"{r.export.written_per_second / 1e6:.0f}",
        "plain copy MB/s": lambda r: f"{r.export.copy_bytes_per_second / 1e6:.0f}",
        "first start s": lambda r: f"{r.first_start_seconds:.1f}",
        "later start s": lambda r: f"{r.load_seconds:.1f}",
        "packed GB": lambda r: f"{r.packed_bytes / 1e9:.2f}",
        "resident MB": lambda r: f"{r.resident_bytes / 1e6:.0f}",
        "prefill tokens/s": lambda r: f"{r.prefill_tokens_per_second:.1f}",
        "decode ms/token": lambda r: f"{r.decode_seconds * 1e3:.1f}",
        "read bandwidth GB/s": lambda r: f"{r.read_bytes_per_second / 1e9:.1f}",
        "share of it": lambda r: f"{r.bandwidth_share:.0%}",
        f"of {NEW_TOKENS} tokens as portable": lambda r: _agreement(r, portable),
    }
    header = ["", *(f"{result.precision} {result.target}" for result in results)]
    return markdown_table([header, *([name, *map(cell, results)] for name, cell in rows.items())])


def _agreement(result: Served, portable: Served | None) -> str:
    if portable is None:
        return "not compared"
    same = np.array(result.token_ids) == np.array(portable.token_ids)
    return f"{NEW_TOKENS if same.all() else int(same.argmin())}"


if __name__ == "__main__":
    sys.exit(main())
