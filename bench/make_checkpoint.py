"""`python -m bench.make_checkpoint`: a checkpoint of random weights in a published model's shape.

Speed and memory do not depend on the values of the weights, so that these stand in for downloads.
The weights are made and written one tensor at a time. There are no tokenizer files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.command import check_counts
from bench.random_weights import OPT_DEVIATION, value_blocks
from bench.shapes import SHAPES
from exporter.bundle_folder import atomic_folder, check_space
from exporter.checkpoints.formats import HUGGING_FACE, KERAS_PRESET
from exporter.checkpoints.weight_map import WeightMap, bind_names
from exporter.checkpoints.writers import (
    GIGABYTE,
    Piece,
    file_pieces,
    file_tensors,
    write_weights,
)
from exporter.presets.hugging_face_config import write_hugging_face_config
from exporter.presets.keras_config import backbone_config, dtype_policy
from exporter.presets.live_weights import check_shard_size
from exporter.progress import Progress
from graphs.contract import ModelConfig
from runtime.command import CommandParser, run_command

HUGGING_FACE_FORMAT, KERAS_FORMAT = "huggingface", "keras"
FORMATS: dict[str, WeightMap] = {HUGGING_FACE_FORMAT: HUGGING_FACE, KERAS_FORMAT: KERAS_PRESET}
DTYPES = ("float32", "float16")
SPECIAL_IDS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}  # OPT's

EXAMPLES = """\
examples:
  python -m bench.make_checkpoint --shape opt_125m --output hf_125m
  python -m bench.make_checkpoint --shape opt_6.7b --dtype float16 --max-shard-size 5 --output hf_6.7b
  python -m bench.make_checkpoint --shape opt_1.3b --layers 2 --output keras_2 --format keras
Then: opt-export --preset hf_125m --output bundle
The same shape, layers, dtype and seed give the same weights in both formats.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.make_checkpoint",
        description="Write a checkpoint of random weights in the shape of a published OPT model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", required=True, choices=SHAPES, help="the model's sizes")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--format", choices=FORMATS, default=HUGGING_FACE_FORMAT, help="default: huggingface"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="fewer or more than the shape has")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the stored weights (default: float32)"
    )
    parser.add_argument(
        "--max-shard-size",
        type=float,
        metavar="GB",
        help="most GB (2**30 bytes) of one weights file; by default all are in a single one",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("make_checkpoint", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    check_counts(options, layers=1, seed=0)
    config = SHAPES[options.shape]
    if options.layers is not None:
        config = replace(config, num_layers=options.layers)
    folder = Path(options.output)
    write_checkpoint(
        config,
        folder,
        format=options.format,
        dtype=options.dtype,
        seed=options.seed,
        max_shard_size=options.max_shard_size,
        progress=Progress(quiet=options.quiet),
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {config.num_parameters:,} parameters, {size / 1e6:.1f} MB")


def write_checkpoint(
    config: ModelConfig,
    folder: Path,
    *,
    format: str = HUGGING_FACE_FORMAT,
    dtype: str = "float32",
    seed: int = 0,
    deviation: float = OPT_DEVIATION,
    max_shard_size: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint of random weights; the folder is whole or not there.

    Args:
        config: sizes of the model.
        folder: created; must not exist or be empty.
        format: `"huggingface"` or `"keras"`.
        dtype: of the stored weights, `"float32"` or `"float16"`.
        seed: same seed and sizes, same weights.
        deviation: standard deviation of the matrices. OPT's own makes models of a few dozen channels
            repeat their last token.
        max_shard_size: most GB (2**30 bytes) of one weights file; `None` for a single one.
        progress: shows bytes; silent by default.

    Raises:
        ValueError: if the folder holds something, or the shard size is not above 0.
        ExportError: if the disk has no room.
    """
    progress = progress or Progress(quiet=True)
    check_shard_size(max_shard_size)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; choose another --output")
    targets = bind_names(FORMATS[format], config)
    tensors = [tensor for target in targets for tensor in file_tensors(target, dtype)]
    size = sum(tensor.nbytes for tensor in tensors)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_space(folder.parent, size)
    progress.phase("Writing weights", size)
    itemsize = tensors[0].dtype.itemsize

    def pieces() -> Iterator[Piece]:
        for target in targets:
            for name, values in file_pieces(target, value_blocks(target, seed, deviation)):
                progress.advance(values.size * itemsize)
                yield name, values

    try:
        with atomic_folder(folder) as temporary:
            most = None if max_shard_size is None else max_shard_size * GIGABYTE
            write_weights(temporary, format, tensors, pieces(), most)
            text = json.dumps(_configuration(config, format, dtype), indent=2) + "\n"
            (temporary / "config.json").write_text(text, encoding="utf-8")
    finally:
        progress.close()


def _configuration(config: ModelConfig, format: str, dtype: str) -> dict[str, Any]:
    if format == HUGGING_FACE_FORMAT:
        return write_hugging_face_config(config, dtype) | SPECIAL_IDS
    return backbone_config(config, dtype=dtype_policy("float32"))


if __name__ == "__main__":
    sys.exit(main())
