"""How weights are stored: the tensors that rewrite passes ask for and the exporter writes.

Two kinds of codes. `int8` for CPUs: a symmetric code for each weight and a scale for each output
channel, with activations in uint8 under one scale that calibration found (SmoothQuant's static scheme,
https://arxiv.org/abs/2211.10438). All others are in the layout of ONNX Runtime's MatMulNBits: blocks of
inputs with a scale each, `int4` with a zero point each too. Beside floats of 16 bits, `int8` is in
blocks as well, since activations stay floats there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from graphs.contract import ModelConfig, Phase

Storage = Literal["fp32", "fp16", "bf16", "int8", "int4"]
BLOCK_SIZES = (128, 64, 32, 16)  # of blocks; the largest is the fastest
HALVES = {"fp16": "float16", "bf16": "bfloat16"}  # storages of 16 bits, with NumPy's names


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
    def floats(self) -> str:
        """What everything else is: activations, biases, norms and positions."""
        return self.tables if self.tables in HALVES else "fp32"

    @property
    def quantized(self) -> bool:
        """Whether any weight is a code."""
        return bool({self.layers, self.tables} & {"int8", "int4"})

    @property
    def calibrated(self) -> bool:
        """Whether codes depend on the activations that a text gives: not those of int8 in blocks."""
        return self.quantized and not (self.layers == "int8" and self.floats in HALVES)


FLOAT = Scheme()
_SCHEMES = {"fp32": FLOAT, "int8": Scheme("int8", "int8"), "int4": Scheme("int4", "int4")}
# The tables stay floats: ONNX Runtime's lookup in codes has read wrong rows on CUDA, and one table
# serves the lookup and the head.
_CUDA_SCHEMES = {
    "fp16": Scheme("fp16", "fp16"),
    "bf16": Scheme("bf16", "bf16"),
    "int8": Scheme("int8", "fp16"),
    "int4": Scheme("int4", "fp16"),
}


def phase_schemes(
    precision: str, prefill_precision: str | None = None, target: str = "cpu"
) -> dict[Phase, Scheme]:
    """How each phase's weights are stored.

    Args:
        precision: of the bundle.
        prefill_precision: `"int8"` for an int4 bundle whose prefill has int8 layers of its own.
        target: of the bundle, which has the precision.
    """
    scheme = (_CUDA_SCHEMES if target == "cuda" else _SCHEMES)[precision]
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
class BlockMatrix:
    """A matrix in blocks of inputs, as MatMulNBits takes it.

    Attributes:
        bits: of a code, 4 or 8.
        block_size: inputs of a block.
        codes: uint8 [outputs, blocks, block_size * bits / 8], two codes of 4 bits a byte, the low one
            first.
        scales: [outputs, blocks], of the activations' dtype.
        zero_points: uint8 [outputs, blocks / 2 rounded up], two a byte; `None` with 8 bits, where all
            are 128.
    """

    bits: int
    block_size: int
    codes: StoredTensor
    scales: StoredTensor
    zero_points: StoredTensor | None

    @classmethod
    def of(
        cls,
        weight: str,
        outputs: int,
        inputs: int,
        block_size: int,
        bits: int = 4,
        floats: str = "fp32",
    ) -> BlockMatrix:
        """The tensors that store a weight of the given size, beside floats of the given storage."""
        blocks = inputs // block_size
        name = f"{weight}.int{bits}" if floats == "fp32" else f"{weight}.int{bits}.{floats}"
        zero_points = StoredTensor(f"{name}.zero_points", "uint8", (outputs, -(-blocks // 2)))
        return cls(
            bits,
            block_size,
            StoredTensor(name, "uint8", (outputs, blocks, block_size * bits // 8)),
            StoredTensor(f"{name}.scales", HALVES.get(floats, "float32"), (outputs, blocks)),
            zero_points if bits == 4 else None,
        )

    def rows(self) -> StoredTensor:
        """The codes as GatherBlockQuantized takes them: uint8 [outputs, inputs / 2]."""
        outputs, blocks, half = self.codes.shape
        return self.codes.view(f"{self.codes.name}.rows", (outputs, blocks * half))


def block_size(config: ModelConfig) -> int:
    """The size of a model's blocks of codes: they must divide every matrix's inputs.

    Raises:
        ValueError: if no block size does.
    """
    widths = _input_widths(config)
    for size in BLOCK_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    raise ValueError(
        f"codes in blocks need widths that {BLOCK_SIZES[-1]} divides, and this model has widths of "
        f"{', '.join(str(width) for width in widths)}; export it for target cpu as int8, or as floats"
    )


def takes_blocks(config: ModelConfig) -> bool:
    """Whether a model's weights can be stored in blocks of codes."""
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


def half_weight(weight: str, shape: tuple[int, ...], storage: str = "fp16") -> StoredTensor:
    """A weight in floats of 16 bits.

    A layer's matrix [inputs, outputs] is stored as [outputs, inputs]: products with the transpose read
    each output's weights one after another, for which cuBLAS has its fastest kernels.

    Args:
        weight: its name.
        shape: of the model's weight.
        storage: of `HALVES`.
    """
    stored = shape[::-1] if is_layer_matrix(weight) else shape
    return StoredTensor(f"{weight}.{storage}", HALVES[storage], stored)


def head_factors(weight: str, width: int) -> StoredTensor:
    """What an int8 head's inputs are multiplied with, float32 [width]: its rows carry the inverse.

    A vector of its own, because the hidden states before it are an output of the graphs.
    """
    return StoredTensor(f"{weight}.factors", "float32", (width,))
