"""The toy vocabulary of keras-hub's OPT tests, and the checks that its test helpers make."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np

from exporter import OPTBackbone, OPTCausalLM, OPTCausalLMPreprocessor, OPTTokenizer

# Toward " airplane", " at" and " airport".
_PAIRS = [("Ġ", letter) for letter in "atib"]
_PAIRS += [("a", "i"), ("p", "l"), ("n", "e"), ("Ġa", "t"), ("p", "o"), ("r", "t"), ("Ġt", "h")]
_PAIRS += [("ai", "r"), ("pl", "a"), ("po", "rt"), ("Ġai", "r"), ("Ġa", "i"), ("pla", "ne")]
MERGES = [" ".join(pair) for pair in _PAIRS]
SPECIAL = ("<pad>", "</s>")
TEXT = "airplane at airport"
SEQUENCE_LENGTH = 8


def vocabulary(special_last: bool = False) -> dict[str, int]:
    """Token to id, in the order of the token strings; the special tokens among them or behind them."""
    tokens = {token for pair in _PAIRS for token in (*pair, "".join(pair))}
    ordered = [*sorted(tokens), *SPECIAL] if special_last else sorted(tokens | set(SPECIAL))
    return {token: token_id for token_id, token in enumerate(ordered)}


def build_tokenizer(special_last: bool = False) -> OPTTokenizer:
    """The tokenizer of the toy vocabulary."""
    return OPTTokenizer(vocabulary=vocabulary(special_last), merges=MERGES)


def build_preprocessor(**options: Any) -> OPTCausalLMPreprocessor:
    """The preprocessor of `TEXT`, with room for eight tokens."""
    return OPTCausalLMPreprocessor(build_tokenizer(), sequence_length=SEQUENCE_LENGTH, **options)


def build_model(**options: Any) -> OPTCausalLM:
    """A random language model of two layers over the toy vocabulary."""
    preprocessor = build_preprocessor()
    backbone = OPTBackbone(
        vocabulary_size=preprocessor.tokenizer.vocabulary_size(),
        num_layers=2,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=8,
        max_sequence_length=SEQUENCE_LENGTH,
    )
    return OPTCausalLM(backbone=backbone, preprocessor=preprocessor, **options)


def as_json(config: Any) -> str:
    """A configuration as text; it has to be plain JSON values."""
    return json.dumps(config, sort_keys=True)


def check_configuration(instance: Any) -> None:
    """Configuration and serialization give the same object again, with the same attributes."""
    config = as_json(instance.get_config())
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(instance)))
    for again in (
        type(instance).from_config(instance.get_config()),
        keras.saving.deserialize_keras_object(serialized),
    ):
        assert type(again) is type(instance)
        assert as_json(again.get_config()) == config
        assert set(dir(again)) == set(dir(instance))


def difference(found: Any, expected: Any) -> float:
    """The maximum absolute difference of arrays of one shape."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found.astype("float64") - expected.astype("float64")).max())
