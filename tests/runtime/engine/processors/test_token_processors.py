"""Processors that look at token ids: what they change, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.engine import processors
from runtime.engine.processors import Processor

SIZE = 10
OUT = -np.inf
PROMPT = [2, 5, 6]


def changed(
    processor: Processor, new: list[int], logits: list[float] | None = None
) -> dict[int, float]:
    """Logits by token id, where they changed; by default all are 1 before."""
    before = np.ones(SIZE, np.float32) if logits is None else np.array(logits, np.float32)
    after = before.copy()
    processor.process([*PROMPT, *new], len(PROMPT), after)
    for token_ids in (tuple([*PROMPT, *new]), np.array([*PROMPT, *new], np.int64)):
        again = before.copy()
        processor.process(token_ids, len(PROMPT), again)
        assert again.tolist() == after.tolist()
    places: NDArray[np.int64] = (after != before).nonzero()[0]
    return {int(place): float(after[place]) for place in places}


def test_a_repetition_penalty_counts_the_prompt_and_each_token_once() -> None:
    processor = processors.RepetitionPenalty(2)
    assert changed(processor, [7, 7]) == {2: 0.5, 5: 0.5, 6: 0.5, 7: 0.5}
    assert changed(processor, [7], [-1.0] * SIZE) == {2: -2, 5: -2, 6: -2, 7: -2}
    assert changed(processor, [], [0.0] * 5 + [OUT] * 5) == {}


def test_a_presence_penalty_counts_new_tokens_once() -> None:
    assert changed(processors.PresencePenalty(0.5), [7, 5, 7]) == {5: 0.5, 7: 0.5}
    assert changed(processors.PresencePenalty(-2), [7]) == {7: 3}
    assert changed(processors.PresencePenalty(0.5), []) == {}


def test_a_frequency_penalty_counts_new_tokens_each_time() -> None:
    assert changed(processors.FrequencyPenalty(0.5), [7, 5, 7]) == {5: 0.5, 7: 0}
    assert changed(processors.FrequencyPenalty(0.5), []) == {}


@pytest.mark.parametrize(
    ("size", "new", "excluded"),
    [
        (1, [5], {2, 5, 6}),
        (2, [], set()),
        (2, [5], {6}),
        (2, [5, 9, 5], {6, 9}),
        (3, [5], set()),
        (3, [5, 6], {5}),
        (3, [7, 7, 7], {7}),
        (6, [5, 6], set()),
        (99, [5, 6], set()),
    ],
)
def test_no_ngram_comes_twice(size: int, new: list[int], excluded: set[int]) -> None:
    assert changed(processors.NoRepeatNgram(size), new) == dict.fromkeys(sorted(excluded), OUT)


def test_bad_words_are_not_completed() -> None:
    processor = processors.BadWords([[1], [6, 3], [5, 6, 4], [9, 8]], SIZE)
    assert changed(processor, []) == {1: OUT, 3: OUT, 4: OUT}
    assert changed(processor, [6]) == {1: OUT, 3: OUT}
    assert changed(processor, [9]) == {1: OUT, 8: OUT}


def test_bad_words_longer_than_the_text() -> None:
    logits = np.ones(SIZE, np.float32)
    for token_ids in ([6], []):
        processors.BadWords([[5, 6, 4]], SIZE).process(token_ids, len(token_ids), logits)
    assert logits.tolist() == [1] * SIZE


def test_an_end_token_alone_is_no_bad_word() -> None:
    processor = processors.BadWords([[1], [3], [6, 3]], SIZE, [3])
    assert changed(processor, [7]) == {1: OUT}
    assert changed(processor, []) == {1: OUT, 3: OUT}
    assert changed(processors.BadWords([[3]], SIZE, [3]), []) == {}


def test_biases_of_sequences_that_a_token_completes_are_added_up() -> None:
    biases = {(4,): 2.0, (6, 4): 3.0, (5, 6, 4): 4, (9, 4): 100, (6, 1): -1, (8,): -2}
    processor = processors.SequenceBias(biases, SIZE)
    assert changed(processor, []) == {4: 10, 1: 0, 8: -1}
    assert changed(processor, [7]) == {4: 3, 8: -1}
    pairs = [[[4], 9.0], *([list(ids), bias] for ids, bias in biases.items())]  # the last one counts
    assert changed(processors.SequenceBias(pairs, SIZE), []) == {4: 10, 1: 0, 8: -1}


def test_some_tokens_are_suppressed() -> None:
    assert changed(processors.SuppressTokens([1, 9, 1], SIZE), [7]) == {1: OUT, 9: OUT}
    assert changed(processors.SuppressTokens((), SIZE), [7]) == {}


def test_some_tokens_do_not_come_first() -> None:
    processor = processors.BeginSuppressTokens({1, 9}, SIZE)
    assert changed(processor, []) == {1: OUT, 9: OUT}
    assert changed(processor, [7]) == {}


def test_a_text_does_not_end_too_early() -> None:
    processor = processors.MinNewTokens(2, [1, 3], SIZE)
    assert changed(processor, []) == changed(processor, [7]) == {1: OUT, 3: OUT}
    assert changed(processor, [7, 7]) == {}
    assert changed(processors.MinNewTokens(0, [1], SIZE), []) == {}


def test_numbers_are_added() -> None:
    processor = processors.LogitBias({1: -100, np.int64(9): 0.5}, SIZE)
    assert changed(processor, []) == {1: -99, 9: 1.5}
    assert changed(processor, [], [OUT] * SIZE) == {}


def test_some_tokens_alone_are_allowed() -> None:
    found = changed(processors.AllowedTokens(np.array([1, 9, 1]), SIZE), [], [OUT] * 2 + [1.0] * 8)
    assert found == dict.fromkeys(range(2, 9), OUT)
