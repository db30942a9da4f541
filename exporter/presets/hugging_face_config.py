"""`config.json` of Hugging Face's OPT models: its switches read into a `ModelConfig` and back.

Follows `transformers.OPTConfig` (https://huggingface.co/docs/transformers/model_doc/opt) and what
`modeling_opt.py` does with it: a final norm only where norms come first, projections only where the
embedding's width is not the hidden one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.errors import PresetError
from graphs.contract import ModelConfig

SIZES = {
    "vocab_size": "vocabulary_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "hidden_size": "hidden_dim",
    "ffn_dim": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
}
SWITCHES = {
    "do_layer_norm_before": "norm_first",
    "enable_bias": "use_bias",
    "layer_norm_elementwise_affine": "norm_affine",
    "tie_word_embeddings": "tied_head",
}
REMOVED_NORM = "_remove_final_layer_norm"
ACTIVATION_NAMES = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
_WRITTEN_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}


def read_hugging_face_config(config: Mapping[str, Any], origin: str) -> ModelConfig:
    """The model that a Hugging Face `config.json` describes.

    Args:
        config: its values; absent switches are transformers' defaults.
        origin: where it came from, for errors.

    Raises:
        PresetError: if it is no OPT model or has switches that are not supported, all of them named.
        KeyError: if a size is missing.
        ValueError: if a value is not valid.
    """
    if config.get("model_type") != "opt":
        raise PresetError(f"{origin} holds a {config.get('model_type')!r} model, not 'opt'")
    problems = []
    activation = config.get("activation_function", "relu")
    if activation not in tuple(ACTIVATION_NAMES):  # which a list can be compared with
        problems.append(
            f"activation_function={activation!r} (supported: {', '.join(ACTIVATION_NAMES)})"
        )
    if config.get("quantization_config") is not None:
        problems.append("quantization_config (supported: weights in float32, float16 or bfloat16)")
    for name in (*SWITCHES, REMOVED_NORM):
        if not isinstance(config.get(name, False), bool):
            problems.append(f"{name}={config[name]!r} (supported: true, false)")
    if problems:
        raise PresetError(f"{origin} has switches that are not supported: {'; '.join(problems)}")
    values = {ours: config[theirs] for theirs, ours in SIZES.items()}
    values |= {ours: config.get(theirs, True) for theirs, ours in SWITCHES.items()}
    removed = config.get(REMOVED_NORM, False)
    return ModelConfig(
        **values,
        activation=ACTIVATION_NAMES[activation],
        embedding_dim=config.get("word_embed_proj_dim"),
        final_norm=values["norm_first"] and not removed,
    )


def write_hugging_face_config(config: ModelConfig, dtype: str, dropout: float = 0.1) -> dict[str, Any]:
    """`config.json` of transformers' `OPTForCausalLM`, for weights stored in `dtype`.

    The ids of special tokens are left to who knows the tokenizer; transformers' defaults are OPT's.

    Raises:
        ValueError: if transformers has no such model (a final norm after post-norm layers).
    """
    if config.final_norm and not config.norm_first:
        raise ValueError(
            "transformers' OPT has no final norm where norms come after the residuals "
            "(norm_first=False, final_norm=True)"
        )
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        **{theirs: getattr(config, ours) for theirs, ours in (SIZES | SWITCHES).items()},
        "word_embed_proj_dim": config.embedding_width,
        "activation_function": _WRITTEN_ACTIVATIONS[config.activation],
        REMOVED_NORM: config.norm_first and not config.final_norm,
        "dropout": dropout,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "use_cache": True,
        "dtype": dtype,
    }
