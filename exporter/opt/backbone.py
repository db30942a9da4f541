"""The OPT backbone: embeddings, decoder layers, final norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.opt import lora, lora_file
from exporter.opt.keras_backend import keras
from exporter.opt.layers import (
    CausalBias,
    OPTDecoderLayer,
    OPTEmbedding,
    build_dense,
    build_layer_norm,
    build_token_table,
)
from exporter.opt.lora import DEFAULT_TARGETS, LoRA
from exporter.presets.listing import PresetListing
from graphs.contract import ModelConfig
from graphs.shown import listed

LAYER_NORM_EPSILON = 1e-5


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """Sizes and switches as arguments of `OPTBackbone`, for which the norms' epsilon is fixed."""
    values = config.to_dict()
    del values["layer_norm_epsilon"]
    return values


def build_decoder_layer(config: ModelConfig, name: str, dropout: float, dtype: Any) -> OPTDecoderLayer:
    """One decoder layer of a model of the given sizes and switches."""
    return OPTDecoderLayer(
        config.num_heads,
        config.intermediate_dim,
        dropout,
        config.layer_norm_epsilon,
        config.activation,
        config.norm_first,
        config.use_bias,
        config.norm_affine,
        dtype=dtype,
        name=name,
    )


@keras.saving.register_keras_serializable(package="opt_onnx")
class OPTBackbone(keras.Model):
    """An OPT decoder network.

    Follows `keras_hub.models.OPTBackbone` and "OPT: Open Pre-trained Transformer Language Models"
    (https://arxiv.org/abs/2205.01068).

    Args:
        vocabulary_size: int. The size of the token vocabulary.
        num_layers: int. The number of transformer decoder layers.
        num_heads: int. The number of attention heads for each transformer.
            The hidden size must be divisible by the number of attention heads.
        hidden_dim: int. The hidden size of the transformer decoder layers.
        intermediate_dim: int. The output dimension of the first dense layer in
            a two-layer feedforward network for each transformer decoder layer.
        dropout: float. Dropout probability for the transformer decoder.
        max_sequence_length: int. The maximum sequence length that this decoder
            can consume; the number of rows of the position embedding.
        embedding_dim: int. The width of the token embedding where it is not `hidden_dim`, as in
            opt-350m; then projections without bias stand around the layers.
        activation: string. Of the feed-forward layer: "relu", "gelu", "gelu_tanh" or "silu".
        norm_first: bool. Whether norms stand before their branches, or after the residuals.
        final_norm: bool. Whether a norm follows the last layer.
        use_bias: bool. Whether the dense layers have biases.
        norm_affine: bool. Whether the norms have scales and offsets.
        tied_head: bool. Whether the token embedding also gives the logits.
        trainable: bool. Whether the weights are trained.
        dtype: string or `keras.DTypePolicy`. The dtype of computations and weights. The softmax and
            the statistics of layer normalization are always computed in float32.

    Call arguments:
        a dictionary of `token_ids`, int32 [batch, sequence], and `padding_mask`, int or bool
        [batch, sequence]. Returns the hidden states after the final norm [batch, sequence, hidden]
        (of the embedding's width where that is another one).

    Raises:
        ValueError: if a size is not a positive whole number or the heads do not divide the width.

    Example:
        >>> import numpy as np
        >>> model = OPTBackbone(
        ...     vocabulary_size=100, num_layers=2, num_heads=2, hidden_dim=8,
        ...     intermediate_dim=16, max_sequence_length=12,
        ... )
        >>> ones = np.ones((1, 12), dtype="int32")
        >>> model({"token_ids": ones, "padding_mask": ones}).shape
        TensorShape([1, 12, 8])
    """

    presets = PresetListing()

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        dropout: float = 0.1,
        max_sequence_length: int = 2048,
        dtype: Any = None,
        *,
        embedding_dim: int | None = None,
        activation: str = "relu",
        norm_first: bool = True,
        final_norm: bool = True,
        use_bias: bool = True,
        norm_affine: bool = True,
        tied_head: bool = True,
        trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        surplus = sorted(set(kwargs) - {"name"})
        if surplus:
            raise TypeError(f"OPTBackbone has no arguments {listed(surplus)}")
        config = ModelConfig(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim,
            max_sequence_length=max_sequence_length,
            layer_norm_epsilon=LAYER_NORM_EPSILON,
            embedding_dim=embedding_dim,
            activation=activation,
            norm_first=norm_first,
            final_norm=final_norm,
            use_bias=use_bias,
            norm_affine=norm_affine,
            tied_head=tied_head,
        )

        # === Layers ===
        embeddings = OPTEmbedding(
            vocabulary_size,
            max_sequence_length,
            hidden_dim,
            config.embedding_dim,
            dtype=dtype,
            name="embeddings",
        )
        causal_bias = CausalBias(dtype="float32", name="causal_bias")
        transformer_layers = [
            build_decoder_layer(config, f"transformer_layer_{i}", dropout, dtype)
            for i in range(num_layers)
        ]
        layer_norm, project_out, head = None, None, embeddings.token_embedding
        if final_norm:
            layer_norm = build_layer_norm("layer_norm", LAYER_NORM_EPSILON, norm_affine, dtype)
        if config.embedding_dim is not None:
            project_out = build_dense("project_out", config.embedding_dim, False, dtype)
        if not tied_head:
            head = build_token_table("head", vocabulary_size, config.embedding_width, dtype)
            head.build((None, None))

        # === Functional Model ===
        token_ids = keras.Input(shape=(None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input(shape=(None,), dtype="int32", name="padding_mask")
        bias = causal_bias(padding_mask)
        x = embeddings(token_ids)
        for layer in transformer_layers:
            x = layer(x, bias)
        for last_layer in (layer_norm, project_out):
            x = x if last_layer is None else last_layer(x)
        super().__init__(
            inputs={"token_ids": token_ids, "padding_mask": padding_mask},
            outputs=x,
            **kwargs,
        )
        self.dtype_policy = keras.dtype_policies.get(dtype)
        self.embeddings = embeddings
        self.token_embedding = embeddings.token_embedding
        self.transformer_layers = transformer_layers
        self.layer_norm = layer_norm
        self.project_out = project_out
        self.head = head
        self.lora: LoRA | None = None  # set by enable_lora()
        # Hugging Face's position table begins with two rows that no text takes; an array [2, hidden]
        # of those that the weights came with, for them to go back unchanged.
        self.padding_positions: np.ndarray | None = None

        # === Config ===
        self.model_config = config
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.max_sequence_length = max_sequence_length
        if not trainable:  # Keras's own argument leaves the layers within as they are
            self.trainable = False

    def finish(self, x: Any) -> Any:
        """What follows the last layer: [..., hidden] to the states that `logits` takes."""
        for layer in (self.layer_norm, self.project_out):
            x = x if layer is None else layer(x)
        return x

    def logits(self, hidden_states: Any) -> Any:
        """Logits [..., vocabulary] of the backbone's output [..., embedding]."""
        return self.head(hidden_states, reverse=True)

    def default_lora_layer_names(self) -> list[str]:
        """What `enable_lora` adapts by default: the query and value projections."""
        return list(DEFAULT_TARGETS)

    def enable_lora(
        self,
        rank: int,
        target_layer_names: Sequence[str] | None = None,
        alpha: float | None = None,
    ) -> None:
        """Freezes the backbone and adds trainable low-rank pairs to some of its projections.

        Follows `keras_hub.models.Backbone.enable_lora` and "LoRA: Low-Rank Adaptation of Large
        Language Models" (https://arxiv.org/abs/2106.09685). Unlike Keras's, it freezes the biases of
        the adapted projections too. Compile the model again afterwards. Exports and saved presets
        have the pairs merged into their matrices.

        Args:
            rank: of the pairs, at least 1.
            target_layer_names: some of `query`, `key`, `value`, `attention_output`,
                `feedforward_intermediate_dense` and `feedforward_output_dense`; `query` and `value`
                by default.
            alpha: a pair's product is scaled by `alpha / rank`; by default by 1.

        Raises:
            ValueError: if a value is not allowed or LoRA is enabled already.
        """
        wanted = LoRA.of(rank, alpha, target_layer_names)
        if self.lora is not None:
            raise ValueError(
                f"LoRA is already enabled ({self.lora}); build the model anew for other settings"
            )
        lora.enable(self, wanted)
        self.lora = wanted

    def save_lora_weights(self, filepath: str | Path) -> None:
        """Writes the adapter alone: settings and low-rank pairs, to a file that ends in `.lora.h5`.

        Raises:
            ValueError: if LoRA is not enabled or the file is named otherwise.
        """
        path = lora_file.check_name(filepath)
        if self.lora is None:
            raise ValueError("this model has no LoRA weights to save; call enable_lora(rank) first")
        lora_file.write(path, self.lora, lora.low_rank_variables(self))

    def load_lora_weights(self, filepath: str | Path) -> None:
        """Reads an adapter that `save_lora_weights` wrote; enables LoRA with its settings if need be.

        Raises:
            ValueError: if the file is no adapter or does not fit the model, which then stays as it
                was; everything that differs is named.
        """
        path = lora_file.check_name(filepath)
        found, values = lora_file.read(path)
        lora_file.check_fit(path, found, self.lora, values, lora.pair_shapes(self, found))
        if self.lora is None:
            self.enable_lora(found.rank, found.targets, found.alpha)
        for name, variable in lora.low_rank_variables(self).items():
            variable.assign(values[name])

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "dropout": self.dropout,
            **_sizes(self.model_config),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> OPTBackbone:
        return cls(**config)

    @classmethod
    def from_sizes(cls, config: ModelConfig, **kwargs: Any) -> OPTBackbone:
        """A backbone of the sizes that a bundle or preset table holds; `**kwargs` come on top."""
        return cls(**{**_sizes(config), **kwargs})

    @classmethod
    def from_preset(cls, preset: str | Path, load_weights: bool = True, **kwargs: Any) -> OPTBackbone:
        """Builds the backbone of a preset.

        Args:
            preset: a built-in preset name, a `kaggle://` or `hf://` handle, or the path of a folder.
            load_weights: if `False`, the weights stay randomly initialized.
            **kwargs: override values of the preset's configuration, `dropout=0` say. Without a `dtype`
                it is Keras's policy, whatever the preset was saved in. Sizes are those of the weights;
                with a smaller `num_layers` the last layers are left off.

        Raises:
            PresetError: if there is no such preset or it has no OPT model.
            ValueError: for a size that the weights do not have.
            TypeError: for a keyword that `OPTBackbone` does not take.
        """
        from exporter.presets.loading import load_backbone

        return load_backbone(cls, preset, load_weights=load_weights, **kwargs)

    def save_to_preset(self, preset_dir: str | Path, max_shard_size: float | None = 10) -> None:
        """Writes a preset folder in keras-hub's format: configuration and weights.

        Args:
            preset_dir: created where it does not exist; a tokenizer in it stays.
            max_shard_size: most GB (2**30 bytes) of one weights file; larger models are saved in
                several. `None` for a single file.

        Raises:
            ValueError: if the folder holds a model in another format.
        """
        from exporter.presets.saving import save_backbone

        save_backbone(self, preset_dir, max_shard_size)

    def export_to_transformers(self, path: str | Path, max_shard_size: float | None = 10) -> None:
        """Writes a folder that transformers reads as `OPTForCausalLM` or `OPTModel`.

        Args:
            path: created where it does not exist; a tokenizer in it stays.
            max_shard_size: as of `save_to_preset`.

        Raises:
            ValueError: if the folder holds a Keras preset or transformers has no such model.
        """
        from exporter.presets.transformers_writer import export_model

        export_model(self, None, path, max_shard_size)
