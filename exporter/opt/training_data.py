"""Training data: strings or tokens in the forms Keras takes, to what `keras.Model` trains on."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.opt.keras_backend import keras
from exporter.opt.preprocessor import OPTCausalLMPreprocessor

DEFAULT_BATCH_SIZE = 32
SHUFFLE_BUFFER = 65_536
# Forms that come in batches with their own labels and weights.
BATCHED = (tf.data.Dataset, keras.utils.PyDataset, types.GeneratorType)


def dataset(
    preprocessor: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    shuffle: bool = False,
) -> Any:
    """Preprocessed batches, in a form that `keras.Model.fit` takes.

    Args:
        preprocessor: an `OPTCausalLMPreprocessor`, any callable on `x`, or `None`.
        x: strings or tokens: a list, array, tensor or dictionary of examples; or batches of them, or
            of `(x, y)` or `(x, y, sample_weight)`, by a `tf.data.Dataset`, a `keras.utils.PyDataset`
            or a generator.
        y, sample_weight: as `keras.Model.fit` takes them; see `preprocess`.
        batch_size: of examples; by default 32.
        shuffle: whether to shuffle examples.

    Raises:
        ValueError: if batches come with `y`, `sample_weight` or `batch_size` beside them, or the data
            are of no such form.
    """
    if isinstance(x, BATCHED):
        if y is not None or sample_weight is not None or batch_size is not None:
            raise ValueError(
                f"a {_form(x)} yields its own labels, weights and batches; "
                "leave out y, sample_weight and batch_size"
            )
        return _map_batches(preprocessor, x)
    if sample_weight is not None and y is None:
        if not isinstance(preprocessor, OPTCausalLMPreprocessor):
            raise ValueError("sample_weight weighs labels, and there are none; give y too")
        y = np.zeros(len(sample_weight), "int32")  # not looked at; Keras's tuples have no gaps
    parts = keras.utils.pack_x_y_sample_weight(*(_arrays(p) for p in (x, y, sample_weight)))
    data = tf.data.Dataset.from_tensor_slices(parts)
    if shuffle:
        data = data.shuffle(min(SHUFFLE_BUFFER, max(1, len(data))))
    return _map_batches(preprocessor, data.batch(batch_size or DEFAULT_BATCH_SIZE))


def preprocess(preprocessor: Any, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
    """One batch as `x`, `(x, y)` or `(x, y, sample_weight)`, eagerly or inside `tf.data`.

    An `OPTCausalLMPreprocessor` makes the labels of the text, so `y` is not looked at, as Keras
    documents. Keras drops `sample_weight` too; here it multiplies the weights of an example's tokens,
    [batch], or those of each label, [batch, sequence].

    Raises:
        ValueError: if there is a preprocessor and `x` is tokens, or `x` is strings and there is none.
    """
    if preprocessor is None:
        _check_tokens(x)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
    if not isinstance(preprocessor, OPTCausalLMPreprocessor):
        return keras.utils.pack_x_y_sample_weight(preprocessor(x), y, sample_weight)
    if isinstance(x, dict):
        raise ValueError(
            "this model has a preprocessor, which takes strings, and got a token dictionary; set "
            "`model.preprocessor = None` to train on tokens"
        )
    inputs, labels, mask = preprocessor(x, y=y)
    # Numbers all of them: Keras's sums over the devices of a MirroredStrategy take no bool.
    inputs["padding_mask"] = _cast(inputs["padding_mask"], "int32")
    return inputs, labels, _weigh(mask, sample_weight)


def split(parts: tuple[Any, ...], fraction: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Cuts the last `fraction` of the examples off for validation, before shuffling, as Keras does."""
    if not 0 < fraction < 1:
        raise ValueError(f"validation_split must be between 0 and 1, got {fraction}")
    if isinstance(parts[0], BATCHED):
        raise ValueError(
            f"validation_split needs arrays; split the {_form(parts[0])} and pass validation_data"
        )
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


def _map_batches(preprocessor: Any, batches: Any) -> Any:
    """Preprocesses each batch; a batch is `x` alone or a tuple."""

    def as_given(*batch: Any) -> Any:
        return preprocess(preprocessor, *batch)

    prepare = tf.autograph.experimental.do_not_convert(as_given)  # it would reword error messages

    if isinstance(batches, tf.data.Dataset):
        x = batches.element_spec
        x = x[0] if isinstance(x, tuple) else x
        if any(spec.shape.rank == 0 for spec in keras.tree.flatten(x)):
            raise ValueError("the dataset yields single examples; call its .batch(size) first")
        return batches.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    if isinstance(batches, keras.utils.PyDataset):
        return _PreprocessedPyDataset(batches, prepare)
    return _preprocessed(batches, prepare)


class _PreprocessedPyDataset(keras.utils.PyDataset):
    """A `keras.utils.PyDataset` whose batches are preprocessed as they are read."""

    def __init__(self, source: Any, prepare: Callable[..., Any]) -> None:
        super().__init__(source.workers, source.use_multiprocessing, source.max_queue_size)
        self._source = source
        self._prepare = prepare

    @property
    def num_batches(self) -> int | None:
        return self._source.num_batches

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        return _eager(self._prepare, self._source[index])

    def on_epoch_begin(self) -> None:
        self._source.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._source.on_epoch_end()


def _preprocessed(batches: Iterator[Any], prepare: Callable[..., Any]) -> Iterator[Any]:
    for batch in batches:
        yield _eager(prepare, batch)


def _eager(prepare: Callable[..., Any], batch: Any) -> tuple[Any, ...]:
    """A Python batch preprocessed; only a tuple is taken apart, since a list is a batch of strings."""
    result = prepare(*batch) if isinstance(batch, tuple) else prepare(batch)
    return result if isinstance(result, tuple) else (result,)


def _weigh(mask: Any, sample_weight: Any) -> Any:
    """Float32 weights [batch, sequence]: zero for padding, else the example's or label's own, or 1."""
    if sample_weight is None:
        return _cast(mask, "float32")
    if not tf.is_tensor(mask):
        sample_weight = np.asarray(sample_weight)
    rank = len(sample_weight.shape)
    if rank not in (1, 2):
        raise ValueError(
            f"sample_weight must have the shape [batch] or [batch, sequence], got rank {rank}"
        )
    weights = (tf.cast if tf.is_tensor(mask) else np.asarray)(sample_weight, "float32")
    return _cast(mask, "float32") * (weights[:, None] if rank == 1 else weights)


def _cast(values: Any, dtype: str) -> Any:
    """Values in another dtype, a tensor or an array as they are."""
    return tf.cast(values, dtype) if tf.is_tensor(values) else np.asarray(values, dtype)


def _check_tokens(x: Any) -> None:
    for values in x.values() if isinstance(x, dict) else [x]:
        dtype = values.dtype if hasattr(values, "dtype") else np.asarray(values).dtype
        if dtype == tf.string or (isinstance(dtype, np.dtype) and dtype.kind in "OSU"):
            raise ValueError(
                "strings need a preprocessor and this model has none; give a dictionary of token_ids "
                "and padding_mask, or set `model.preprocessor`"
            )


def _form(data: Any) -> str:
    return next(
        name
        for cls, name in zip(
            BATCHED, ("tf.data.Dataset", "keras.utils.PyDataset", "generator"), strict=True
        )
        if isinstance(data, cls)
    )


def _arrays(data: Any) -> Any:
    if isinstance(data, str):
        raise ValueError("expected a list of strings or an array, got one string; wrap it in a list")
    if isinstance(data, dict):
        return {name: _arrays(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        if not data:
            raise ValueError("expected examples, got an empty list")
        return np.asarray(data, dtype=object) if isinstance(data[0], str) else np.asarray(data)
    if data is not None and not hasattr(data, "__array__") and not tf.is_tensor(data):
        raise ValueError(
            f"expected a list, an array, a tensor or a dictionary of such, a tf.data.Dataset, a "
            f"keras.utils.PyDataset or a generator, got {type(data).__name__}"
        )
    return data
