"""`OPTTokenizer` with Keras's interface, over the runtime's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.tokenizer import END_TOKEN, PAD_TOKEN, START_TOKEN, Tokenizer


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
        texts = [t.decode() if isinstance(t, bytes) else t for t in inputs]
        if all(isinstance(t, str) for t in texts):
            return texts, True
    raise ValueError(f"expected a string or a flat list of strings, got {inputs!r}")


class OPTTokenizer(Tokenizer):
    """An OPT tokenizer using byte-pair encoding, as `keras_hub.models.OPTTokenizer`.

    Where keras-hub since 0.29 takes a whole string as one word, this one splits by the GPT-2 pattern
    that OPT was trained with, so ids equal the Hugging Face tokenizer's.

    Args:
        vocabulary: a dictionary from token to id, or the path of a JSON file that holds one.
        merges: a list of merge rules, or the path of a file with one a line.
        sequence_length: if set, output is padded or cut to this length and is a dense array.

    Call arguments:
        a string, a list or array of strings. Returns int32 [tokens] for a string, a list of such
        lists for a batch, or int32 [batch, sequence_length] where that is set.

    Raises:
        ValueError: without a vocabulary or merges, or without `</s>` and `<pad>` in the vocabulary.

    Example:
        >>> vocabulary = {"<pad>": 1, "</s>": 2, "Ġquick": 4, "Ġfox": 5}
        >>> merges = ["Ġ q", "u i", "c k", "ui ck", "Ġq uick", "Ġ f", "o x", "Ġf ox"]
        >>> tokenizer = OPTTokenizer(vocabulary=vocabulary, merges=merges)
        >>> tokenizer("The quick fox jumped.").tolist()
        [4, 5]
        >>> tokenizer.detokenize([4, 5])
        ' quick fox'
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int] | str | Path | None = None,
        merges: Iterable[str] | str | Path | None = None,
        sequence_length: int | None = None,
    ) -> None:
        if vocabulary is None or merges is None:
            raise ValueError("OPTTokenizer needs both `vocabulary` and `merges`")
        super().__init__(vocabulary, merges)
        self.sequence_length = sequence_length
        self.start_token, self.end_token, self.pad_token = START_TOKEN, END_TOKEN, PAD_TOKEN

    @classmethod
    def from_preset(cls, preset: str, **kwargs: Any) -> OPTTokenizer:
        """The tokenizer of a preset: a built-in name or the path of a preset folder."""
        from exporter.presets.loading import load_tokenizer

        return load_tokenizer(cls, preset, **kwargs)

    def __call__(self, inputs: Any) -> Any:
        return self.tokenize(inputs)

    def tokenize(self, inputs: Any) -> Any:
        """The same as calling the tokenizer."""
        texts, batched = as_strings(inputs)
        rows: Any = self.encode_batch(texts)
        if self.sequence_length is not None:
            length = self.sequence_length
            dense = np.full((len(rows), length), self.pad_token_id, "int32")
            for row, ids in zip(dense, rows, strict=True):
                row[: len(ids)] = ids[:length]
            return dense if batched else dense[0]
        return rows if batched else np.array(rows[0], "int32")

    def detokenize(self, inputs: Any) -> Any:
        """Text of ids [tokens], or a list of texts of [batch, tokens]; special tokens are spelled."""
        if hasattr(inputs, "to_list"):  # tf.RaggedTensor
            inputs = inputs.to_list()
        elif hasattr(inputs, "numpy"):  # tf.Tensor
            inputs = inputs.numpy()
        rows = inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)
        if rows and isinstance(rows[0], (list, tuple, np.ndarray)):
            return [self.decode(map(int, row)) for row in rows]
        return self.decode(map(int, rows))

    def get_vocabulary(self) -> list[str]:
        """The token strings."""
        return list(self.vocabulary)

    @property
    def special_tokens(self) -> list[str]:
        """The special token strings, each once."""
        return [self.end_token, self.pad_token]

    def get_config(self) -> dict[str, Any]:
        """The configuration, without the vocabulary, which is saved beside it."""
        return {"sequence_length": self.sequence_length}
