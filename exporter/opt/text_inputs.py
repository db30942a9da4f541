"""What tokenizer and preprocessor accept as text and as tokens, brought to plain lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from graphs.shown import shown


def is_symbolic(inputs: Any) -> bool:
    """Whether this is a tensor without a value yet: inside `tf.data.Dataset.map` or `tf.function`."""
    return tf.is_tensor(inputs) and not tf.executing_eagerly()


def as_strings(inputs: Any) -> tuple[list[str], bool]:
    """Strings from a string, list, NumPy array or eager TensorFlow tensor; and if it was a batch.

    Raises:
        ValueError: if it is none of these, or more than one-dimensional.
    """
    if isinstance(inputs, bytes):
        return [inputs.decode()], False
    if isinstance(inputs, str):
        return [inputs], False
    if hasattr(inputs, "numpy"):  # an eager TensorFlow tensor
        inputs = inputs.numpy()
        if isinstance(inputs, bytes):
            return [inputs.decode()], False
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist()
        if isinstance(inputs, (str, bytes)):
            return as_strings(inputs)
    if isinstance(inputs, (list, tuple)):
        texts = [t.numpy() if tf.is_tensor(t) else t for t in inputs]
        texts = [t.decode() if isinstance(t, bytes) else t for t in texts]
        if all(isinstance(t, str) for t in texts):
            return texts, True
    raise ValueError(f"expected a string or a flat list of strings, got {shown(inputs)}")


def as_id_rows(inputs: Any) -> tuple[list[list[int]], bool]:
    """Rows of token ids from an id, a list, an array or a tensor, ragged too; and if it was a batch.

    Raises:
        ValueError: if it is none of these, or more than two-dimensional.
    """
    if isinstance(inputs, tf.RaggedTensor):
        inputs = inputs.to_list()
    elif hasattr(inputs, "numpy"):
        inputs = inputs.numpy()
    if isinstance(inputs, (int, np.integer)):
        inputs = [inputs]
    if isinstance(inputs, np.ndarray):
        inputs = np.atleast_1d(inputs)
    elif not isinstance(inputs, (list, tuple)):
        raise ValueError(f"expected token ids, got {shown(inputs)}")
    batched = len(inputs) > 0 and np.ndim(inputs[0]) > 0
    rows = inputs if batched else [inputs]
    try:
        return [[int(i) for i in row] for row in rows], batched
    except TypeError:
        raise ValueError(
            f"expected token ids [tokens] or [batch, tokens], got {shown(inputs)}"
        ) from None
