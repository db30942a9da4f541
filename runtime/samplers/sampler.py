"""The base of all samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import BestLogits
from runtime.engine.request import Request
from runtime.engine.search.sampling import SamplingSearch
from runtime.engine.search.search import Search
from runtime.numbers import positive_number, whole_number
from runtime.probabilities import softmax


class Sampler:
    """Chooses each row's next token; the base of all samplers, and of your own.

    Rows are independent: each has its own random generator, so what a row draws does not depend on
    the rows beside it. Keep to that in a sampler of your own: choose row by row, draw only from the
    row's generator, and remember nothing from one call to the next.

    A sampler of one's own overrides one method, and `get_config` where it has more parameters. From
    probabilities, as in Keras::

        class WithoutTokens(Sampler):
            \"\"\"Greedy search that never takes some tokens.\"\"\"

            def __init__(self, forbidden, **kwargs):
                super().__init__(**kwargs)
                self.forbidden = list(forbidden)

            def get_next_token(self, probabilities, generators):
                probabilities[:, self.forbidden] = 0
                return probabilities.argmax(axis=-1)

            def get_config(self):
                return {"forbidden": self.forbidden, **super().get_config()}

    Or from logits, where a whole softmax is more than the sampler needs::

        class MinPSampler(Sampler):
            \"\"\"Draws among tokens with a share of the best one's probability.

            Min-p sampling (Nguyen et al., 2024, https://arxiv.org/abs/2407.01082).
            \"\"\"

            def __init__(self, share=0.1, **kwargs):
                super().__init__(**kwargs)
                self.share = share

            def sample(self, logits, generators):
                weights = exponentials(logits, self.temperature)  # the best token's is 1
                return draw(np.where(weights < self.share, 0, weights), generators)

            def get_config(self):
                return {"share": self.share, **super().get_config()}

    Both go where the built-in ones go: `Generator.compile(sampler=MinPSampler(seed=1))`, and
    `compile` of the exporter's `OPTCausalLM`. `Sampler`, `softmax`, `exponentials` and `draw` are
    in `runtime.samplers`.

    Args:
        temperature: divides the logits; above 1 flattens the distribution, below 1 sharpens it.
        seed: of the random generators; `None` draws anew at each call.

    Raises:
        ValueError: if the temperature is not a positive number or the seed is negative.
    """

    def __init__(self, temperature: float = 1.0, seed: int | None = None) -> None:
        self.temperature = positive_number("temperature", temperature)
        self.seed = None if seed is None else whole_number("seed", seed, 0, none="")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Who overrides `sample` only does not mean what an inherited `sample_best` would choose.
        if _depth(cls, "sample") < _depth(cls, "sample_best"):
            cls.sample_best = Sampler.sample_best  # type: ignore[method-assign]

    @property
    def rows(self) -> int:
        """Rows of the cache that each prompt takes."""
        return 1

    def search(self, requests: Sequence[Request], vocabulary: int) -> Search:
        """How the tokens of a call's requests are chosen; see `runtime.engine.search`.

        Raises:
            ValueError: if the sampler does not fit the model; see `check_vocabulary`.
        """
        self.check_vocabulary(vocabulary)
        return SamplingSearch([self] * len(requests), requests, vocabulary)

    def check_vocabulary(self, size: int) -> None:
        """Raises `ValueError` where a parameter is more than a vocabulary of this size allows."""

    def sample(
        self, logits: NDArray[np.float32], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The next token of each row.

        Args:
            logits: float32 [rows, vocabulary]; may be changed.
            generators: one random generator a row.

        Returns:
            int64 [rows].
        """
        return self.get_next_token(softmax(logits, self.temperature), generators)

    def sample_best(
        self, best: BestLogits, generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64] | None:
        """What `sample` would give, from the best logits only; spares the host reading all of them.

        Where a subclass overrides `sample` alone, it has the one of this class.

        Args:
            best: of the rows; must not be changed.
            generators: one random generator a row, not used where the result is `None`.

        Returns:
            int64 [rows]; `None` if some row's choice depends on logits that are not among the best.
        """
        return None

    def get_next_token(
        self, probabilities: NDArray[np.floating[Any]], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The next token of each row.

        Args:
            probabilities: float32 [rows, vocabulary], at the sampler's temperature; may be changed.
            generators: one random generator a row.

        Returns:
            int64 [rows].
        """
        raise TypeError(f"{type(self).__name__} must override get_next_token or sample")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON values."""
        return {"temperature": self.temperature, "seed": self.seed}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The sampler whose `get_config` gave `config`."""
        return cls(**config)


def _depth(cls: type[Sampler], method: str) -> int:
    """How many classes back a method is defined."""
    return next(depth for depth, base in enumerate(cls.__mro__) if method in vars(base))
