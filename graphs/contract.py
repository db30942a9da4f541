"""The contract between exported graphs and the runtime that drives them.

A bundle holds two graphs over one weights file: `prefill` appends any number of new tokens to each
row, `decode` appends exactly one. Both take and give the tensors that `graph_inputs` and
`graph_outputs` list. Where both phases want the same kernels, one prefill graph may stand for both.
Other tensors are another `Revision`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields

from graphs.shown import shown

INPUT_IDS = "input_ids"
LOGITS = "logits"
HIDDEN_STATES = "hidden_states"
OUTPUT_POSITIONS = "output_positions"
# Of `Revision.HOST`.
PAST_LENGTHS = "past_lengths"
NEW_LENGTHS = "new_lengths"
# Of `Revision.DEVICE`.
POSITIONS = "positions"
LAST_POSITIONS = "last_positions"
TOTAL_LENGTH = "total_length"
INVERSE_TEMPERATURES = "inverse_temperatures"
BEST_LOGITS = "best_logits"
BEST_IDS = "best_ids"
WEIGHT_TOTALS = "weight_totals"

MOST_BEST_LOGITS = 64  # of a row: enough for every usual top-k, and for most nuclei
CACHE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of an entry, by dtype

# Feed-forward activations. `gelu` is the exact one, `gelu_tanh` its approximation by tanh (Hendrycks
# and Gimpel, 2016, https://arxiv.org/abs/1606.08415).
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")

# The largest sizes that are taken for a model's: several times those of any that there is. A file that
# asks for more is damaged or meant to fill memory.
MAX_SIZES = {
    "vocabulary_size": 2**24,
    "num_layers": 1024,
    "num_heads": 2**12,
    "hidden_dim": 2**17,
    "intermediate_dim": 2**20,
    "max_sequence_length": 2**24,
    "embedding_dim": 2**17,
}

Dimension = int | str


class Revision(enum.IntEnum):
    """Which tensors a graph takes and gives.

    Both give the logits of the new tokens that a run asks for. (1 and 2 were these two before they had
    `output_positions`: their graphs gave the logits of each row's last new token.)

    `HOST`: the graph is told lengths and finds out positions itself.

    `DEVICE`: for graphs whose tensors live on an accelerator. Everything that is computed from lengths
    comes from the host, so that no operator of the graph runs there: only then can a step be replayed
    as one CUDA graph. The largest logits are outputs of their own, so that the host can draw a token
    without reading all of them.
    """

    HOST = 3
    DEVICE = 4


class Phase(enum.StrEnum):
    """Which of a bundle's two graphs: `PREFILL` takes any number of new tokens, `DECODE` one."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (NumPy spelling) and shape of one graph input or output.

    A dimension is a number where it is fixed, a name where it varies between runs.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and switches of an OPT decoder (Zhang et al., 2022, https://arxiv.org/abs/2205.01068).

    The defaults of the switches are those of OPT itself. opt-350m norms after each residual and has a
    narrow embedding; Galactica has another activation, and may go without biases and norm scales.

    Attributes:
        vocabulary_size: rows of the token embedding.
        num_layers: decoder layers.
        num_heads: attention heads of each layer; divides `hidden_dim`.
        hidden_dim: width of the residual stream.
        intermediate_dim: width of the feed-forward layer.
        max_sequence_length: positions that the model has embeddings for.
        layer_norm_epsilon: added to the variance by every layer normalization.
        embedding_dim: width of the token embedding; where it differs from `hidden_dim`, a projection
            without bias leads in and another out. `None` means `hidden_dim`.
        activation: of the feed-forward layer, one of `ACTIVATIONS`.
        norm_first: whether norms stand before attention and feed-forward, or after the residuals.
        final_norm: whether a norm follows the last layer.
        use_bias: whether the dense layers have biases.
        norm_affine: whether the norms have scales and offsets.
        tied_head: whether the token embedding also gives the logits.

    Raises:
        ValueError: if a size is not a positive whole number, the heads do not divide the width, or a
            switch has another kind of value.
    """

    vocabulary_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    intermediate_dim: int
    max_sequence_length: int
    layer_norm_epsilon: float = 1e-5
    embedding_dim: int | None = None
    activation: str = "relu"
    norm_first: bool = True
    final_norm: bool = True
    use_bias: bool = True
    norm_affine: bool = True
    tied_head: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_field(field.name, getattr(self, field.name), field.default)
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim ({self.hidden_dim}) must be a multiple of num_heads ({self.num_heads})"
            )
        if self.embedding_dim == self.hidden_dim:  # one spelling of the same model
            object.__setattr__(self, "embedding_dim", None)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_dim // self.num_heads

    @property
    def embedding_width(self) -> int:
        """Width of the token embedding, in numbers."""
        return self.embedding_dim or self.hidden_dim

    @property
    def switches(self) -> dict[str, object]:
        """The fields that are not as in OPT itself, by name; empty for most checkpoints."""
        optional = [field for field in fields(self) if field.default is not MISSING]
        values = {field.name: getattr(self, field.name) for field in optional}
        return {f.name: values[f.name] for f in optional if values[f.name] != f.default}

    @property
    def num_parameters(self) -> int:
        """Number of weights, the tied embedding counted once."""
        hidden, inner, embedding = self.hidden_dim, self.intermediate_dim, self.embedding_width
        norm = 2 * hidden * self.norm_affine
        biases = (5 * hidden + inner) * self.use_bias
        layer = 4 * hidden * hidden + 2 * hidden * inner + biases + 2 * norm
        tables = self.vocabulary_size * embedding * (1 if self.tied_head else 2)
        projections = 0 if self.embedding_dim is None else 2 * embedding * hidden
        positions = self.max_sequence_length * hidden
        return tables + projections + positions + self.num_layers * layer + norm * self.final_norm

    def cache_bytes(self, batch: int, capacity: int, itemsize: int = 4) -> int:
        """Bytes of a KV cache for `batch` rows of `capacity` tokens each."""
        return 2 * self.num_layers * batch * capacity * self.hidden_dim * itemsize

    def to_dict(self) -> dict[str, int | float | str | None]:
        """The configuration as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """Reads what `to_dict` wrote; unknown or missing names raise `ValueError`.

        Switches may be missing: bundles from before they existed hold models without them.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        surplus, missing = sorted(set(values) - known), sorted(needed - set(values))
        if surplus or missing:
            raise ValueError(
                f"model configuration: unknown names {shown(surplus)}, missing {shown(missing)}"
            )
        return cls(**values)  # type: ignore[arg-type]


def _check_field(name: str, value: object, default: object) -> None:
    if name == "layer_norm_epsilon":
        if not isinstance(value, float) or not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {shown(value)}")
    elif name == "activation":
        if value not in ACTIVATIONS:
            raise ValueError(f"{name} must be one of {', '.join(ACTIVATIONS)}; got {shown(value)}")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {shown(value)}")
    elif name == "embedding_dim" and value is None:
        return
    elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {shown(value)}")
    elif value > MAX_SIZES[name]:
        raise ValueError(f"{name} must be at most {MAX_SIZES[name]}, got {shown(value)}")


def past_names(layer: int) -> tuple[str, str]:
    """Names of the key and value cache inputs of a layer."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Names of the key and value cache outputs of a layer."""
    return f"present.{layer}.key", f"present.{layer}.value"


def cache_shape(config: ModelConfig) -> tuple[Dimension, ...]:
    """Shape of one layer's key or value cache: [batch, heads, capacity, head_dim]."""
    return ("batch", config.num_heads, "capacity", config.head_dim)


def _sequence(phase: Phase) -> Dimension:
    return 1 if phase is Phase.DECODE else "sequence"


def best_count(config: ModelConfig) -> int:
    """How many logits of a token a graph of `Revision.DEVICE` ranks."""
    return min(MOST_BEST_LOGITS, config.vocabulary_size)


def graph_inputs(
    config: ModelConfig,
    phase: Phase,
    cache_dtype: str = "float32",
    revision: Revision = Revision.HOST,
) -> list[TensorSpec]:
    """The inputs of a graph, in order.

    Of both revisions:

    - `input_ids` int64 [batch, sequence]: the new tokens, right-padded per row.
    - `output_positions` int64 [outputs]: the new tokens whose logits are wanted, counted over batch
      times sequence; one or more, in any order.
    - `past_key_values.{i}.key`, `.value` [batch, heads, capacity, head_dim]: the cache. Padding
      that would lie past the end is written to the last slot, so callers leave that one unused.

    Of `Revision.HOST`:

    - `past_lengths` int32 [batch]: tokens of each row that the cache already holds.
    - `new_lengths` int32 [batch]: valid tokens among the new ones of each row.

    Of `Revision.DEVICE`:

    - `positions` int64 [batch, sequence]: the position of each new token in its row, of padding any
      that the model has.
    - `last_positions` int32 [batch]: the position of each row's last valid new token.
    - `total_length` int32 [1], in the host's memory: as `sequence` where all rows are empty; past and
      new tokens where one row that is not gets several; the capacity where rows get one token each.
    - `inverse_temperatures` float32 [outputs, 1]: what logits are multiplied with for `weight_totals`.
    """
    batch, tokens = ("batch",), ("batch", _sequence(phase))
    specs = [TensorSpec(INPUT_IDS, "int64", tokens)]
    if revision is Revision.HOST:
        specs += [TensorSpec(PAST_LENGTHS, "int32", batch), TensorSpec(NEW_LENGTHS, "int32", batch)]
        specs += [TensorSpec(OUTPUT_POSITIONS, "int64", ("outputs",))]
    else:
        specs += [
            TensorSpec(POSITIONS, "int64", tokens),
            TensorSpec(OUTPUT_POSITIONS, "int64", ("outputs",)),
            TensorSpec(LAST_POSITIONS, "int32", batch),
            TensorSpec(TOTAL_LENGTH, "int32", (1,)),
            TensorSpec(INVERSE_TEMPERATURES, "float32", ("outputs", 1)),
        ]
    for layer in range(config.num_layers):
        specs += [TensorSpec(n, cache_dtype, cache_shape(config)) for n in past_names(layer)]
    return specs


def graph_outputs(
    config: ModelConfig,
    phase: Phase,
    cache_dtype: str = "float32",
    revision: Revision = Revision.HOST,
) -> list[TensorSpec]:
    """The outputs of a graph, in order.

    Of both revisions:

    - `logits` float32 [outputs, vocabulary]: of the tokens that `output_positions` names.
    - `hidden_states` float32 [batch, sequence, embedding]: after the final norm and, where there is
      one, the projection to the embedding's width; the logits are their product with the head.
    - `present.{i}.key`, `.value`: the cache with the new tokens written behind the past ones.

    Of `Revision.DEVICE`, before the caches:

    - `best_logits` float32 [outputs, n]: the `best_count` largest of the logits, falling.
    - `best_ids` int64 [outputs, n]: their tokens; those of equal logits in any order.
    - `weight_totals` float32 [outputs]: the sum of exp((logit - largest) * inverse_temperature) over
      the whole vocabulary, which makes probabilities of the best logits.
    """
    specs = [
        TensorSpec(LOGITS, "float32", ("outputs", config.vocabulary_size)),
        TensorSpec(HIDDEN_STATES, "float32", ("batch", _sequence(phase), config.embedding_width)),
    ]
    if revision is Revision.DEVICE:
        best = ("outputs", best_count(config))
        specs += [
            TensorSpec(BEST_LOGITS, "float32", best),
            TensorSpec(BEST_IDS, "int64", best),
            TensorSpec(WEIGHT_TOTALS, "float32", ("outputs",)),
        ]
    for layer in range(config.num_layers):
        specs += [TensorSpec(n, cache_dtype, cache_shape(config)) for n in present_names(layer)]
    return specs
