"""The weight maps of the checkpoint formats: Keras presets and Hugging Face folders."""

from __future__ import annotations

from exporter.checkpoints.weight_map import Condition, Source, Target, WeightMap
from graphs.contract import ModelConfig

_LAYER = "transformer_layer_{layer}"
_TOKENS = "embeddings/token_embedding/embeddings"


# === Conditions: which models have a weight ===


def _has_biases(config: ModelConfig) -> bool:
    return config.use_bias


def _has_affine_norms(config: ModelConfig) -> bool:
    return config.norm_affine


def _has_affine_final_norm(config: ModelConfig) -> bool:
    return config.final_norm and config.norm_affine


def _has_projections(config: ModelConfig) -> bool:
    return config.embedding_dim is not None


def _has_own_head(config: ModelConfig) -> bool:
    return not config.tied_head


# === Groups of weights ===


def _dense(
    name: str, inputs: str, outputs: str, sources: tuple[tuple[Source, ...], tuple[Source, ...]]
) -> tuple[Target, Target]:
    kernel, bias = sources
    return (
        Target(f"{_LAYER}/{name}/kernel", (inputs, outputs), kernel),
        Target(f"{_LAYER}/{name}/bias", (outputs,), bias, _has_biases),
    )


def _norm(
    name: str, scale: Source, offset: Source, when: Condition = _has_affine_norms
) -> tuple[Target, Target]:
    return (
        Target(f"{name}/gamma", ("hidden",), (scale,), when),
        Target(f"{name}/beta", ("hidden",), (offset,), when),
    )


def _embeddings(tokens: Source, positions: Source) -> tuple[Target, Target]:
    return (
        Target(_TOKENS, ("vocabulary", "embedding"), (tokens,)),
        Target("embeddings/position_embedding/embeddings", ("positions", "hidden"), (positions,)),
    )


def _outer(project_in: Source, project_out: Source, head: Source) -> tuple[Target, Target, Target]:
    """The projections around the layers, and the head where it has a table of its own."""
    return (
        Target(
            "embeddings/project_in/kernel", ("embedding", "hidden"), (project_in,), _has_projections
        ),
        Target("project_out/kernel", ("hidden", "embedding"), (project_out,), _has_projections),
        Target("head/embeddings", ("vocabulary", "embedding"), (head,), _has_own_head),
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
        *_embeddings(
            _keras((f"{_KERAS_EMBEDDING}/token_embedding",), 0, "vocabulary", "embedding"),
            _keras((f"{_KERAS_EMBEDDING}/position_embedding",), 0, "positions", "hidden"),
        ),
        *_norm(
            "layer_norm",
            _keras(("layer_normalization",), 0, "hidden"),
            _keras(("layer_normalization",), 1, "hidden"),
            _has_affine_final_norm,
        ),
        # keras-hub has no such layers: these names are this project's own.
        *_outer(
            _keras((f"{_KERAS_EMBEDDING}/project_in",), 0, "embedding", "hidden"),
            _keras(("project_out",), 0, "hidden", "embedding"),
            _keras(("head",), 0, "vocabulary", "embedding"),
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


def _hf_norm(target: str, name: str, when: Condition = _has_affine_norms) -> tuple[Target, Target]:
    return _norm(target, _hf(f"{name}.weight", "hidden"), _hf(f"{name}.bias", "hidden"), when)


def _hf_dense(target: str, inputs: str, outputs: str, *names: str) -> tuple[Target, Target]:
    """A dense layer of linear layers with [out, in] weights, joined where there are several."""
    part = "hidden" if len(names) > 1 else outputs
    kernel = tuple(_hf(f"{n}.weight", part, inputs, transpose=True) for n in names)
    return _dense(target, inputs, outputs, (kernel, tuple(_hf(f"{n}.bias", part) for n in names)))


_HF_LAYER = "layers.{layer}"

HUGGING_FACE = WeightMap(
    prefixes=("model.decoder.", "decoder."),
    targets=(
        *_embeddings(
            _hf("embed_tokens.weight", "vocabulary", "embedding"),
            # The first two rows are for padding; position 0 is row 2.
            _hf("embed_positions.weight", "positions+2", "hidden", skip_rows=2),
        ),
        *_hf_norm("layer_norm", "final_layer_norm", _has_affine_final_norm),
        *_outer(
            _hf("project_in.weight", "hidden", "embedding", transpose=True),
            _hf("project_out.weight", "embedding", "hidden", transpose=True),
            Source(("lm_head.weight",), ("vocabulary", "embedding"), outside=True),
        ),
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
    copies=(("lm_head.weight", _TOKENS),),  # where the head is tied
    # torch's DataParallel, compile, FSDP and checkpointing; peft
    wrappers=(
        *("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."),
        *("base_model.model.",),
    ),
)
