"""What `generate` accepts, brought to batches of one kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown

TOKEN_IDS = "token_ids"
PADDING_MASK = "padding_mask"


@dataclass(frozen=True)
class TextBatch:
    """Prompts as strings; `single` if one was given without a list around it."""

    texts: list[str]
    single: bool


@dataclass(frozen=True)
class TokenBatch:
    """Prompts as ids [batch, length] with a mask of what is given; `single` if one row alone."""

    token_ids: NDArray[np.int64]
    padding_mask: NDArray[np.bool_]
    single: bool

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Given tokens of each row."""
        lengths: NDArray[np.int64] = self.padding_mask.sum(axis=1)
        return lengths


Batch = TextBatch | TokenBatch


def is_stream_of_batches(inputs: Any) -> bool:
    """Whether the input is a dataset or another iterable of batches, not one batch itself."""
    if isinstance(inputs, (str, bytes, Mapping, list, tuple, np.ndarray)) or _is_tensor(inputs):
        return False
    return isinstance(inputs, Iterable)


def iterate_batches(inputs: Any) -> Iterator[Batch]:
    """The batches of a `tf.data.Dataset` or of an iterable; elements as `read_batch` takes them."""
    source = inputs.as_numpy_iterator() if hasattr(inputs, "as_numpy_iterator") else inputs
    for element in source:
        yield replace(read_batch(element), single=False)


def read_batch(inputs: Any) -> Batch:
    """One batch: a string, a list or array of strings, or a dictionary of ids and mask.

    Arrays may be NumPy's or eager tensors of TensorFlow or Keras.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(inputs, Mapping):
        return _read_tokens(inputs)
    value = _to_numpy(inputs)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (str, bytes)):
        return TextBatch([_to_text(value)], single=True)
    if isinstance(value, (list, tuple)) and value:
        texts = [_to_text(_to_numpy(item)) for item in value]
        return TextBatch(texts, single=False)
    raise ValueError(
        "generate() takes a string, a non-empty list of strings, a dictionary of 'token_ids' and "
        f"'padding_mask', or an iterable of these; got {shown(inputs)}"
    )


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "numpy") and hasattr(value, "shape")


def _to_numpy(value: Any) -> Any:
    return value.numpy() if _is_tensor(value) else value


def _to_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        try:
            value.isascii() or value.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"a prompt holds half a surrogate pair, which is no text: {shown(value)}"
            ) from None
        return str(value)
    raise ValueError(f"a prompt must be a string, got {shown(value)}")


def _read_tokens(inputs: Mapping[str, Any]) -> TokenBatch:
    missing = {TOKEN_IDS, PADDING_MASK} - set(inputs)
    if missing:
        raise ValueError(
            f"token input needs 'token_ids' and 'padding_mask'; {sorted(missing)} is missing"
        )
    token_ids = np.asarray(_to_numpy(inputs[TOKEN_IDS]))
    mask = np.asarray(_to_numpy(inputs[PADDING_MASK]))
    if token_ids.dtype.kind not in "iu":
        raise ValueError(f"token_ids must be whole numbers, got dtype {token_ids.dtype}")
    if mask.dtype.kind not in "iub" or not np.isin(mask, (0, 1)).all():
        raise ValueError("padding_mask must hold 0 and 1, or false and true, only")
    if token_ids.shape != mask.shape or token_ids.ndim not in (1, 2) or not token_ids.size:
        raise ValueError(
            "token_ids and padding_mask must have one shape, [length] or [batch, length]; "
            f"got {token_ids.shape} and {mask.shape}"
        )
    rows, row_mask = np.atleast_2d(token_ids).astype(np.int64), np.atleast_2d(mask).astype(bool)
    lengths = row_mask.sum(axis=1)
    if (row_mask != (np.arange(row_mask.shape[1]) < lengths[:, None])).any():
        raise ValueError("padding_mask must be true on the left and false on the right of each row")
    if not lengths.all():
        raise ValueError(
            f"row {int(np.argmin(lengths))} has no token: begin a prompt with the start token"
        )
    return TokenBatch(rows, row_mask, single=token_ids.ndim == 1)
