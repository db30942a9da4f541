"""Decoders over the lower-case alphabet, for the sampler cases of keras-hub's tests.

keras-hub calls a sampler with a function from step to logits, a prompt as long as the result and the
index to begin at. Here samplers drive a decoder, so a case becomes a decoder, a token dictionary of
that prompt whose mask covers what comes before the index, and a `Generator`. A row here begins with at
least one token: where keras-hub begins at index 0, the word's first letter is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime import Generator
from runtime.samplers import Sampler
from tests.runtime.fake_decoder import SequenceDecoder

SIZE = 26
LENGTH = 12
CERTAIN = 1e9


def ids_of(text: str) -> list[int]:
    """Token ids of lower-case letters."""
    return [ord(letter) - ord("a") for letter in text]


def text_of(token_ids: Sequence[int]) -> str:
    """The letters of token ids."""
    return "".join(chr(ord("a") + int(token_id)) for token_id in token_ids)


class LetterDecoder(SequenceDecoder):
    """The same logits after any tokens; hidden states are all alike."""

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__(SIZE)
        self._logits = np.array(logits, np.float32)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self._logits

    def state(self, tokens: Sequence[int]) -> np.ndarray:
        return np.ones(self.hidden, np.float32)


class WordDecoder(LetterDecoder):
    """Certain of the letter that a word has at the next place, whatever came before."""

    def __init__(self, word: str = "sequentially") -> None:
        super().__init__(np.zeros(SIZE))
        self._word = ids_of(word)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        # A search may look one place further than the row goes.
        letter = self._word[min(len(tokens), len(self._word) - 1)]
        return np.where(np.arange(SIZE) == letter, CERTAIN, 0).astype(np.float32)


def certain_of(letter: str) -> LetterDecoder:
    """Always that letter."""
    return LetterDecoder(np.where(np.arange(SIZE) == ids_of(letter)[0], CERTAIN, 0))


def falling() -> LetterDecoder:
    """Each letter less likely than the one before it, by a factor of e."""
    return LetterDecoder(np.arange(SIZE, 0, -1))


def run(
    sampler: Sampler,
    decoder: SequenceDecoder,
    *,
    fill: str = "z",
    given: str | None = None,
    stop: str = "",
) -> dict[str, np.ndarray]:
    """What `generate` returns for one row of `LENGTH` letters.

    Args:
        sampler: the sampler.
        decoder: the model.
        fill: letter of the places that are not given; they keep it behind a stop token.
        given: the first letters; by default one of `fill`.
        stop: letters that end the row.
    """
    given = fill if given is None else given
    row = ids_of((given + fill * LENGTH)[:LENGTH])
    prompt = {"token_ids": [row], "padding_mask": [[i < len(given) for i in range(LENGTH)]]}
    generator = Generator(decoder, None, sampler)
    result: dict[str, np.ndarray] = generator.generate(
        prompt, stop_token_ids=tuple(ids_of(stop)) or None
    )
    return result


def word(*arguments: object, **options: object) -> str:
    """The letters of `run`."""
    return text_of(run(*arguments, **options)["token_ids"][0])  # type: ignore[arg-type]
