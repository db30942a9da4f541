"""A model that looks only at the token before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.decoder import StepOutput
from tests.runtime.fake_decoder import SequenceDecoder


class FixedDecoder(SequenceDecoder):
    """Says what a function of the fed tokens [n] gives, logits [n, vocabulary].

    Attributes:
        fed: shapes of the tokens of each append.
    """

    def __init__(self, logits_of: Any, vocabulary_size: int = 300) -> None:
        super().__init__(vocabulary_size)
        self.logits_of = logits_of
        self.fed: list[tuple[int, ...]] = []

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        found: np.ndarray = self.logits_of(np.array(tokens[-1:]))[0]
        return found

    def append(self, cache: Any, token_ids: Any, *arguments: Any, **options: Any) -> StepOutput:
        self.fed.append(token_ids.shape)
        return super().append(cache, token_ids, *arguments, **options)
