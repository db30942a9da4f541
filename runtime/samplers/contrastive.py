"""Contrastive search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.engine.request import Request
from runtime.engine.search.contrastive import ContrastiveSearch
from runtime.numbers import share, whole_number
from runtime.samplers.arguments import within_vocabulary
from runtime.samplers.sampler import Sampler


class ContrastiveSampler(Sampler):
    """Takes probable tokens whose hidden state is unlike those of the tokens before.

    Contrastive search of SimCTG (Su et al., 2022, https://arxiv.org/abs/2202.06417): among the k most
    probable tokens it takes the one with the largest `(1 - alpha) * probability - alpha * similarity`,
    where similarity is the largest cosine between its hidden state and that of any earlier token,
    the prompt's among them. A tie goes to the more probable token.

    Args:
        k: how many tokens to choose among.
        alpha: weight of the similarity, from 0 (greedy search) to 1.
        temperature: divides the logits, for the probabilities in the score.

    Raises:
        ValueError: if k is not a whole number of at least 1 or larger than the vocabulary, or alpha
            is not from 0 to 1.
    """

    def __init__(self, k: int = 5, alpha: float = 0.6, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)
        self.k = whole_number("k", k)
        self.alpha = share("alpha", alpha, zero=True)

    def check_vocabulary(self, size: int) -> None:
        """Raises `ValueError` if k is larger than the vocabulary."""
        within_vocabulary("k", self.k, size)

    @property
    def rows(self) -> int:
        """Rows of the cache that each prompt takes."""
        return self.k

    def search(self, requests: Sequence[Request], vocabulary: int) -> ContrastiveSearch:
        """A contrastive search over the requests of a call."""
        self.check_vocabulary(vocabulary)
        return ContrastiveSearch(self.k, self.alpha, self.temperature)

    def get_config(self) -> dict[str, Any]:
        return {"k": self.k, "alpha": self.alpha, "temperature": self.temperature}
