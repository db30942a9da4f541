"""`OPTTokenizer` with Keras's interface, over the runtime's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow as tf

from exporter.opt.keras_backend import keras
from exporter.opt.text_inputs import as_id_rows, as_strings, is_symbolic
from exporter.presets.listing import PresetListing
from runtime.tokenization.pipeline import (
    MERGES_FILE,
    VOCABULARY_FILE,
    bpe_pipeline,
    read_files,
)
from runtime.tokenization.tokenizer import Tokenizer
from runtime.tokenization.tokenizer_json import TOKENIZER_FILE
from runtime.tokenization.vocabulary import parse_merges, parse_vocabulary, read_merges, read_vocabulary


@keras.saving.register_keras_serializable(package="opt_onnx")
class OPTTokenizer(Tokenizer):
    """An OPT tokenizer using byte-pair encoding, as `keras_hub.models.OPTTokenizer`.

    Where keras-hub since 0.29 takes a whole string as one word, this one splits by the GPT-2 pattern
    that OPT was trained with, so ids equal the Hugging Face tokenizer's. `from_preset` also makes the
    tokenizers of OPT models with another pipeline, such as Galactica. It is no Keras layer: it has no
    place inside a `keras.Sequential`, but maps over a `tf.data.Dataset`.

    Args:
        vocabulary: a dictionary from token to id, or the path of a JSON file that holds one. Without
            vocabulary and merges, `set_vocabulary_and_merges` has to be called before use.
        merges: a list of merge rules, or the path of a file with one a line.
        sequence_length: if set, output is padded or cut to this length and is a dense array.
        add_prefix_space: whether to put a space before text that begins without one, so that the first
            word has the same token as further on.
        unsplittable_tokens: tokens of the vocabulary that are found in text before it is split into
            words; by default the special tokens.
        dtype: an integer dtype, or `"string"` for token strings.
        name: a name for the configuration.

    Call arguments:
        a string, a list or array of strings, a `tf.Tensor`. Returns int32 [tokens] for a string, a list
        of such lists for a batch (inside `tf.data.Dataset.map` a `tf.RaggedTensor`), or int32
        [batch, sequence_length] where that is set.

    Raises:
        ValueError: with only one of vocabulary and merges, without `</s>` and `<pad>` in the
            vocabulary, or for a dtype that is neither.

    Example:
        >>> vocabulary = {"<pad>": 1, "</s>": 2, "Ġquick": 4, "Ġfox": 5}
        >>> merges = ["Ġ q", "u i", "c k", "ui ck", "Ġq uick", "Ġ f", "o x", "Ġf ox"]
        >>> tokenizer = OPTTokenizer(vocabulary=vocabulary, merges=merges)
        >>> tokenizer("The quick fox jumped.").tolist()
        [4, 5]
        >>> tokenizer.detokenize([4, 5])
        ' quick fox'
    """

    presets = PresetListing()

    def __init__(
        self,
        vocabulary: Mapping[str, int] | str | Path | None = None,
        merges: Iterable[str] | str | Path | None = None,
        *,
        sequence_length: int | None = None,
        add_prefix_space: bool = False,
        unsplittable_tokens: Iterable[str] | None = None,
        dtype: Any = "int32",
        name: str = "opt_tokenizer",
    ) -> None:
        self.sequence_length = sequence_length
        self.add_prefix_space = add_prefix_space
        self.dtype = _output_dtype(dtype)
        self.name = name
        self._unsplittable = None if unsplittable_tokens is None else list(unsplittable_tokens)
        self.set_vocabulary_and_merges(vocabulary, merges)

    @classmethod
    def from_preset(cls, preset: str | Path, **kwargs: Any) -> OPTTokenizer:
        """The tokenizer of a preset; `**kwargs` are the constructor's.

        Args:
            preset: a built-in name, a `kaggle://` or `hf://` handle, or the path of a folder, which
                needs no model.
            **kwargs: override the configuration.

        Raises:
            PresetError: if there is no such preset or it has no tokenizer.
            TypeError: for a keyword that `OPTTokenizer` does not take.
        """
        from exporter.presets.loading import load_tokenizer

        return load_tokenizer(cls, preset, **kwargs)

    def save_to_preset(self, preset_dir: str | Path) -> None:
        """Writes the tokenizer into a preset folder in keras-hub's format.

        A model in the folder stays. What keras-hub has no such thing of, a tokenizer that is a
        `tokenizer.json`, is saved for this project alone.

        Raises:
            ValueError: if the folder holds a model in another format.
        """
        from exporter.presets.saving import save_tokenizer

        save_tokenizer(self, preset_dir)

    def export_to_transformers(self, path: str | Path) -> None:
        """Writes the tokenizer into a folder that `transformers.AutoTokenizer` reads.

        A model in the folder stays.

        Raises:
            ValueError: if the folder holds a Keras preset, or merges pass through tokens that are not
                in the vocabulary, of which transformers makes no tokenizer.
        """
        from exporter.presets.transformers_writer import export_tokenizer

        export_tokenizer(self, path)

    @classmethod
    def from_files(cls, files: Mapping[str, str], **options: Any) -> Self:
        """The tokenizer of files, given as text by name; `options` are the constructor's."""
        tokenizer = cls(**options)
        tokenizer._set_files(files)
        return tokenizer

    def set_vocabulary_and_merges(
        self,
        vocabulary: Mapping[str, int] | str | Path | None,
        merges: Iterable[str] | str | Path | None,
    ) -> None:
        """Sets both, from data or from files, or takes both away with `None`."""
        if vocabulary is None and merges is None:
            self._set_pipeline(None)
        elif vocabulary is None or merges is None:
            raise ValueError("OPTTokenizer needs both `vocabulary` and `merges`, or neither")
        else:
            self._set_opt(read_vocabulary(vocabulary), read_merges(merges))

    def _set_opt(self, vocabulary: dict[str, int], merges: list[str]) -> None:
        options: dict[str, Any] = {"add_prefix_space": self.add_prefix_space}
        if self._unsplittable is not None:
            options["unsplittable"] = self._unsplittable
        self._set_pipeline(bpe_pipeline(vocabulary, merges, **options))

    def _set_files(self, files: Mapping[str, str]) -> None:
        if set(files) == {VOCABULARY_FILE, MERGES_FILE}:
            vocabulary = parse_vocabulary(files[VOCABULARY_FILE], f" in {VOCABULARY_FILE}")
            self._set_opt(vocabulary, parse_merges(files[MERGES_FILE]))
            return
        if self.add_prefix_space or self._unsplittable is not None:
            raise ValueError(
                f"add_prefix_space and unsplittable_tokens do not apply to this tokenizer: its "
                f"{TOKENIZER_FILE} says how text is split"
            )
        self._set_pipeline(read_files(files))

    # === Text to tokens ===

    def __call__(self, inputs: Any) -> Any:
        return self.tokenize(inputs)

    def tokenize(self, inputs: Any) -> Any:
        """The same as calling the tokenizer."""
        if is_symbolic(inputs):
            return self._tokenize_symbolic(inputs)
        texts, batched = as_strings(inputs)
        rows: Any = self._rows(texts)
        if self.dtype != "string" and (not batched or self.sequence_length is not None):
            return np.array(rows if batched else rows[0], self.dtype)
        return rows if batched else rows[0]

    def _rows(self, texts: list[str]) -> list[list[int]] | list[list[str]]:
        """Ids or token strings of each text, of `sequence_length` where that is set."""
        length = self.sequence_length
        rows = self.encode_batch(texts, enough=length)
        if length is not None:
            rows = [(row + [self.pad_token_id] * length)[:length] for row in rows]
        if self.dtype == "string":
            return [[self.id_to_token(i) for i in row] for row in rows]
        return rows

    def _tokenize_symbolic(self, inputs: Any) -> Any:
        if inputs.shape.rank not in (0, 1):
            raise ValueError(f"expected a string or strings [batch], got a tensor {inputs.shape}")

        def tokenize(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rows: Any = self._rows([text.decode() for text in texts])
            lengths = np.array([len(row) for row in rows], np.int64)
            if self.dtype == "string":
                rows = [[token.encode() for token in row] for row in rows]
            dtype = object if self.dtype == "string" else self.dtype
            return np.array([value for row in rows for value in row], dtype), lengths

        flat_inputs = tf.reshape(inputs, [-1])
        dtypes = (tf.as_dtype(self.dtype), tf.int64)
        flat, lengths = tf.numpy_function(tokenize, [flat_inputs], dtypes)
        if inputs.shape.rank == 0:
            return tf.ensure_shape(flat, [self.sequence_length])
        if self.sequence_length is not None:
            dense = tf.reshape(flat, [-1, self.sequence_length])
            return tf.ensure_shape(dense, [inputs.shape[0], self.sequence_length])
        flat, lengths = tf.ensure_shape(flat, [None]), tf.ensure_shape(lengths, inputs.shape)
        return tf.RaggedTensor.from_row_lengths(flat, lengths)

    # === Tokens to text ===

    def detokenize(self, inputs: Any) -> Any:
        """Text of ids [tokens], or a list of texts of [batch, tokens]; special tokens are spelled."""
        if is_symbolic(inputs):
            return self._detokenize_symbolic(inputs)
        rows, batched = as_id_rows(inputs)
        texts = [self.decode(row) for row in rows]
        return texts if batched else texts[0]

    def _detokenize_symbolic(self, inputs: Any) -> Any:
        if isinstance(inputs, tf.RaggedTensor):
            inputs = inputs.to_tensor(default_value=-1)  # no token, and so no text

        def detokenize(ids: np.ndarray) -> np.ndarray:
            texts = [self.decode(row).encode() for row in np.atleast_2d(ids)]
            return np.array(texts if ids.ndim == 2 else texts[0], object)

        texts = tf.numpy_function(detokenize, [inputs], tf.string)
        return tf.ensure_shape(texts, inputs.shape[:-1])

    # === Vocabulary ===

    def get_vocabulary(self) -> list[str]:
        """The token strings."""
        return list(self.vocabulary)

    @property
    def start_token(self) -> str | None:
        """The token before every text, `</s>` for OPT; `None` where texts begin with nothing."""
        return None if self.start_token_id is None else self.id_to_token(self.start_token_id)

    @property
    def end_token(self) -> str:
        """The token after every text."""
        return self.id_to_token(self.end_token_id)

    @property
    def pad_token(self) -> str:
        """The token that fills rows."""
        return self.id_to_token(self.pad_token_id)

    @property
    def special_tokens(self) -> list[str]:
        """The start, end and padding tokens, each once."""
        tokens = (self.start_token, self.end_token, self.pad_token)
        return list(dict.fromkeys(token for token in tokens if token is not None))

    @property
    def unsplittable_tokens(self) -> list[str]:
        """Tokens that are found in text before it is split into words."""
        return self.special_tokens if self._unsplittable is None else self._unsplittable

    # === Saving ===

    def assets(self) -> dict[str, str]:
        """The vocabulary and what else the configuration leaves out, as text by file name."""
        return self._pipeline.files() if self.is_own_file else self._pipeline.vocabulary_files()

    def save_assets(self, dir_path: str | Path) -> None:
        """Writes `assets` into a folder."""
        for name, text in self.assets().items():
            Path(dir_path, name).write_text(text, encoding="utf-8")

    def load_assets(self, dir_path: str | Path) -> None:
        """Reads what `save_assets` wrote."""
        self._set_files(Tokenizer.from_folder(dir_path).files())

    def get_config(self) -> dict[str, Any]:
        """The configuration, with the vocabulary in `assets` where there is one.

        Keras leaves the vocabulary to the layers' assets; here a configuration stands on its own.
        """
        config: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "sequence_length": self.sequence_length,
            "add_prefix_space": self.add_prefix_space,
            "unsplittable_tokens": self._unsplittable,
        }
        if self._loaded is not None:
            config["assets"] = self.assets()
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OPTTokenizer:
        """From `get_config`, or from the configuration of keras-hub's tokenizer.

        Raises:
            ValueError: if it names a file to read, which a saved model has no business to.
        """
        config = {name: value for name, value in config.items() if name not in _LAYER_OPTIONS}
        for name in ("vocabulary", "merges"):
            if isinstance(config.get(name), str):
                raise ValueError(
                    f"a configuration may not read files, and {name} is {config[name]!r}; "
                    "call set_vocabulary_and_merges() with it if you trust it"
                )
        files = config.pop("assets", None)
        return cls(**config) if files is None else cls.from_files(files, **config)


_LAYER_OPTIONS = ("trainable", "config_file")  # of Keras's layers, without meaning here


def _output_dtype(dtype: Any) -> str:
    """A dtype name from a name, a dtype or a serialized policy."""
    if isinstance(dtype, dict):
        dtype = keras.dtype_policies.deserialize(dtype)
    name = keras.backend.standardize_dtype(getattr(dtype, "compute_dtype", dtype))
    if name != "string" and "int" not in name:
        raise ValueError(f"Output dtype must be an integer type or a string. Received: dtype={dtype}")
    return name
