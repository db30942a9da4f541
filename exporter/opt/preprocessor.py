"""`OPTCausalLMPreprocessor`: strings to padded token ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.opt.tokenizer import OPTTokenizer, as_strings
from exporter.presets.folder import DEFAULT_SEQUENCE_LENGTH


class OPTCausalLMPreprocessor:
    """Prepares text for training and generation, as `keras_hub.models.OPTCausalLMPreprocessor`.

    Args:
        tokenizer: an `OPTTokenizer`.
        sequence_length: length that inputs are padded or cut to.
        add_start_token: whether to put the start token before each sequence.
        add_end_token: whether to put the end token after each sequence when training.

    Call arguments:
        x: a string, a list, an array or a `tf.Tensor` of strings; also inside `tf.data.Dataset.map`.
        y, sample_weight: not used, as in Keras: labels come from `x`.
        sequence_length: overrides the configured length for this call.

    Returns:
        `(x, y, sample_weight)`: `x` a dictionary of `token_ids` int32 and `padding_mask` bool
        [batch, sequence_length]; `y` int32, the ids shifted by one; `sample_weight` bool, true where
        `y` is text and not padding. A single string gives arrays without the batch axis.

    The text is tokenized, cut to leave room for the special tokens, and packed to
    `sequence_length + 1` ids, of which inputs are all but the last and labels all but the first.
    """

    def __init__(
        self,
        tokenizer: OPTTokenizer,
        sequence_length: int = DEFAULT_SEQUENCE_LENGTH,
        add_start_token: bool = True,
        add_end_token: bool = True,
    ) -> None:
        if not isinstance(sequence_length, int) or sequence_length < 1:
            raise ValueError(f"sequence_length must be a positive whole number: {sequence_length!r}")
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.add_start_token = add_start_token
        self.add_end_token = add_end_token

    @classmethod
    def from_preset(cls, preset: str, **kwargs: Any) -> OPTCausalLMPreprocessor:
        """The preprocessor of a preset; `**kwargs` override its configuration."""
        from exporter.presets.loading import load_preprocessor

        return load_preprocessor(cls, preset, **kwargs)

    def __call__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        sequence_length: int | None = None,
    ) -> tuple[dict[str, Any], Any, Any]:
        del y, sample_weight
        length = (sequence_length or self.sequence_length) + 1
        ids, mask = self._tokenize_and_pack(x, length, self.add_start_token, self.add_end_token)
        inputs = {"token_ids": ids[..., :-1], "padding_mask": mask[..., :-1]}
        return inputs, ids[..., 1:], mask[..., 1:]

    def generate_preprocess(self, x: Any, sequence_length: int | None = None) -> dict[str, Any]:
        """Token ids and padding mask of prompts: with a start token, never with an end token."""
        length = sequence_length or self.sequence_length
        ids, mask = self._tokenize_and_pack(x, length, add_start=True, add_end=False)
        return {"token_ids": ids, "padding_mask": mask}

    def generate_postprocess(self, x: dict[str, Any]) -> Any:
        """Text of generated ids: what the padding mask covers, without special tokens."""
        ids, mask = np.asarray(x["token_ids"]), np.asarray(x["padding_mask"]).astype(bool)
        texts = [
            self.tokenizer.decode(row[row_mask].tolist(), skip_special_tokens=True)
            for row, row_mask in zip(np.atleast_2d(ids), np.atleast_2d(mask), strict=True)
        ]
        return texts if ids.ndim == 2 else texts[0]

    def get_config(self) -> dict[str, Any]:
        """The configuration; the tokenizer is saved beside it."""
        return {
            "sequence_length": self.sequence_length,
            "add_start_token": self.add_start_token,
            "add_end_token": self.add_end_token,
        }

    def _tokenize_and_pack(
        self, x: Any, length: int, add_start: bool, add_end: bool
    ) -> tuple[Any, Any]:
        if tf.is_tensor(x) and not hasattr(x, "numpy"):  # inside tf.data or a tf.function
            ids, mask = tf.numpy_function(
                lambda texts: self._tokenize_and_pack(texts, length, add_start, add_end),
                [x],
                (tf.int32, tf.bool),
            )
            shape = [*x.shape, length]
            return tf.ensure_shape(ids, shape), tf.ensure_shape(mask, shape)
        texts, batched = as_strings(x)
        ids, mask = self._pack(self.tokenizer.encode_batch(texts), length, add_start, add_end)
        return (ids, mask) if batched else (ids[0], mask[0])

    def _pack(
        self, rows: Sequence[list[int]], length: int, add_start: bool, add_end: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        start = [self.tokenizer.start_token_id] if add_start else []
        end = [self.tokenizer.end_token_id] if add_end else []
        room = max(0, length - len(start) - len(end))
        ids = np.full((len(rows), length), self.tokenizer.pad_token_id, "int32")
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            packed = [*start, *row[:room], *end][:length]
            ids[i, : len(packed)] = packed
            mask[i, : len(packed)] = True
        return ids, mask
