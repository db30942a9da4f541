"""Each next token drawn by a sampler, from the best logits where these decide it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Listed
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown
from runtime.decoder import BestLogits, StepOutput
from runtime.engine.request import Request
from runtime.engine.search.search import Search, logits_of
from runtime.engine.sequence import LogProbabilities, Sequence
from runtime.probabilities import best_log_probabilities


class TokenSampler(Protocol):
    """What the search asks of a sampler; see `runtime.samplers.Sampler`."""

    seed: int | None
    temperature: float

    def sample(
        self, logits: NDArray[np.float32], generators: Listed[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The next token of each row."""

    def sample_best(
        self, best: BestLogits, generators: Listed[np.random.Generator]
    ) -> NDArray[np.int64] | None:
        """The same tokens from the best logits; `None` if a row needs others too."""


class SamplingSearch(Search):
    """Draws the next token of each sequence.

    Args:
        samplers: of each of the call's sequences, what chooses its tokens.
        requests: theirs; what a sequence draws depends on its sampler's seed, on its prompt and on
            which of the prompt's texts it is.
        vocabulary: tokens of the model.
    """

    def __init__(
        self, samplers: Listed[TokenSampler], requests: Listed[Request], vocabulary: int
    ) -> None:
        self._samplers = samplers
        self._requests = requests
        self._vocabulary = vocabulary
        self.scores = any(request.prompt_logprobs is not None for request in requests)
        # Requests that draw from the logits as they are, all by one sampler, are the common case.
        self._plain = all(
            sampler is samplers[0] and request.processor is None and request.logprobs is None
            for sampler, request in zip(samplers, requests, strict=True)
        )
        # Made when the first is asked for: a process that has just started is spared an import.
        self._generators: list[np.random.Generator] | None = None
        # The logits after prompts whose tokens are scored, which come in another form.
        self._after_prompt: dict[int, NDArray[np.float32]] = {}

    def temperature_of(self, sequence: Sequence) -> float:
        """The temperature of the sequence's sampler."""
        return self._samplers[sequence.index].temperature

    def first_output(self, sequence: Sequence) -> int | None:
        """The first token of the prompt where its tokens are scored."""
        return None if sequence.request.prompt_logprobs is None else 0

    def read_logits(self, sequence: Sequence, logits: NDArray[np.float32]) -> None:
        """Scores the prompt's tokens, and keeps what the first new one is drawn from."""
        count = sequence.request.prompt_logprobs
        if count is not None:
            found = sequence.prompt_log_probabilities
            following = sequence.request.prompt[len(found) + 1 :]
            for row, token_id in zip(logits, following, strict=False):
                found.append(LogProbabilities(token_id, *best_log_probabilities(row, token_id, count)))
        self._after_prompt[sequence.index] = logits[-1].copy()

    def accept(self, output: StepOutput, sequences: Listed[Sequence]) -> None:
        """Draws one token for each sequence; all logits are looked at where the best do not decide."""
        if self.scores:
            sequences = [sequence for sequence in sequences if not self._ends_with_prompt(sequence)]
            if not sequences:
                return
        if self._plain and not self._after_prompt:
            drawn = self._draw_plain(self._samplers[0], output, sequences)
        else:
            drawn = {sequence.index: self._draw_one(output, sequence) for sequence in sequences}
        for sequence in sequences:
            token_id = drawn[sequence.index]
            sequence.push(token_id)
            sequence.feed = [token_id]

    def _ends_with_prompt(self, sequence: Sequence) -> bool:
        """Ends a sequence whose prompt was read for its own tokens, and leaves no room for others."""
        if not sequence.token_ids:
            sequence.finish_reason = sequence.request.finish_reason(())
        if sequence.finish_reason is None:
            return False
        self._after_prompt.pop(sequence.index)
        return True

    def _draw_plain(
        self, sampler: TokenSampler, output: StepOutput, sequences: Listed[Sequence]
    ) -> dict[int, int]:
        """Tokens by the sequence's index, from the logits as they are."""
        drawn = {} if output.best is None else self._from_best(sampler, output.best, sequences)
        left = [sequence for sequence in sequences if sequence.index not in drawn]
        if left:
            logits = logits_of(output.logits, [sequence.rows[0] for sequence in left])
            drawn |= self._by_index(sampler, sampler.sample(logits, self._generators_of(left)), left)
        return drawn

    def _draw_one(self, output: StepOutput, sequence: Sequence) -> int:
        """A sequence's token, from its logits after its processors; notes log-probabilities."""
        request, sampler = sequence.request, self._samplers[sequence.index]
        row = self._after_prompt.pop(sequence.index, None)
        if row is None and request.processor is None and request.logprobs is None:
            return self._draw_plain(sampler, output, [sequence])[sequence.index]
        if row is None:
            row = output.logits[sequence.rows[0]]
        changed = row.copy()  # samplers, too, may change what they get
        request.process(sequence.token_ids, changed)
        token_ids = sampler.sample(changed[None], self._generators_of([sequence]))
        token_id = self._by_index(sampler, token_ids, [sequence])[sequence.index]
        if request.logprobs is not None:
            found = best_log_probabilities(row, token_id, request.logprobs)
            sequence.log_probabilities.append(LogProbabilities(token_id, *found))
        return token_id

    def _from_best(
        self, sampler: TokenSampler, best: BestLogits, sequences: Listed[Sequence]
    ) -> dict[int, int]:
        """Tokens by the sequence's index, of all or else of those that the best logits decide."""
        rows = [sequence.rows[0] for sequence in sequences]
        chosen = best if rows == [*range(len(best.logits))] else best.rows(rows)
        token_ids = sampler.sample_best(chosen, self._generators_of(sequences))
        if token_ids is not None:
            return self._by_index(sampler, token_ids, sequences)
        drawn: dict[int, int] = {}
        if len(sequences) > 1:  # a choice from all logits costs far more, so each is tried
            for sequence in sequences:
                drawn |= self._from_best(sampler, best, [sequence])
        return drawn

    def _generators_of(self, sequences: Listed[Sequence]) -> Listed[np.random.Generator]:
        made = self._generators
        if made is None:
            return _LazyGenerators(self, sequences)
        return [made[sequence.index] for sequence in sequences]

    def generator(self, index: int) -> np.random.Generator:
        """The random generator of the call's sequence of this index."""
        if self._generators is None:
            made: dict[int, np.random.Generator] = {}
            for seed in {sampler.seed for sampler in self._samplers}:
                places = [i for i, sampler in enumerate(self._samplers) if sampler.seed == seed]
                requests = [self._requests[i] for i in places]
                prompts, samples = [r.prompt for r in requests], [r.sample for r in requests]
                made.update(zip(places, row_generators(seed, prompts, samples), strict=True))
            self._generators = [made[i] for i in range(len(self._samplers))]
        return self._generators[index]

    def _by_index(
        self, sampler: TokenSampler, token_ids: Any, sequences: Listed[Sequence]
    ) -> dict[int, int]:
        """Tokens by the sequence's index. Samplers are open to users: what they return is input."""
        token_ids, rows, size = np.asarray(token_ids), len(sequences), self._vocabulary
        whole = token_ids.shape == (rows,) and token_ids.dtype.kind in "iu"
        chosen: list[int] = token_ids.tolist()
        if not whole or min(chosen) < 0 or max(chosen) >= size:
            raise ValueError(
                f"{type(sampler).__name__} must return one token id a row, {rows} whole numbers "
                f"from 0 to {size - 1}; got {shown(chosen)}"
            )
        return {sequence.index: token for sequence, token in zip(sequences, chosen, strict=True)}


class _LazyGenerators(Listed["np.random.Generator"]):
    """The random generators of some sequences, none of which is made before one is asked for."""

    def __init__(self, search: SamplingSearch, sequences: Listed[Sequence]) -> None:
        self._search, self._sequences = search, sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._search.generator(sequence.index) for sequence in self._sequences[place]]
        return self._search.generator(self._sequences[place].index)


def row_generators(
    seed: int | None, prompts: Listed[tuple[int, ...]], samples: Listed[int] | None = None
) -> list[np.random.Generator]:
    """A random generator for each row, which depends on the seed, its prompt and its sample only.

    The same prompt given several times gets a different generator each time, the first as if alone.

    Args:
        seed: `None` for another one each time.
        prompts: of the rows.
        samples: which of its prompt's texts each row is, however many there are; by default the first.
    """
    entropy = np.random.SeedSequence(seed).entropy
    seen: Counter[tuple[object, ...]] = Counter()
    generators = []
    for prompt, sample in zip(prompts, samples or [0] * len(prompts), strict=True):
        key = (seen[prompt, sample], *([sample] if sample else []))
        generators.append(np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=key)))
        seen[prompt, sample] += 1
    return generators
