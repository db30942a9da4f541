"""Beam search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphs.shown import shown
from runtime.engine.request import Request
from runtime.engine.search.beam import BeamSearch
from runtime.numbers import whole_number
from runtime.samplers.arguments import within_vocabulary
from runtime.samplers.sampler import Sampler


class BeamSampler(Sampler):
    """Follows the `num_beams` most probable continuations and gives the best of them.

    Beam search (Lowerre, 1976; for neural models Sutskever et al., 2014,
    https://arxiv.org/abs/1409.3215). A beam's score is the sum of its new tokens' log-probabilities;
    there is no length penalty. A beam that takes a stop token keeps its score and competes as it is.

    For a single prompt without stop tokens the beams are those of Keras's `BeamSampler`. Keras's
    scores on a ragged batch also hold prompt tokens of the longer rows, and its beams go on after
    stop tokens; here every row is what it would be alone.

    Args:
        num_beams: continuations to follow of each prompt.
        return_all_beams: whether `generate` gives all beams, best first, and their scores: for a
            string `(texts, scores float32 [num_beams])`, for a list `(lists of texts, scores [batch,
            num_beams])`, for a dictionary one with `token_ids` and `padding_mask` [batch, num_beams,
            length] and `scores` [batch, num_beams]. Where the options of a call allow fewer texts,
            those that are missing are empty and have the score minus infinity.
        temperature: divides the logits, for the scores too.

    Raises:
        ValueError: if num_beams is not a whole number of at least 1, or larger than the vocabulary.
    """

    def __init__(
        self, num_beams: int = 5, return_all_beams: bool = False, temperature: float = 1.0
    ) -> None:
        super().__init__(temperature=temperature)
        self.num_beams = whole_number("num_beams", num_beams)
        if not isinstance(return_all_beams, bool):
            raise ValueError(f"return_all_beams must be True or False, got {shown(return_all_beams)}")
        self.return_all_beams = return_all_beams

    def check_vocabulary(self, size: int) -> None:
        """Raises `ValueError` if there are more beams than first tokens."""
        within_vocabulary("num_beams", self.num_beams, size)

    @property
    def rows(self) -> int:
        """Rows of the cache that each prompt takes."""
        return self.num_beams

    def search(self, requests: Sequence[Request], vocabulary: int) -> BeamSearch:
        """A beam search over the requests of a call."""
        self.check_vocabulary(vocabulary)
        return BeamSearch(self.num_beams, self.temperature, self.return_all_beams)

    def get_config(self) -> dict[str, Any]:
        return {
            "num_beams": self.num_beams,
            "return_all_beams": self.return_all_beams,
            "temperature": self.temperature,
        }
