"""Training data: strings or tokens in the forms Keras takes, to a dataset of token batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from exporter.opt.keras_backend import keras
from exporter.opt.preprocessor import OPTCausalLMPreprocessor

DEFAULT_BATCH_SIZE = 32
SHUFFLE_BUFFER = 65_536


def dataset(
    preprocessor: OPTCausalLMPreprocessor | None,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    shuffle: bool = False,
) -> Any:
    """A `tf.data.Dataset` of preprocessed batches.

    Raises:
        ValueError: if a dataset comes with `y`, `sample_weight` or `batch_size` beside it.
    """
    if isinstance(x, tf.data.Dataset):
        if y is not None or sample_weight is not None or batch_size is not None:
            raise ValueError(
                "a tf.data.Dataset yields its own labels, weights and batches; "
                "leave out y, sample_weight and batch_size"
            )
        data = x
    else:
        parts = keras.utils.pack_x_y_sample_weight(*(_arrays(p) for p in (x, y, sample_weight)))
        data = tf.data.Dataset.from_tensor_slices(parts)
        if shuffle:
            data = data.shuffle(min(SHUFFLE_BUFFER, max(1, len(data))))
        data = data.batch(batch_size or DEFAULT_BATCH_SIZE)
    if preprocessor is not None:
        data = data.map(preprocessor, num_parallel_calls=tf.data.AUTOTUNE)
    return data.prefetch(tf.data.AUTOTUNE)


def batch(
    preprocessor: OPTCausalLMPreprocessor | None, x: Any, y: Any, sample_weight: Any
) -> tuple[Any, Any, Any]:
    """One batch, preprocessed."""
    if preprocessor is not None:
        return preprocessor(x, y, sample_weight)
    return x, y, sample_weight


def split(parts: tuple[Any, ...], fraction: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Cuts the last `fraction` of the examples off for validation, before shuffling, as Keras does."""
    if not 0 < fraction < 1:
        raise ValueError(f"validation_split must be between 0 and 1, got {fraction}")
    if isinstance(parts[0], tf.data.Dataset):
        raise ValueError("validation_split needs arrays; split the dataset and pass validation_data")
    arrays = [_arrays(part) for part in parts]
    count = len(keras.tree.flatten(arrays[0])[0])
    cut = int(count * (1 - fraction))
    if cut in (0, count):
        raise ValueError(f"validation_split={fraction} of {count} examples leaves one part empty")

    def cut_at(part: Any, rows: slice) -> Any:
        return None if part is None else keras.tree.map_structure(lambda a: a[rows], part)

    first = tuple(cut_at(part, slice(cut)) for part in arrays)
    second = tuple(cut_at(part, slice(cut, None)) for part in arrays)
    return first, second


def _arrays(data: Any) -> Any:
    if isinstance(data, str):
        raise ValueError("expected a list of strings or an array, got one string; wrap it in a list")
    if isinstance(data, dict):
        return {name: _arrays(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        if not data:
            raise ValueError("expected examples, got an empty list")
        return np.asarray(data, dtype=object) if isinstance(data[0], str) else np.asarray(data)
    return data
