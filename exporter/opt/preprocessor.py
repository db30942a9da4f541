"""`OPTCausalLMPreprocessor`: strings to padded token ids and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.opt.keras_backend import keras
from exporter.opt.text_inputs import as_strings, is_symbolic
from exporter.opt.tokenizer import OPTTokenizer
from exporter.presets.folder import DEFAULT_SEQUENCE_LENGTH
from exporter.presets.listing import PresetListing


@keras.saving.register_keras_serializable(package="opt_onnx")
class OPTCausalLMPreprocessor:
    """Prepares text for training and generation, as `keras_hub.models.OPTCausalLMPreprocessor`.

    Args:
        tokenizer: an `OPTTokenizer`.
        sequence_length: length that inputs are padded or cut to.
        add_start_token: whether to put the start token before each sequence, if there is one.
        add_end_token: whether to put the end token after each sequence when training.
        name: a name for the configuration.

    Call arguments:
        x: a string, a list, an array or a `tf.Tensor` of strings; also inside `tf.data.Dataset.map`.
        y, sample_weight: not used, as in Keras: labels come from `x`.
        sequence_length, add_start_token, add_end_token: override the configured value for this call.
        return_labels: `False` to get the inputs alone.

    Returns:
        `(x, y, sample_weight)`: `x` a dictionary of `token_ids` int32 and `padding_mask` bool
        [batch, sequence_length]; `y` int32, the ids shifted by one; `sample_weight` bool, true where
        `y` is text and not padding. A single string gives arrays without the batch axis.

    The text is tokenized, cut to leave room for the special tokens, and packed to
    `sequence_length + 1` ids, of which inputs are all but the last and labels all but the first.
    keras-hub documents `add_start_token`, `add_end_token` and `return_labels` of a call and has none
    of them; here they work.
    """

    presets = PresetListing()
    tokenizer_cls = OPTTokenizer

    def __init__(
        self,
        tokenizer: OPTTokenizer,
        sequence_length: int = DEFAULT_SEQUENCE_LENGTH,
        add_start_token: bool = True,
        add_end_token: bool = True,
        *,
        name: str = "opt_causal_lm_preprocessor",
    ) -> None:
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.add_start_token = add_start_token
        self.add_end_token = add_end_token
        self.name = name

    @classmethod
    def from_preset(cls, preset: str | Path, **kwargs: Any) -> OPTCausalLMPreprocessor:
        """The preprocessor of a preset.

        Args:
            preset: a built-in name, a `kaggle://` or `hf://` handle, or the path of a folder, which
                needs no model.
            **kwargs: override the configuration, `sequence_length=256` say.

        Raises:
            PresetError: if there is no such preset or it has no tokenizer.
            TypeError: for a keyword that `OPTCausalLMPreprocessor` does not take.
        """
        from exporter.presets.loading import load_preprocessor

        return load_preprocessor(cls, preset, **kwargs)

    def save_to_preset(self, preset_dir: str | Path) -> None:
        """Writes tokenizer and preprocessor into a preset folder in keras-hub's format.

        A model in the folder stays. What keras-hub has no such thing of, a tokenizer that is a
        `tokenizer.json`, is saved for this project alone.

        Raises:
            ValueError: if the folder holds a model in another format.
        """
        from exporter.presets.saving import save_preprocessor

        save_preprocessor(self, preset_dir)

    def export_to_transformers(self, path: str | Path) -> None:
        """Writes the tokenizer into a folder that `transformers.AutoTokenizer` reads.

        A model in the folder stays.

        Raises:
            ValueError: if the folder holds a Keras preset, or merges pass through tokens that are not
                in the vocabulary, of which transformers makes no tokenizer.
        """
        from exporter.presets.transformers_writer import export_tokenizer

        export_tokenizer(self.tokenizer, path)

    @property
    def tokenizer(self) -> OPTTokenizer:
        """The tokenizer."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, value: OPTTokenizer) -> None:
        if not isinstance(value, OPTTokenizer):
            raise ValueError(
                f"tokenizer must be an OPTTokenizer, got {value!r}; make one with "
                "OPTTokenizer(vocabulary, merges) or OPTTokenizer.from_preset(preset)"
            )
        self._tokenizer = value

    @property
    def sequence_length(self) -> int:
        """The padded length of model inputs."""
        return self._sequence_length

    @sequence_length.setter
    def sequence_length(self, value: int) -> None:
        self._sequence_length = _checked_length(value)

    def __call__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        sequence_length: int | None = None,
        add_start_token: bool | None = None,
        add_end_token: bool | None = None,
        return_labels: bool = True,
    ) -> Any:
        del y, sample_weight
        start = self.add_start_token if add_start_token is None else add_start_token
        end = self.add_end_token if add_end_token is None else add_end_token
        # One more than the inputs have, for the last label.
        ids, mask = self._tokenize_and_pack(x, self._length(sequence_length) + 1, start, end)
        inputs = {"token_ids": ids[..., :-1], "padding_mask": mask[..., :-1]}
        return (inputs, ids[..., 1:], mask[..., 1:]) if return_labels else inputs

    def generate_preprocess(self, x: Any, sequence_length: int | None = None) -> dict[str, Any]:
        """Token ids and padding mask of prompts: with a start token, never with an end token.

        Raises:
            ValueError: if a prompt is empty and the tokenizer has no start token.
        """
        length = self._length(sequence_length)
        ids, mask = self._tokenize_and_pack(x, length, add_start=True, add_end=False, prompts=True)
        return {"token_ids": ids, "padding_mask": mask}

    def generate_postprocess(self, x: Mapping[str, Any]) -> Any:
        """Text of generated ids: what the padding mask covers, without special tokens.

        Takes `token_ids` and `padding_mask` [length] or [batch, length]; gives a string or a list,
        inside `tf.data.Dataset.map` a string tensor.
        """
        ids, mask = x["token_ids"], x["padding_mask"]
        if is_symbolic(ids):

            def decode(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
                texts = [text.encode() for text in self._decode(ids, mask)]
                return np.array(texts if ids.ndim == 2 else texts[0], object)

            return tf.ensure_shape(tf.numpy_function(decode, [ids, mask], tf.string), ids.shape[:-1])
        texts = self._decode(np.asarray(ids), np.asarray(mask))
        return texts if np.ndim(ids) == 2 else texts[0]

    def _decode(self, ids: np.ndarray, mask: np.ndarray) -> list[str]:
        rows = zip(np.atleast_2d(ids), np.atleast_2d(mask).astype(bool), strict=True)
        return [
            self.tokenizer.decode(row[kept].tolist(), skip_special_tokens=True) for row, kept in rows
        ]

    def get_config(self) -> dict[str, Any]:
        """The configuration, with the tokenizer's."""
        return {
            "name": self.name,
            "tokenizer": keras.saving.serialize_keras_object(self.tokenizer),
            "sequence_length": self.sequence_length,
            "add_start_token": self.add_start_token,
            "add_end_token": self.add_end_token,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OPTCausalLMPreprocessor:
        """From `get_config`."""
        tokenizer = config["tokenizer"]
        if isinstance(tokenizer, dict):
            tokenizer = keras.saving.deserialize_keras_object(tokenizer)
        return cls(**{**config, "tokenizer": tokenizer})

    def _length(self, override: int | None) -> int:
        return self.sequence_length if override is None else _checked_length(override)

    def _tokenize_and_pack(
        self, x: Any, length: int, add_start: bool, add_end: bool, prompts: bool = False
    ) -> tuple[Any, Any]:
        if is_symbolic(x):
            ids, mask = tf.numpy_function(
                lambda texts: self._tokenize_and_pack(texts, length, add_start, add_end, prompts),
                [x],
                (tf.int32, tf.bool),
            )
            shape = [*x.shape, length]
            return tf.ensure_shape(ids, shape), tf.ensure_shape(mask, shape)
        texts, batched = as_strings(x)
        rows = self.tokenizer.encode_batch(texts, enough=length)
        if prompts and self.tokenizer.start_token_id is None and not all(rows):
            raise ValueError(
                f"prompt {rows.index([])} has no token, and this tokenizer has no start token to "
                "generate from: give it text"
            )
        ids, mask = self._pack(rows, length, add_start, add_end)
        return (ids, mask) if batched else (ids[0], mask[0])

    def _pack(
        self, rows: Sequence[list[int]], length: int, add_start: bool, add_end: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        first = self.tokenizer.start_token_id
        start = [first] if add_start and first is not None else []
        end = [self.tokenizer.end_token_id] if add_end else []
        room = max(0, length - len(start) - len(end))
        ids = np.full((len(rows), length), self.tokenizer.pad_token_id, "int32")
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            packed = [*start, *row[:room], *end][:length]
            ids[i, : len(packed)] = packed
            mask[i, : len(packed)] = True
        return ids, mask


def _checked_length(length: Any) -> int:
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"sequence_length must be a positive whole number: {length!r}")
    return length
