"""`python -m bench.quality`: how far bundles are from a float32 bundle on a text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.command import check_counts, print_progress, write_json
from bench.logit_error import LogitError, LogitErrorSum
from bench.markdown import markdown_table
from bench.perplexity import Perplexity, log_likelihoods, read_rows
from graphs.manifest import Manifest
from graphs.versions import package_versions
from runtime.bundle import Bundle, load_bundle
from runtime.command import CommandParser, run_command
from runtime.decoder import Decoder
from runtime.system.output_file import check_output
from runtime.system.standard_streams import print_out

PACKAGES = ("opt-onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
HEADER = [
    "bundle",
    "precision",
    "MB",
    "perplexity",
    "of reference",
    "same choice",
    "logit error",
    "greatest",
]

DESCRIPTION = """\
Measure what precision costs: perplexity of each bundle, how often its likeliest next token is the
reference's, and how far its logits are from the reference's, over their standard deviation.

Tokens are fed one at a time through the decode graph, or with --chunk several at a time through the
prefill graph, which predicts the token after each chunk only.
"""

EXAMPLES = """\
examples:
  python -m bench.quality --reference models/fp32 models/int8 models/int4
      on the held-out part of Python's own documentation, as the embedded preset's TRAINING.json has it
  python -m bench.quality --reference models/fp32 models/int4 --text book.txt --chunk 32 --json -
"""


@dataclass(frozen=True)
class Quality:
    """What one bundle showed.

    Attributes:
        perplexity: of the predicted tokens.
        logit_error: beside the reference's logits.
    """

    perplexity: Perplexity
    logit_error: LogitError


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.quality",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="bundle folder of any precision")
    parser.add_argument("--reference", required=True, metavar="BUNDLE", help="the float32 bundle")
    parser.add_argument(
        "--text", metavar="FILE", help="UTF-8 text (default: held-out Python documentation)"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="of the text (default: all)")
    for option, default, text in (
        ("--batch", 16, "rows at a time"),
        ("--chunk", 1, "tokens of a row at a time"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", metavar="FILE", help="all figures; - prints JSON and no table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("quality", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    # A missing ONNX Runtime is so an error that `main` tells about.
    from runtime.open_decoder import open_decoder

    check_counts(options, rows=1, batch=1, chunk=1, threads=1)
    check_output("--json", options.json)
    reference = load_bundle(options.reference)
    # The reference is a row of the table too; whoever names it again gets it once.
    names = dict.fromkeys([options.reference, *options.bundles])
    bundles = {name: load_bundle(name) for name in names}
    for name, bundle in bundles.items():
        check_comparable(name, bundle, reference)
    rows = read_rows(reference, options.text)
    inputs, labels = rows.inputs[: options.rows], rows.labels[: options.rows]
    decoders = {
        name: open_decoder(bundle, options.device, options.threads) for name, bundle in bundles.items()
    }
    found = measure_quality(
        decoders, options.reference, inputs, labels, options.batch, options.chunk, print_progress
    )
    manifests = {name: bundle.manifest for name, bundle in bundles.items()}
    if options.json != "-":
        print_out(format_quality(found, manifests, options.reference, rows.origin, options.chunk))
    if options.json is not None:
        values = {
            "reference": options.reference,
            "text": rows.origin,
            "chunk": options.chunk,
            "bundles": [_values(name, q, manifests[name]) for name, q in found.items()],
            "versions": package_versions(PACKAGES),
        }
        write_json(values, options.json)


def check_comparable(name: str, bundle: Bundle, reference: Bundle) -> None:
    """Raises `ValueError` where a bundle cannot be fed the reference's tokens and compared."""
    if bundle.manifest.model != reference.manifest.model:
        raise ValueError(f"{name} and the reference hold models of different sizes")
    if bundle.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, which text needs")
    files = [{entry.sha256 for entry in b.manifest.tokenizer} for b in (bundle, reference)]
    if files[0] != files[1]:
        raise ValueError(f"{name} and the reference have different tokenizers")


def measure_quality(
    decoders: Mapping[str, Decoder],
    reference: str,
    inputs: NDArray[np.int64],
    labels: NDArray[np.int64],
    batch: int = 16,
    chunk: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Quality]:
    """Feeds the same rows to all decoders, step by step, and compares what they say.

    Args:
        decoders: by name, the reference among them.
        reference: name of the one that the others' logits are set against.
        inputs: int64 [rows, length], the tokens fed.
        labels: int64 [rows, length], the tokens to predict.
        batch: rows at a time.
        chunk: tokens of a row at a time; the token after each chunk is predicted. What does not fill
            a chunk at the end of a row is left out.
        progress: told what is being done.

    Raises:
        ValueError: if a row is shorter than a chunk.
    """
    rows, length = inputs.shape
    steps = length // chunk
    if steps == 0:
        raise ValueError(f"--chunk {chunk} is more than the {length} tokens of a row")
    losses = dict.fromkeys(decoders, 0.0)
    errors = {name: LogitErrorSum() for name in decoders}
    for start in range(0, rows, batch):
        progress(f"row {start + 1} of {rows}")
        part, wanted = inputs[start : start + batch], labels[start : start + batch]
        caches = {name: d.new_cache(len(part), steps * chunk) for name, d in decoders.items()}
        lengths = np.full(len(part), chunk, np.int32)
        for first in range(0, steps * chunk, chunk):
            fed = part[:, first : first + chunk]
            said = {
                name: decoder.append(caches[name], fed, lengths).logits
                for name, decoder in decoders.items()
            }
            for name, logits in said.items():
                next_tokens = wanted[:, first + chunk - 1]
                losses[name] -= float(log_likelihoods(logits, next_tokens).sum())
                errors[name].add(logits, said[reference])
    return {
        name: Quality(Perplexity(rows, steps, losses[name] / (rows * steps)), errors[name].result())
        for name in decoders
    }


def format_quality(
    found: Mapping[str, Quality],
    manifests: Mapping[str, Manifest],
    reference: str,
    origin: str,
    chunk: int,
) -> str:
    """The figures as Markdown."""
    expected = found[reference].perplexity
    cells = [HEADER]
    for name, quality in found.items():
        error, manifest = quality.logit_error, manifests[name]
        cells.append(
            [
                name,
                manifest.precision,
                f"{manifest.total_bytes / 1e6:.1f}",
                f"{quality.perplexity.value:.4f}",
                f"{quality.perplexity.value / expected.value - 1:+.2%}",
                f"{error.same_choice:.2%}",
                f"{error.mean:.2g}",
                f"{error.maximum:.2g}",
            ]
        )
    graph = "the decode graph" if chunk == 1 else f"the prefill graph, {chunk} at a time"
    return "\n".join(
        [
            *markdown_table(cells, names=2),
            "",
            f"{expected.tokens} tokens predicted ({expected.rows} rows of {expected.row_tokens}; text: "
            f"{origin}), fed through {graph}. Reference: {reference}. Logit error: mean and greatest "
            "absolute difference over the standard deviation of the reference's logits.",
        ]
    )


def _values(name: str, quality: Quality, manifest: Manifest) -> dict[str, Any]:
    return {
        "bundle": name,
        "precision": manifest.precision,
        "target": manifest.target,
        "size_bytes": manifest.total_bytes,
        "perplexity": quality.perplexity.value,
        "mean_loss": quality.perplexity.mean_loss,
        "tokens": quality.perplexity.tokens,
        "logit_error": asdict(quality.logit_error),
    }


if __name__ == "__main__":
    sys.exit(main())
