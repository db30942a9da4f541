"""`python -m bench.perplexity`: how well a bundle predicts a text, through the runtime."""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.command import check_counts, print_progress
from exporter.presets.text_rows import pack_rows
from runtime.bundle import Bundle, load_bundle
from runtime.command import CommandParser, run_command
from runtime.decoder import Decoder
from runtime.generator import Generator
from runtime.text_files import decode_text

ROW_TOKENS = 512  # what the embedded preset was trained and measured with

DESCRIPTION = """\
Measure the perplexity of a bundle: exp of the mean negative log-likelihood of each next token, by
`Generator.score`, which reads rows as prompts are read.
"""

EXAMPLES = """\
examples:
  python -m bench.perplexity opt_tiny_en
      on the held-out part of Python's own documentation, as the preset's TRAINING.json has it
  python -m bench.perplexity models/opt_125m --text book.txt
"""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts tokens.

    Attributes:
        rows, row_tokens: what was predicted.
        mean_loss: negative log-likelihood of a token, in nats.
    """

    rows: int
    row_tokens: int
    mean_loss: float

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return self.rows * self.row_tokens

    @property
    def value(self) -> float:
        """The perplexity."""
        return math.exp(self.mean_loss)


@dataclass(frozen=True)
class Rows:
    """A text as rows of tokens.

    Attributes:
        inputs, labels: int64 [rows, length]: the tokens fed, the tokens to predict.
        origin: where the text came from, for people.
    """

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    origin: str


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.perplexity",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle folder that opt-export made")
    parser.add_argument(
        "--text", metavar="FILE", help="UTF-8 text (default: held-out Python documentation)"
    )
    parser.add_argument(
        "--batch", type=int, default=16, metavar="N", help="rows at a time (default: 16)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("perplexity", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    # A missing ONNX Runtime is so an error that `main` tells about.
    from runtime.open_decoder import open_decoder

    check_counts(options, batch=1, threads=1)
    bundle = load_bundle(options.bundle)
    rows = read_rows(bundle, options.text)
    decoder = open_decoder(bundle, options.device, options.threads)
    found = measure_perplexity(decoder, rows.inputs, rows.labels, options.batch, print_progress)
    print(
        f"perplexity {found.value:.4f} of {found.tokens} tokens "
        f"({found.rows} rows of {found.row_tokens}; text: {rows.origin})"
    )


def read_rows(bundle: Bundle, text: str | None) -> Rows:
    """A text in a bundle's tokens, in rows as the embedded preset was trained with.

    Args:
        bundle: whose tokenizer to use; its positions bound a row.
        text: path of a UTF-8 file; `None` for the held-out part of Python's own documentation.

    Raises:
        ValueError: if the bundle has no tokenizer or the text is empty.
    """
    if bundle.tokenizer is None:
        raise ValueError(f"{bundle.folder} has no tokenizer, which text needs")
    if text is None:
        from exporter.presets.corpus import split_documents

        texts = split_documents()[1]
        origin = f"held-out documentation of Python {platform.python_version()}"
    else:
        texts, origin = [decode_text(Path(text).read_bytes(), text)], text
    length = min(ROW_TOKENS, bundle.manifest.model.max_sequence_length)
    return Rows(*pack_rows(bundle.tokenizer, texts, length), origin)


def measure_perplexity(
    decoder: Decoder,
    inputs: NDArray[np.int64],
    labels: NDArray[np.int64],
    batch: int = 16,
    progress: Callable[[str], None] = lambda text: None,
) -> Perplexity:
    """Scores rows and adds up what the model says of each token.

    Args:
        decoder: the model.
        inputs: int64 [rows, length], the tokens fed.
        labels: int64 [rows, length], the tokens to predict: the fed ones from the second on, and one.
        batch: rows at a time.
        progress: told what is being done.
    """
    generator = Generator(decoder, None, max_prefix_bytes=0)
    total = 0.0
    for start in range(0, len(inputs), batch):
        progress(f"row {start + 1} of {len(inputs)}")
        part = slice(start, start + batch)
        rows = np.concatenate([inputs[part, :1], labels[part]], axis=1).tolist()
        total -= math.fsum(score.total for score in generator.score(rows))
    count, length = inputs.shape
    return Perplexity(count, length, total / inputs.size)


def log_likelihoods(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logarithm of the probability of each row's label, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    chosen = shifted[np.arange(len(labels)), labels]
    return chosen - np.log(np.exp(shifted).sum(axis=-1))


if __name__ == "__main__":
    sys.exit(main())
