"""How large what a graph holds and computes may be: what a model of its sizes needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from graphs.contract import ModelConfig, Phase, Revision
from runtime.graph_check.messages import BYTES
from runtime.graph_check.sizes import (
    BATCH,
    CAPACITY,
    OUTPUTS,
    SEQUENCE,
    Dim,
    Shape,
    Symbol,
    at_least,
    count,
    largest,
)

if TYPE_CHECKING:
    from runtime.graph_check.values import Value

MAX_INLINE_BYTES = 4 * 1024**2  # of the tensors in a graph file; those of the presets take 50 kB
# The traced graphs have up to 42 operators a layer, and 110 others.
NODES_PER_LAYER, OTHER_NODES = 60, 160
MOST_AXES = 4
SMALLEST_BOUND = 1024  # of a width, where all of the model's are smaller
# Bytes beside those of the weights file: of copies that are made of constants while a graph is loaded.
SLACK = 1024**2
WEIGHT_READS = 2  # a table is looked up, and multiplied with
SMALL_BYTES = 512  # of constants that shapes are computed of
PACK_WIDTH = 16  # outputs that kernels compute at a time, which the last ones are filled up to
_BATCH, _SEQUENCE, _CAPACITY, _OUTPUTS = (
    next(iter(size.terms))[0] for size in (BATCH, SEQUENCE, CAPACITY, OUTPUTS)
)


@dataclass(frozen=True)
class GraphLimits:
    """What a graph file may hold.

    Attributes:
        config: sizes of the model.
        phase: whose inputs and outputs it has.
        cache_dtype: NumPy name of the cache's dtype.
        weights_name: the one file that it may point into.
        weights_size: bytes of that file.
        revision: of the contract that it follows.
    """

    config: ModelConfig
    phase: Phase
    cache_dtype: str
    weights_name: str
    weights_size: int
    revision: Revision = Revision.HOST

    @property
    def most_nodes(self) -> int:
        """How many operators a graph may have."""
        return NODES_PER_LAYER * self.config.num_layers + OTHER_NODES

    @cached_property
    def _elements(self) -> dict[frozenset[Symbol], int]:
        """How many times a product of sizes a value may have elements, by the sizes."""
        c = self.config
        activation = max(
            3 * c.hidden_dim, c.intermediate_dim, c.embedding_width, 3 * c.num_heads, SMALLEST_BOUND
        )
        fixed = max(activation, c.vocabulary_size)
        return {
            frozenset(): fixed,
            frozenset({_BATCH}): activation,
            frozenset({_OUTPUTS}): fixed,
            frozenset({_SEQUENCE}): activation,
            frozenset({_BATCH, _SEQUENCE}): activation,
            frozenset({_CAPACITY}): c.hidden_dim,
            frozenset({_BATCH, _CAPACITY}): c.hidden_dim,
            frozenset({_SEQUENCE, _CAPACITY}): c.num_heads,
            frozenset({_BATCH, _SEQUENCE, _CAPACITY}): c.num_heads,
        }

    @property
    def sequence(self) -> Dim:
        """How many tokens of each row a run takes."""
        return 1 if self.phase is Phase.DECODE else SEQUENCE

    @property
    def most_weight_bytes(self) -> int:
        """What all constants together may read of the weights file, counted as often as it is read."""
        return WEIGHT_READS * self.weights_size + SLACK

    def problem(self, shape: Shape, *, fixed: bool) -> str | None:
        """Why a value is larger than the largest of its kind in the model; `None` if it is not.

        What is computed of constants is counted elsewhere, see `LoadingCosts`.
        """
        if len(shape) > MOST_AXES:
            return "more axes than any value of a bundle has"
        if fixed:
            return None
        if shape not in self._seen:
            self._seen[shape] = self._is_small(shape)
        return None if self._seen[shape] else "more than a model of these sizes computes"

    @cached_property
    def _seen(self) -> dict[Shape, bool]:
        return {}

    def _is_small(self, shape: Shape) -> bool:
        total = largest(count(shape))
        if not at_least(total, 1):
            return False
        if isinstance(total, int):
            return total <= self._elements[frozenset()]
        if len(total.terms) > 1:
            return False
        ((symbols, factor),) = total.terms.items()
        sizes = frozenset(symbols)
        return len(sizes) == len(symbols) and factor <= self._elements.get(sizes, 0)


class LoadingCosts:
    """What ONNX Runtime takes to load a graph, beside the graph file: copies of constants.

    It computes what depends on no input, and packs matrices as its kernels want them.

    Attributes:
        limits: of the graph.
        pack_bytes: of the constants, what is computed of them and their packed copies.
    """

    def __init__(self, limits: GraphLimits) -> None:
        self.limits = limits
        self.pack_bytes = 0
        self._folded = self._packed = 0

    def add_weight(self, value: Value) -> None:
        """Counts a constant of the file."""
        self.pack_bytes += _bytes(value)

    def fold(self, given: list[Value], made: list[Value]) -> str | None:
        """Counts what is computed of constants; says why that is too much."""
        small = all(_bytes(value) <= SMALL_BYTES for value in [*given, *made])
        if small:
            return None
        self._folded += sum(map(_bytes, [*given, *made]))
        self.pack_bytes += sum(map(_bytes, made))
        if self._folded > self.limits.most_weight_bytes:
            return "more is computed of constants alone than any bundle does"
        return None

    def pack(self, matrix: Value, others: list[Value]) -> str | None:
        """Counts the copy of a matrix, and of its scales and their like; says why that is too much."""
        *before, columns = (size for size in matrix.shape if isinstance(size, int))
        rows = _filled(before[0] if before else 1)
        rest = prod(before[1:]) * (columns if before[1:] else _filled(columns))
        # Kernels keep scales, and sums of blocks that are as many.
        packed = rows * rest * BYTES[matrix.dtype] + 2 * sum(map(_bytes, others))
        self._packed += packed
        self.pack_bytes += packed
        if self._packed > self.limits.most_weight_bytes:
            return "more weights are multiplied with than the weights file has"
        return None


def _filled(size: int) -> int:
    return -(-size // PACK_WIDTH) * PACK_WIDTH


def _bytes(value: Value) -> int:
    return prod(size for size in value.shape if isinstance(size, int)) * BYTES[value.dtype]
