"""The configuration files of Keras presets, in the form and under the names of keras-hub.

What keras-hub has no such thing of (the switches of `ModelConfig`, a tokenizer that is a
`tokenizer.json`) is saved under this project's own names, which keras-hub refuses.
"""

from __future__ import annotations

from typing import Any

from graphs.contract import ModelConfig

# Where each class lives in keras-hub and here.
_MODULES = {
    "OPTBackbone": ("opt_backbone", "backbone"),
    "OPTCausalLM": ("opt_causal_lm", "causal_lm"),
    "OPTCausalLMPreprocessor": ("opt_causal_lm_preprocessor", "preprocessor"),
    "OPTTokenizer": ("opt_tokenizer", "tokenizer"),
}


def serialized(class_name: str, config: dict[str, Any], *, in_keras_hub: bool = True) -> dict[str, Any]:
    """Keras's serialized form of an object.

    Args:
        class_name: of the OPT family.
        config: what its class makes it from.
        in_keras_hub: whether keras-hub's class of that name can; otherwise this project's.
    """
    theirs, ours = _MODULES[class_name]
    return {
        "module": f"keras_hub.src.models.opt.{theirs}" if in_keras_hub else f"exporter.opt.{ours}",
        "class_name": class_name,
        "config": config,
        "registered_name": f"{'keras_hub' if in_keras_hub else 'opt_onnx'}>{class_name}",
    }


def is_in_keras_hub(serialized_object: dict[str, Any]) -> bool:
    """Whether this is the serialized form of an object of keras-hub."""
    return str(serialized_object["registered_name"]).startswith("keras_hub>")


def dtype_policy(name: str) -> dict[str, Any]:
    """A serialized `keras.DTypePolicy`."""
    return {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": name},
        "registered_name": None,
    }


def backbone_config(
    config: ModelConfig,
    *,
    dtype: dict[str, Any],
    dropout: float = 0.1,
    name: str = "opt_backbone",
    trainable: bool = True,
) -> dict[str, Any]:
    """`config.json` of a preset.

    Args:
        config: the model's sizes and switches.
        dtype: the serialized policy of computations; weights are cast to it when loaded.
        dropout: dropout rate for training.
        name, trainable: of the Keras model.
    """
    values = {
        "name": name,
        "trainable": trainable,
        "dtype": dtype,
        "vocabulary_size": config.vocabulary_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "hidden_dim": config.hidden_dim,
        "intermediate_dim": config.intermediate_dim,
        "dropout": dropout,
        "max_sequence_length": config.max_sequence_length,
        **config.switches,
    }
    return serialized("OPTBackbone", values, in_keras_hub=not config.switches)
