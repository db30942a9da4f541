"""The contract between exported graphs and the runtime that drives them.

A bundle holds two graphs over one weights file: `prefill` appends any number of new tokens to each
row, `decode` appends exactly one. Both take and give the tensors that `graph_inputs` and
`graph_outputs` list. A change of these tensors raises `CONTRACT_REVISION`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

CONTRACT_REVISION = 1

INPUT_IDS = "input_ids"
PAST_LENGTHS = "past_lengths"
NEW_LENGTHS = "new_lengths"
LOGITS = "logits"
HIDDEN_STATES = "hidden_states"

Dimension = int | str


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
    """The sizes of an OPT decoder (Zhang et al., 2022, https://arxiv.org/abs/2205.01068).

    Attributes:
        vocabulary_size: rows of the token embedding.
        num_layers: decoder layers.
        num_heads: attention heads of each layer; divides `hidden_dim`.
        hidden_dim: width of the residual stream.
        intermediate_dim: width of the feed-forward layer.
        max_sequence_length: positions that the model has embeddings for.
        layer_norm_epsilon: added to the variance by every layer normalization.

    Raises:
        ValueError: if a size is not a positive whole number or the heads do not divide the width.
    """

    vocabulary_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    intermediate_dim: int
    max_sequence_length: int
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "layer_norm_epsilon":
                if not isinstance(value, float) or not 0 < value < 1:
                    raise ValueError(f"{field.name} must be between 0 and 1, got {value!r}")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field.name} must be a whole number of at least 1, got {value!r}")
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim ({self.hidden_dim}) must be a multiple of num_heads ({self.num_heads})"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_dim // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Number of weights, the tied embedding counted once."""
        hidden, inner = self.hidden_dim, self.intermediate_dim
        attention = 4 * hidden * hidden + 4 * hidden
        feed_forward = 2 * hidden * inner + inner + hidden
        layer = attention + feed_forward + 4 * hidden
        embeddings = (self.vocabulary_size + self.max_sequence_length) * hidden
        return embeddings + self.num_layers * layer + 2 * hidden

    def cache_bytes(self, batch: int, capacity: int, itemsize: int = 4) -> int:
        """Bytes of a KV cache for `batch` rows of `capacity` tokens each."""
        return 2 * self.num_layers * batch * capacity * self.hidden_dim * itemsize

    def to_dict(self) -> dict[str, int | float]:
        """The configuration as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """Reads what `to_dict` wrote; unknown or missing names raise `ValueError`."""
        known = {field.name for field in fields(cls)}
        surplus, missing = sorted(set(values) - known), sorted(known - set(values))
        if surplus or missing:
            raise ValueError(f"model configuration: unknown names {surplus}, missing {missing}")
        return cls(**values)  # type: ignore[arg-type]


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


def graph_inputs(config: ModelConfig, phase: Phase, cache_dtype: str = "float32") -> list[TensorSpec]:
    """The inputs of a graph, in order.

    - `input_ids` int64 [batch, sequence]: the new tokens, right-padded per row.
    - `past_lengths` int32 [batch]: tokens of each row that the cache already holds.
    - `new_lengths` int32 [batch]: valid tokens among the new ones of each row.
    - `past_key_values.{i}.key`, `.value` [batch, heads, capacity, head_dim]: the cache. Padding
      that would lie past the end is written to the last slot, so callers leave that one unused.
    """
    specs = [
        TensorSpec(INPUT_IDS, "int64", ("batch", _sequence(phase))),
        TensorSpec(PAST_LENGTHS, "int32", ("batch",)),
        TensorSpec(NEW_LENGTHS, "int32", ("batch",)),
    ]
    for layer in range(config.num_layers):
        specs += [TensorSpec(n, cache_dtype, cache_shape(config)) for n in past_names(layer)]
    return specs


def graph_outputs(config: ModelConfig, phase: Phase, cache_dtype: str = "float32") -> list[TensorSpec]:
    """The outputs of a graph, in order.

    - `logits` float32 [batch, vocabulary]: for each row's last valid new token.
    - `hidden_states` float32 [batch, sequence, hidden]: after the final norm.
    - `present.{i}.key`, `.value`: the cache with the new tokens written at `past_lengths`.
    """
    specs = [
        TensorSpec(LOGITS, "float32", ("batch", config.vocabulary_size)),
        TensorSpec(HIDDEN_STATES, "float32", ("batch", _sequence(phase), config.hidden_dim)),
    ]
    for layer in range(config.num_layers):
        specs += [TensorSpec(n, cache_dtype, cache_shape(config)) for n in present_names(layer)]
    return specs
