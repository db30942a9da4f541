"""The weight maps of the checkpoint formats: Keras presets and Hugging Face folders."""

from __future__ import annotations

from exporter.checkpoints.weight_map import Source, Target, WeightMap

_LAYER = "transformer_layer_{layer}"


def _dense(
    name: str, inputs: str, outputs: str, sources: tuple[tuple[Source, ...], tuple[Source, ...]]
) -> tuple[Target, Target]:
    kernel, bias = sources
    return (
        Target(f"{_LAYER}/{name}/kernel", (inputs, outputs), kernel),
        Target(f"{_LAYER}/{name}/bias", (outputs,), bias),
    )


def _norm(name: str, scale: Source, offset: Source) -> tuple[Target, Target]:
    return (
        Target(f"{name}/gamma", ("hidden",), (scale,)),
        Target(f"{name}/beta", ("hidden",), (offset,)),
    )


# === Keras presets (keras-hub's paths; keras-nlp's older spellings second) ===


def _keras(names: tuple[str, ...], index: int, *shape: str) -> Source:
    return Source(tuple(f"{name}/vars/{index}" for name in names), shape)


def _keras_decoder(*names: str) -> tuple[str, ...]:
    return tuple(f"transformer_decoder{{_layer}}/{name}" for name in names)


def _keras_projection(role: str) -> tuple[str, ...]:
    attention = "_self_attention_layer"
    return _keras_decoder(f"{attention}/{role}_dense", f"{attention}/_{role}_dense")


_KERAS_QKV = tuple(_keras_projection(role) for role in ("query", "key", "value"))
_KERAS_ATTENTION_NORM = _keras_decoder("_self_attention_layer_norm", "_self_attention_layernorm")
_KERAS_FEED_FORWARD_NORM = _keras_decoder("_feedforward_layer_norm", "_feedforward_layernorm")
_KERAS_EMBEDDING = "token_and_position_embedding"

KERAS_PRESET = WeightMap(
    prefixes=("layers/",),
    targets=(
        Target(
            "embeddings/token_embedding/embeddings",
            ("vocabulary", "hidden"),
            (_keras((f"{_KERAS_EMBEDDING}/token_embedding",), 0, "vocabulary", "hidden"),),
        ),
        Target(
            "embeddings/position_embedding/embeddings",
            ("positions", "hidden"),
            (_keras((f"{_KERAS_EMBEDDING}/position_embedding",), 0, "positions", "hidden"),),
        ),
        *_norm(
            "layer_norm",
            _keras(("layer_normalization",), 0, "hidden"),
            _keras(("layer_normalization",), 1, "hidden"),
        ),
    ),
    layer_targets=(
        *_norm(
            f"{_LAYER}/attention_norm",
            _keras(_KERAS_ATTENTION_NORM, 0, "hidden"),
            _keras(_KERAS_ATTENTION_NORM, 1, "hidden"),
        ),
        *_dense(
            "attention/qkv",
            "hidden",
            "3*hidden",
            (
                tuple(_keras(names, 0, "hidden", "heads", "head_dim") for names in _KERAS_QKV),
                tuple(_keras(names, 1, "heads", "head_dim") for names in _KERAS_QKV),
            ),
        ),
        *_dense(
            "attention/output",
            "hidden",
            "hidden",
            (
                (_keras(_keras_projection("output"), 0, "heads", "head_dim", "hidden"),),
                (_keras(_keras_projection("output"), 1, "hidden"),),
            ),
        ),
        *_norm(
            f"{_LAYER}/feed_forward_norm",
            _keras(_KERAS_FEED_FORWARD_NORM, 0, "hidden"),
            _keras(_KERAS_FEED_FORWARD_NORM, 1, "hidden"),
        ),
        *_dense(
            "intermediate",
            "hidden",
            "inner",
            (
                (_keras(_keras_decoder("_feedforward_intermediate_dense"), 0, "hidden", "inner"),),
                (_keras(_keras_decoder("_feedforward_intermediate_dense"), 1, "inner"),),
            ),
        ),
        *_dense(
            "output",
            "inner",
            "hidden",
            (
                (_keras(_keras_decoder("_feedforward_output_dense"), 0, "inner", "hidden"),),
                (_keras(_keras_decoder("_feedforward_output_dense"), 1, "hidden"),),
            ),
        ),
    ),
)

# === Hugging Face folders (transformers' OPTForCausalLM and OPTModel) ===


def _hf(name: str, *shape: str, transpose: bool = False, skip_rows: int = 0) -> Source:
    return Source((name,), shape, transpose, skip_rows)


def _hf_norm(target: str, name: str) -> tuple[Target, Target]:
    return _norm(target, _hf(f"{name}.weight", "hidden"), _hf(f"{name}.bias", "hidden"))


def _hf_dense(target: str, inputs: str, outputs: str, *names: str) -> tuple[Target, Target]:
    """A dense layer of linear layers with [out, in] weights, joined where there are several."""
    part = "hidden" if len(names) > 1 else outputs
    kernel = tuple(_hf(f"{n}.weight", part, inputs, transpose=True) for n in names)
    return _dense(target, inputs, outputs, (kernel, tuple(_hf(f"{n}.bias", part) for n in names)))


_HF_LAYER = "layers.{layer}"

HUGGING_FACE = WeightMap(
    prefixes=("model.decoder.", "decoder."),
    targets=(
        Target(
            "embeddings/token_embedding/embeddings",
            ("vocabulary", "hidden"),
            (_hf("embed_tokens.weight", "vocabulary", "hidden"),),
        ),
        Target(
            "embeddings/position_embedding/embeddings",
            ("positions", "hidden"),
            # The first two rows are for padding; position 0 is row 2.
            (_hf("embed_positions.weight", "positions+2", "hidden", skip_rows=2),),
        ),
        *_hf_norm("layer_norm", "final_layer_norm"),
    ),
    layer_targets=(
        *_hf_norm(f"{_LAYER}/attention_norm", f"{_HF_LAYER}.self_attn_layer_norm"),
        *_hf_dense(
            "attention/qkv",
            "hidden",
            "3*hidden",
            *(f"{_HF_LAYER}.self_attn.{role}_proj" for role in "qkv"),
        ),
        *_hf_dense("attention/output", "hidden", "hidden", f"{_HF_LAYER}.self_attn.out_proj"),
        *_hf_norm(f"{_LAYER}/feed_forward_norm", f"{_HF_LAYER}.final_layer_norm"),
        *_hf_dense("intermediate", "hidden", "inner", f"{_HF_LAYER}.fc1"),
        *_hf_dense("output", "inner", "hidden", f"{_HF_LAYER}.fc2"),
    ),
    unused=("lm_head.weight",),  # a copy of the token embedding, which OPT ties
)
