"""What `bench.gpu` measures, in the order of its value, and how long each part may take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.shapes import SHAPES
from graphs.contract import ModelConfig

# For trying the command out; `bench.shapes` has the published sizes.
TINY = ModelConfig(
    vocabulary_size=512,
    num_layers=2,
    num_heads=4,
    hidden_dim=64,
    intermediate_dim=256,
    max_sequence_length=128,
)
GPU_SHAPES = {"tiny": TINY, **SHAPES}
# OPT's own deviation makes models of a few dozen channels repeat their last token.
DEVIATIONS = {"tiny": 0.3}
DEFAULT_SHAPES = ("opt_125m", "opt_6.7b", "opt_1.3b", "opt_2.7b")
PARITY_PARAMETERS = 2e9  # of the largest models whose tokens and logits are compared
BATCH = 32

START_SECONDS = 15.0  # of a process: its imports and the card
# Of each step: at least, and for each billion parameters. Estimates, for skipping what would not fit;
# the first step of a shape has its checkpoint to write, that of a precision its bundle.
STEP_SECONDS = {
    "rates": (5.0, 0.0),
    "parity_fp32": (8.0, 12.0),
    "parity_fp16": (5.0, 6.0),
    "parity_int4": (10.0, 10.0),
    "decode": (30.0, 16.0),
    "decode_batch": (4.0, 1.0),
    "prefill": (3.0, 0.5),
    "decode_int4": (8.0, 4.0),
}
# The bundles that they open.
STEP_PRECISIONS = {
    "parity_fp32": "fp32",
    "parity_fp16": "fp16",
    "parity_int4": "int4",
    "decode": "fp16",
    "decode_batch": "fp16",
    "prefill": "fp16",
    "decode_int4": "int4",
}
# ONNX Runtime reads it when a session opens: other kernels for products with codes of 4 bits.
FPA_INTB = {"ORT_FPA_INTB_GEMM": "1"}


@dataclass(frozen=True)
class Section:
    """Steps that one process takes.

    Attributes:
        name: of the section.
        shape: of the model; empty where none is needed.
        steps: names of `STEP_SECONDS`.
        environment: variables that are set in the process.
    """

    name: str
    shape: str
    steps: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def precisions(self) -> set[str]:
        """Of the bundles that the steps open."""
        return {STEP_PRECISIONS[step] for step in self.steps if step in STEP_PRECISIONS}

    def step_seconds(self, step: str) -> float:
        """An estimate of how long a step takes."""
        least, each = STEP_SECONDS[step]
        return least + each * (GPU_SHAPES[self.shape].num_parameters / 1e9 if self.shape else 0.0)


def plan(shapes: tuple[str, ...]) -> list[Section]:
    """The sections for these shapes, in that order; the largest one is measured most."""
    largest = max(shapes, key=lambda shape: GPU_SHAPES[shape].num_parameters)
    smallest = min(shapes, key=lambda shape: GPU_SHAPES[shape].num_parameters)
    sections = [Section("rates", "", ("rates",))]
    for shape in shapes:
        steps: list[str] = []
        if GPU_SHAPES[shape].num_parameters <= PARITY_PARAMETERS:
            steps += ["parity_fp32", "parity_fp16"]
        if shape == smallest:
            steps.append("parity_int4")
        steps.append("decode")
        if shape == largest:
            steps += ["decode_batch", "prefill"]
        sections.append(Section(shape, shape, tuple(steps)))
        if shape == largest:
            int4 = ("decode_int4",)
            sections.append(Section(f"{shape} int4", shape, int4))
            sections.append(Section(f"{shape} int4, FPA_INTB", shape, int4, FPA_INTB))
    return sections


class Budget:
    """Time that is left until a deadline.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; negative once it is over."""
        return self._deadline - time.monotonic()

    def refusal(self, needed: float) -> str | None:
        """Why work of so many seconds is not begun; `None` if it fits."""
        left = max(0.0, self.left)
        return None if needed <= left else f"needs about {needed:.0f} s of the {left:.0f} s left"
