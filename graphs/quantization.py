"""How quantized weights are stored: the tensors that rewrite passes ask for and the exporter writes.

Two kinds of codes. `int8`: a symmetric code for each weight and a scale for each output channel, with
activations in uint8 under one scale that calibration found (SmoothQuant's static scheme,
https://arxiv.org/abs/2211.10438). `int4`: blocks of inputs with a scale and a zero point each, in the
layout of ONNX Runtime's MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from graphs.contract import ModelConfig, Phase

Storage = Literal["fp32", "int8", "int4"]
BLOCK_SIZES = (128, 64, 32, 16)  # of int4; the largest is the fastest


@dataclass(frozen=True)
class Scheme:
    """What a graph's weights are stored as.

    Attributes:
        layers: the matrices of the decoder layers.
        tables: the token embedding and the head.
    """

    layers: Storage = "fp32"
    tables: Storage = "fp32"

    @property
    def quantized(self) -> bool:
        """Whether anything is not float32."""
        return self != Scheme()


FLOAT = Scheme()
_SCHEMES = {"fp32": FLOAT, "int8": Scheme("int8", "int8"), "int4": Scheme("int4", "int4")}


def phase_schemes(precision: str, prefill_precision: str | None = None) -> dict[Phase, Scheme]:
    """How each phase's weights are stored.

    Args:
        precision: of the bundle.
        prefill_precision: `"int8"` for an int4 bundle whose prefill has int8 layers of its own.
    """
    scheme = _SCHEMES[precision]
    prefill = scheme if prefill_precision is None else Scheme("int8", scheme.tables)
    return {Phase.PREFILL: prefill, Phase.DECODE: scheme}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the weights file.

    Attributes:
        name: what the graphs call it.
        dtype: NumPy spelling.
        shape: as the graph sees it.
        view_of: the tensor whose bytes it shares, `None` for bytes of its own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    view_of: str | None = None

    def view(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """The same bytes under another name and shape."""
        return replace(self, name=name, shape=shape, view_of=self.name)


@dataclass(frozen=True)
class Int8Matrix:
    """An int8 matrix and the scale of the uint8 activations that it is multiplied with.

    Attributes:
        codes: int8 [inputs, outputs], or [outputs, inputs] for a table.
        scales: float32 [outputs].
        input_scale: float32 [], of the activations.
        input_zero_point: uint8 [], of the activations.
    """

    codes: StoredTensor
    scales: StoredTensor
    input_scale: StoredTensor
    input_zero_point: StoredTensor

    @classmethod
    def of(cls, weight: str, shape: tuple[int, ...], outputs_axis: int = 1) -> Int8Matrix:
        """The tensors that store a weight of the given shape."""
        return cls(
            StoredTensor(f"{weight}.int8", "int8", shape),
            StoredTensor(f"{weight}.int8.scales", "float32", (shape[outputs_axis],)),
            StoredTensor(f"{weight}.input_scale", "float32", ()),
            StoredTensor(f"{weight}.input_zero_point", "uint8", ()),
        )


@dataclass(frozen=True)
class Int8Lookup:
    """An int8 table that rows are looked up in.

    Attributes:
        codes: int8 [vocabulary, width].
        scales: float32 [vocabulary, 1].
        factors: float32 [width], what a looked-up row is multiplied with where it is one of the head's,
            which are smoothed; else `None`. See `head_factors`.
    """

    codes: StoredTensor
    scales: StoredTensor
    factors: StoredTensor | None

    @classmethod
    def of(cls, weight: str, config: ModelConfig) -> Int8Lookup:
        """The tensors of the token embedding; views of the head's where the two are tied."""
        rows, width = config.vocabulary_size, config.embedding_width
        if not config.tied_head:
            return cls(
                StoredTensor(f"{weight}.int8.rows", "int8", (rows, width)),
                StoredTensor(f"{weight}.int8.rows.scales", "float32", (rows, 1)),
                None,
            )
        head = Int8Matrix.of(weight, (rows, width), outputs_axis=0)
        return cls(
            head.codes.view(f"{weight}.int8.rows", (rows, width)),
            head.scales.view(f"{weight}.int8.rows.scales", (rows, 1)),
            head_factors(weight, width),
        )


@dataclass(frozen=True)
class Int4Matrix:
    """A matrix in blocks of inputs, as MatMulNBits takes it.

    Attributes:
        block_size: inputs of a block.
        codes: uint8 [outputs, blocks, block_size / 2], two codes a byte, the low one first.
        scales: float32 [outputs, blocks].
        zero_points: uint8 [outputs, blocks / 2 rounded up], two a byte.
    """

    block_size: int
    codes: StoredTensor
    scales: StoredTensor
    zero_points: StoredTensor

    @classmethod
    def of(cls, weight: str, outputs: int, inputs: int, block_size: int) -> Int4Matrix:
        """The tensors that store a weight of the given size."""
        blocks = inputs // block_size
        return cls(
            block_size,
            StoredTensor(f"{weight}.int4", "uint8", (outputs, blocks, block_size // 2)),
            StoredTensor(f"{weight}.int4.scales", "float32", (outputs, blocks)),
            StoredTensor(f"{weight}.int4.zero_points", "uint8", (outputs, -(-blocks // 2))),
        )

    def rows(self) -> StoredTensor:
        """The codes as GatherBlockQuantized takes them: uint8 [outputs, inputs / 2]."""
        outputs, blocks, half = self.codes.shape
        return self.codes.view(f"{self.codes.name}.rows", (outputs, blocks * half))


def int4_block_size(config: ModelConfig) -> int:
    """The block size of a model's int4 weights: blocks must divide every matrix's inputs.

    Raises:
        ValueError: if no block size does.
    """
    widths = _input_widths(config)
    for size in BLOCK_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    raise ValueError(
        f"int4 needs widths that {BLOCK_SIZES[-1]} divides, and this model has widths of "
        f"{', '.join(str(width) for width in widths)}; export it as int8 or fp32"
    )


def takes_int4(config: ModelConfig) -> bool:
    """Whether a model's weights can be stored as int4."""
    return all(width % BLOCK_SIZES[-1] == 0 for width in _input_widths(config))


def _input_widths(config: ModelConfig) -> tuple[int, ...]:
    return config.hidden_dim, config.intermediate_dim, config.embedding_width


def is_layer_matrix(weight: str) -> bool:
    """Whether a weight is a matrix of a decoder layer, by its Keras path."""
    return weight.startswith("transformer_layer_") and weight.endswith("/kernel")


def is_token_table(weight: str) -> bool:
    """Whether a weight is the token embedding, by its Keras path."""
    return weight == "embeddings/token_embedding/embeddings"


def is_position_table(weight: str) -> bool:
    """Whether a weight is the position embedding, by its Keras path."""
    return weight == "embeddings/position_embedding/embeddings"


def half_positions(weight: str, config: ModelConfig) -> StoredTensor:
    """The position embedding of a quantized model, in float16."""
    return StoredTensor(f"{weight}.fp16", "float16", (config.max_sequence_length, config.hidden_dim))


def head_factors(weight: str, width: int) -> StoredTensor:
    """What an int8 head's inputs are multiplied with, float32 [width]: its rows carry the inverse.

    A vector of its own, because the hidden states before it are an output of the graphs.
    """
    return StoredTensor(f"{weight}.factors", "float32", (width,))
