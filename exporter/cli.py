"""`opt-export`: a preset to a bundle, from the command line."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from exporter.presets.handles import resolve_adapter, resolve_preset
from exporter.presets.table import BUILTIN_PRESETS
from graphs.manifest import PRECISIONS, TARGETS
from runtime.command import CommandParser, run_command
from runtime.sentences import sentence
from runtime.system.standard_streams import print_error, print_out
from runtime.text_files import decode_text

EXAMPLES = """\
examples:
  opt-export --preset opt_tiny_en
      the small preset that ships with this package, into ./opt_tiny_en
  opt-export --preset opt_125m_en --precision int8 --output models/opt_125m
  opt-export --preset opt_2.7b_en --target cuda --precision fp16
  opt-export --preset hf://facebook/opt-125m --output models/opt_125m
  opt-export --preset path/to/folder --output bundle --force
  opt-export --preset hf://facebook/opt-125m --adapter path/to/lora --adapter-weight 0.5
  opt-export --check models/opt_125m
Then: opt-generate opt_tiny_en "The import statement"
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    names = "\n".join(f"  {p.name:<14}{p.description}" for p in BUILTIN_PRESETS.values())
    parser = CommandParser(
        prog="opt-export",
        description="Export an OPT model to an ONNX bundle that serves without a deep-learning "
        "framework.",
        epilog=f"built-in presets:\n{names}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "--preset",
        metavar="NAME|HANDLE|FOLDER",
        help="a built-in name, kaggle://user/model/framework/variation[/version], "
        "hf://user/repository[@revision], or a folder as Keras or Hugging Face writes it",
    )
    subject.add_argument(
        "--check",
        metavar="BUNDLE",
        help="check a bundle instead: every hash, its graphs, and a run that gives what it gave at "
        "export; exit code 1 if anything is wrong. Goes with --quiet only",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="bundle folder to make (default: ./ and the preset's name)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the weights: fp32, int8 or int4 for CPUs (default: fp32); fp16, bf16, int8 or int4 "
        "for CUDA (default: fp16)",
    )
    parser.add_argument(
        "--target",
        choices=TARGETS,
        default="cpu",
        help="what the graphs are made for: cpu uses ONNX Runtime's fused operators, cuda those for "
        "NVIDIA GPUs, portable is plain ONNX, fp32 only (default: cpu)",
    )
    parser.add_argument(
        "--prefill-precision",
        choices=("int8",),
        help="with --precision int4: int8 keeps a second, int8 copy of the layers for reading prompts, "
        "two to three times as fast in a bundle as much larger (default: one copy for both phases)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="text file to find the ranges of activations with, for int8 and int4: some hundred words "
        "like those the model will read (default: a text that comes with the package)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="folder with a tokenizer's files, as Keras or Hugging Face writes them, to be used in "
        "place of the preset's own (default: the preset's, if it has one)",
    )
    parser.add_argument(
        "--adapter",
        metavar="FOLDER|FILE|HANDLE",
        action="append",
        help="LoRA adapter to merge into the weights: a folder that peft saved, its hf:// handle, or a "
        ".lora.h5 file; may be given several times. A preset that is an adapter of peft itself is "
        "merged into the base that it names",
    )
    parser.add_argument(
        "--adapter-weight",
        metavar="NUMBER",
        action="append",
        type=float,
        help="what an adapter is scaled by before it is added, once for each --adapter in their order; "
        "the sum is that of peft's add_weighted_adapter with combination_type='cat' (default: 1)",
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    parser.add_argument(
        "--verify",
        choices=("full", "run", "graph", "none"),
        help="full compares logits with Keras's; run tries the bundle in a process that maps its "
        "weights; graph checks graphs and hashes (default: full up to 2 GiB of weights, else "
        "graph; graph for bf16, which no CPU runs)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error, 130 on Ctrl-C; 1 if --check finds a fault."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.check is not None:
        given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
        if surplus := sorted(given - {"check", "quiet"}):
            parser.error(f"--check goes with --quiet only, not with {', '.join(surplus)}")
        return _check(options)
    return run_command("opt-export", _run, options, "interrupted; nothing unfinished was left behind")


def _check(options: argparse.Namespace) -> int:
    from exporter.check import UnsoundBundleError, check_bundle
    from exporter.progress import Progress

    def run(options: argparse.Namespace) -> None:
        folder = Path(options.check)
        if not folder.is_dir():
            raise ValueError(f"--check {folder}: there is no such folder")

        def tell(line: str) -> None:
            if not options.quiet:
                print_out(line)

        check_bundle(folder, tell, Progress(quiet=options.quiet))
        tell(f"{folder} is sound")

    try:
        return run_command("opt-export", run, options)
    except UnsoundBundleError as error:
        print_error(f"opt-export: {sentence(error)}")
        return 1


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Holds back what native code writes to standard error; shows it after all on an exception.

    TensorFlow prints its greeting before any log level applies.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


# The hub clients' own switches, which they read when they are first imported.
QUIET_CLIENTS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "KAGGLEHUB_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}


def _read_text(path: str) -> str:
    try:
        return decode_text(Path(path).read_bytes(), f"--calibration {path}")
    except OSError as error:
        raise ValueError(f"--calibration {path} cannot be read: {error.strerror}") from None


def _adapters(options: argparse.Namespace) -> list[tuple[str, float]]:
    places, weights = options.adapter or [], options.adapter_weight or []
    if weights and len(weights) != len(places):
        raise ValueError(
            f"--adapter-weight is given {len(weights)} times for {len(places)} adapters; give one for "
            "each --adapter, in their order, or none"
        )
    return list(zip(places, weights or [1.0] * len(places), strict=True))


def _run(options: argparse.Namespace) -> None:
    if options.quiet:
        os.environ.update(QUIET_CLIENTS)
    calibration = None if options.calibration is None else _read_text(options.calibration)
    adapters = _adapters(options)
    for place, _ in adapters:
        resolve_adapter(place)
    resolve_preset(options.preset)  # a wrong name is told before TensorFlow is loaded
    # Keras imports it where it is installed, and it reads a `matplotlibrc` of the working folder.
    sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]
    # TensorFlow's oneDNN products keep the last weights that they saw: 550 MB at opt_6.7b.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with _quiet_stderr():
        from exporter.export import export_bundle  # Keras and TensorFlow: only when there is work
    from exporter.progress import Progress

    summary = export_bundle(
        options.preset,
        options.output,
        precision=options.precision,
        target=options.target,
        prefill_precision=options.prefill_precision,
        calibration=calibration,
        tokenizer=options.tokenizer,
        adapters=adapters,
        force=options.force,
        verify=options.verify,
        progress=Progress(quiet=options.quiet),
    )
    if options.quiet:
        return
    compared, verifier = "not compared (--verify full does)", ""
    if summary.comparison is not None:
        found = summary.comparison
        compared = (
            f"within {found.difference:.1e} of a standard deviation of Keras's "
            f"({found.mean_difference:.1e} in the mean)"
        )
        peak = summary.comparison.peak_memory_bytes / 1e6
        verifier = f"; {peak:.0f} MB in the process that tried the bundle"
    print(f"Bundle       {summary.bundle}")
    if summary.base is not None:
        print(f"Base         {summary.base}")
    for adapter in summary.adapters:
        print(f"Adapter      {adapter}")
    print(f"Size         {summary.size_bytes / 1e6:.1f} MB")
    print(f"Time         {summary.seconds:.1f} s")
    print(f"Peak memory  {summary.peak_memory_bytes / 1e6:.0f} MB{verifier}")
    for graph, counts in summary.rewrites.items():
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"Rewrites     {graph}: {listed}")
    print(f"Logits       {compared}")
    print(f"Tokenizer    {summary.tokenizer}")
    if summary.generation is not None:
        print(f"Generation   {summary.generation}")
    for notice in summary.notices:
        print(f"Note         {notice}")


if __name__ == "__main__":
    sys.exit(main())
