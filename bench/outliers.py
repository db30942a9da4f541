"""`python -m bench.outliers`: the same model with outlier channels, which quantization must survive.

OPT has them from a few billion parameters on; small and random models do not. Some channels of every
norm within the layers are multiplied by a factor, scale and offset, and the rows of the kernel that
reads them divided by it. So the model computes the same function, with activations as hard to quantize
as those of large ones. The final norm is left alone: the head that reads it is tied to the embedding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.command import check_counts
from runtime.command import CommandParser, run_command

if TYPE_CHECKING:
    from exporter import OPTBackbone

FACTOR, SHARE = 60.0, 0.01
READERS = {"attention_norm": "attention/qkv", "feed_forward_norm": "intermediate"}

EXAMPLES = """\
examples:
  python -m bench.outliers opt_tiny_en outliers
  opt-export --preset outliers --output models/outliers-fp32
  opt-export --preset outliers --output models/outliers-int8 --precision int8
  opt-export --preset outliers --output models/outliers-portable --target portable
  python -m bench.dynamic_int8 models/outliers-portable models/outliers-dynamic
  python -m bench.quality --reference models/outliers-fp32 models/outliers-int8 models/outliers-dynamic
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.outliers",
        description="Write a copy of a preset that computes the same with outliers in its activations.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", metavar="PRESET", help="name, handle or folder")
    parser.add_argument("output", metavar="DIR", help="preset folder to make")
    parser.add_argument(
        "--factor", type=float, default=FACTOR, help=f"of the outliers (default: {FACTOR:g})"
    )
    parser.add_argument(
        "--share", type=float, default=SHARE, help=f"of each norm's channels (default: {SHARE:g})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of channels (default: 0)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("outliers", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    check_counts(options, seed=0)
    if not options.factor > 0 or not 0 < options.share <= 1:
        raise ValueError(
            "--factor must be above 0, and --share above 0 and at most 1; "
            f"got {options.factor:g} and {options.share:g}"
        )
    folder = Path(options.output)
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another folder")
    from exporter import OPTCausalLM

    model = OPTCausalLM.from_preset(options.preset)
    channels = choose_channels(model.backbone.model_config.hidden_dim, options.share, options.seed)
    scale_channels(model.backbone, channels, options.factor)
    model.save_to_preset(folder)
    shown = ", ".join(map(str, channels))
    print(f"{folder}: channels {shown} of each layer's norms times {options.factor:g}")


def choose_channels(hidden_dim: int, share: float, seed: int) -> list[int]:
    """A share of the channels, at least one: the same in every norm, as in OPT."""
    count = max(1, round(share * hidden_dim))
    chosen = np.random.default_rng(seed).choice(hidden_dim, count, replace=False)
    return sorted(chosen.tolist())


def scale_channels(backbone: OPTBackbone, channels: Sequence[int], factor: float) -> None:
    """Multiplies channels of the layers' norms and divides the rows of the kernels that read them.

    Raises:
        ValueError: if a norm has no scales, or its output goes elsewhere too, as in opt_350m.
    """
    config = backbone.model_config
    if not config.norm_first or not config.norm_affine:
        raise ValueError(
            "channels can be scaled only where norms have scales and stand before attention and "
            "feed-forward; take another preset, opt_125m_en or opt_1.3b_en say"
        )
    variables = {variable.path: variable for variable in backbone.weights}
    factors = np.ones(config.hidden_dim)
    factors[list(channels)] = factor
    for layer in range(config.num_layers):
        for norm, reader in READERS.items():
            for name in ("gamma", "beta"):
                _multiply(variables[f"transformer_layer_{layer}/{norm}/{name}"], factors)
            _multiply(variables[f"transformer_layer_{layer}/{reader}/kernel"], 1 / factors[:, None])


def _multiply(variable: Any, factors: np.ndarray) -> None:
    values = variable.numpy()
    variable.assign((values * factors).astype(values.dtype))


if __name__ == "__main__":
    sys.exit(main())
