"""Numbers added to the logits of tokens that complete a sequence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown
from runtime.engine.processors.arguments import check_bias, check_token_ids
from runtime.engine.processors.completions import Completions
from runtime.engine.processors.processor import Processor, TokenIds

_NAME = "sequence_bias"


class SequenceBias(Processor):
    """Adds a sequence's bias to its last token's logit where the tokens before it are the others.

    Follows transformers' `SequenceBiasLogitsProcessor`. A sequence of one token always counts; the
    biases of several sequences that one token completes are added up, in float32.

    Args:
        sequence_bias: `{(id, …): bias, …}`, or `[[[id, …], bias], …]`, of which the last one of a
            sequence counts; at least one.
        vocabulary: tokens of the model.

    Raises:
        ValueError: if the sequences are not of token ids, or the biases not numbers that float32 holds.
    """

    def __init__(self, sequence_bias: object, vocabulary: int) -> None:
        biases = _read(sequence_bias, vocabulary)
        self._single = {ids[0]: bias for ids, bias in biases.items() if len(ids) == 1}
        self._ids = np.array([*self._single], np.int64)
        self._biases = np.array([*self._single.values()], np.float32)
        self._longer = Completions({ids: bias for ids, bias in biases.items() if len(ids) > 1})

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Adds the biases of the sequences that a next token completes."""
        sums: dict[int, np.float32] = {}
        for token, bias in self._longer.after(token_ids):
            sums[token] = sums.get(token, self._single.get(token, np.float32(0))) + bias
        changed = {token: logits[token] + total for token, total in sums.items()}
        if len(self._ids):
            logits[self._ids] += self._biases
        for token, logit in changed.items():
            logits[token] = logit


def _read(value: object, vocabulary: int) -> dict[tuple[int, ...], np.float32]:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (list, tuple)) or not pairs:
        raise ValueError(
            f"{_NAME} must be a list of at least one pair of token ids and a number, got {shown(value)}"
        )
    biases = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(
                f"{_NAME} must be a list of pairs of token ids and a number, got one with {shown(pair)}"
            )
        ids = check_token_ids(f"each sequence of {_NAME}", pair[0], vocabulary, empty=False)
        biases[ids] = check_bias(f"each number of {_NAME}", pair[1])
    return biases
