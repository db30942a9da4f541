"""Target cpu against portable: the same numbers and texts; and the runs that appending takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.contract import Phase
from runtime import Generator, session
from runtime.samplers import BeamSampler, ContrastiveSampler, GreedySampler, Sampler
from runtime.session import SessionDecoder
from tests.runtime.test_session import append, random_rows
from tests.runtime.toy import CASES, HIDDEN, POSITIONS, VOCABULARY

CLOSE = 1e-5  # of the standard deviation of what is compared


@pytest.fixture(params=[512, 3], ids="chunks of {}".format)
def chunk_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks longer than every prompt here, and short ones."""
    monkeypatch.setattr(session, "CHUNK_TOKENS", request.param)
    return int(request.param)


class Pair:
    """A cache of each target that is treated alike; every answer is compared."""

    def __init__(
        self, portable: SessionDecoder, cpu: SessionDecoder, batch: int, capacity: int
    ) -> None:
        self.decoders = (portable, cpu)
        self.caches = tuple(decoder.new_cache(batch, capacity) for decoder in self.decoders)
        self.lengths = [0] * batch
        self._generator = np.random.default_rng(batch)

    def append(self, lengths: Sequence[int], width: int | None = None) -> None:
        """Appends random tokens, right-padded to a width, without hidden states and with them."""
        ids = self._generator.integers(0, VOCABULARY, (len(lengths), width or max(lengths)))
        new = np.array(lengths, np.int32)
        before = self.caches[0].lengths.copy()
        for hidden_states in (False, True):
            outputs = []
            for decoder, cache in zip(self.decoders, self.caches, strict=True):
                cache.roll_back(before)
                outputs.append(decoder.append(cache, ids, new, hidden_states=hidden_states))
            wanted, found = outputs
            assert_close(found.logits[new > 0], wanted.logits[new > 0])
            if hidden_states:
                assert found.hidden_states is not None
                assert wanted.hidden_states is not None
                assert found.hidden_states.shape == (*ids.shape, HIDDEN)
                for row, count in enumerate(lengths):
                    assert_close(found.hidden_states[row, :count], wanted.hidden_states[row, :count])
        self.lengths = [past + count for past, count in zip(self.lengths, lengths, strict=True)]
        self.assert_caches()

    def each(self, method: str, *arguments: Any) -> None:
        """Calls a method of both caches."""
        for cache in self.caches:
            getattr(cache, method)(*arguments)
        self.lengths = self.caches[0].lengths.tolist()
        self.assert_caches()

    def assert_caches(self) -> None:
        """The same lengths, and the same entries in the slots in use."""
        wanted, found = self.caches
        assert found.lengths.tolist() == wanted.lengths.tolist() == self.lengths
        for pairs in zip(wanted.layers, found.layers, strict=True):
            for one, other in zip(*pairs, strict=True):
                for row, length in enumerate(self.lengths):
                    assert_close(other[row, :, :length], one[row, :, :length])


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    if wanted.size:
        assert np.abs(found - wanted).max() <= CLOSE * max(1.0, float(wanted.std()))


@pytest.fixture
def portable(decoder: SessionDecoder) -> SessionDecoder:
    return decoder


# === The same numbers ===

WALKS = {
    "one row": [[7], [1], [1], [4], [1], [5], [1]],
    "ragged": [[7, 1, 12], [4, 6, 2], [1, 1, 1], [5, 9, 1], [1, 1, 1]],
    "rows without new tokens": [[0, 3, 8], [4, 0, 0], [0, 1, 1], [0, 7, 0], [1, 0, 1], [0, 0, 2]],
    "five rows": [[1, 9, 4, 2, 6], [1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [3, 1, 0, 2, 4]],
    "an empty row beside others": [[0, 9], [0, 1], [6, 1], [1, 1]],
    "single tokens from the start": [[1, 1], [1, 1], [1, 0], [1, 1], [2, 3]],
}


@pytest.mark.parametrize("steps", WALKS.values(), ids=WALKS)
def test_appending_agrees(
    portable: SessionDecoder, cpu_decoder: SessionDecoder, chunk_tokens: int, steps: list[list[int]]
) -> None:
    pair = Pair(portable, cpu_decoder, len(steps[0]), 40)
    for lengths in steps:
        pair.append(lengths)
    assert pair.lengths == np.sum(steps, axis=0).tolist()


@pytest.mark.parametrize("last", [[[6, 1]], [[5, 1], [1, 1]], [[1, 1]] * 6, [[6, 0]], [[0, 5], [6, 0]]])
def test_a_cache_filled_to_its_last_slot_agrees(
    portable: SessionDecoder, cpu_decoder: SessionDecoder, chunk_tokens: int, last: list[list[int]]
) -> None:
    pair = Pair(portable, cpu_decoder, 2, 10)
    pair.append([4, 3])
    for lengths in last:
        pair.append(lengths)
    assert pair.lengths[0] == 10
    with pytest.raises(ValueError, match="a row of 11 tokens has no room in a cache of 10"):
        pair.append([1, 0])
    pair.append([0, 1])  # the full row waits


def test_a_prompt_of_every_position_agrees(
    portable: SessionDecoder, cpu_decoder: SessionDecoder, chunk_tokens: int
) -> None:
    pair = Pair(portable, cpu_decoder, 2, POSITIONS)
    pair.append([POSITIONS, POSITIONS - 5])


@pytest.mark.parametrize("width", [11, 12, 13, 30])
def test_padding_wider_than_the_cache_agrees(
    portable: SessionDecoder, cpu_decoder: SessionDecoder, chunk_tokens: int, width: int
) -> None:
    pair = Pair(portable, cpu_decoder, 2, 11)
    pair.append([6, 2], width)
    pair.append([1, 3], width)
    pair.append([0, 1], width)


def test_appending_after_a_roll_back_agrees(
    portable: SessionDecoder, cpu_decoder: SessionDecoder, chunk_tokens: int
) -> None:
    pair = Pair(portable, cpu_decoder, 3, 30)
    pair.append([9, 5, 12])
    pair.each("roll_back", np.array([4, 5, 1], np.int32))
    pair.append([3, 1, 6])
    pair.append([1, 1, 1])
    pair.each("roll_back", np.array([0, 0, 0], np.int32))
    pair.append([2, 7, 1])


def test_appending_to_copied_rows_agrees(
    portable: SessionDecoder, cpu_decoder: SessionDecoder, chunk_tokens: int
) -> None:
    """As beam search does it: rows of a prompt's cache, then beams that trade places."""
    prompts, beams = Pair(portable, cpu_decoder, 2, 20), Pair(portable, cpu_decoder, 5, 24)
    prompts.append([9, 4])
    for target, source in zip(beams.caches, prompts.caches, strict=True):
        target.copy_rows(source, np.array([0, 0, 1, 1, 0]), np.arange(5))
    beams.lengths = [9, 9, 4, 4, 9]
    beams.append([1] * 5)
    for cache in beams.caches:
        cache.copy_rows(cache, np.array([1, 0, 3, 0]), np.array([0, 1, 2, 4]), 4)
    beams.lengths = [10, 10, 5, 5, 10]
    beams.append([1] * 5)
    beams.append([2, 1, 3, 0, 1])


# === The same texts ===


@pytest.fixture(scope="module")
def generators(toy_bundle: Path, cpu_bundle_folder: Path) -> list[Generator]:
    return [Generator.from_bundle(f, "cpu", threads=1) for f in (toy_bundle, cpu_bundle_folder)]


SAMPLERS = [
    GreedySampler(),
    BeamSampler(num_beams=2, return_all_beams=True),
    BeamSampler(num_beams=5),
    ContrastiveSampler(k=4, alpha=0.6),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "2 beams", "5 beams", "contrastive"])
def test_texts_agree(generators: list[Generator], chunk_tokens: int, sampler: Sampler) -> None:
    prompts = [case["text"] for case in CASES[:5]]
    found = []
    for generator in generators:
        generator.compile(sampler)
        batched = generator.generate_results(prompts, max_length=POSITIONS, stop_token_ids=None)
        singles = generator.generate_results(prompts[3:4], max_length=POSITIONS, stop_token_ids=None)
        results = [*batched, *singles]
        found.append(
            [(r.text, r.token_ids, [(b.text, b.token_ids) for b in r.beams or ()]) for r in results]
        )
    assert found[0] == found[1]
    assert found[1][3] == found[1][5]
    assert len({text for text, *_ in found[0]}) == 5


def test_greedy_texts_are_those_of_keras(generators: list[Generator], chunk_tokens: int) -> None:
    cases = CASES[:5]
    generators[1].compile("greedy")
    for case in cases:
        length = len(case["prompt"]) + len(case["continuation"])
        (result,) = generators[1].generate_results([case["text"]], length, stop_token_ids=None)
        assert list(result.token_ids) == case["continuation"]


# === The runs that it takes ===

Run = tuple[Phase, int | None, tuple[int, ...], list[int]]


@pytest.fixture
def runs(cpu_decoder: SessionDecoder, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every run of an append: graph, first row, shape of the tokens and valid ones of each row."""
    found: list[Run] = []
    bind = SessionDecoder.bind

    def recorded(self: SessionDecoder, phase: Phase, *args: Any) -> Any:
        _, tokens, lengths, *others = args
        rows = others[-1].start if others else None  # none where a cache binds its step
        found.append((phase, rows, tokens.shape, lengths.tolist()))
        return bind(self, phase, *args)

    monkeypatch.setattr(session, "CHUNK_TOKENS", 4)
    monkeypatch.setattr(SessionDecoder, "bind", recorded)
    return found


PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
PLANS: list[tuple[list[int], list[int], list[Run]]] = [
    # Prompts that are no longer than a chunk go together, padding and all.
    ([], [4, 1, 0], [(PREFILL, 0, (3, 4), [4, 1, 0])]),
    # Longer ones go row by row, without a run for a single token that would be left.
    (
        [],
        [9, 0, 3],
        [
            (PREFILL, 0, (1, 4), [4]),
            (PREFILL, 0, (1, 5), [5]),
            (PREFILL, 2, (1, 3), [3]),
        ],
    ),
    # So do several tokens after a past, also of rows that have none themselves.
    (
        [0, 2, 0],
        [2, 3, 1],
        [(PREFILL, 0, (1, 2), [2]), (PREFILL, 1, (1, 3), [3]), (DECODE, 2, (1, 1), [1])],
    ),
    ([3, 1, 1], [0, 0, 2], [(PREFILL, 2, (1, 2), [2])]),
    # A single token of each row is a step of all.
    ([3, 1, 1], [1, 0, 1], [(DECODE, 0, (3, 1), [1, 0, 1])]),
]


@pytest.mark.parametrize(("past", "new", "plan"), PLANS)
def test_runs_of_an_append(
    cpu_decoder: SessionDecoder, runs: list[Run], past: list[int], new: list[int], plan: list[Run]
) -> None:
    cache = cpu_decoder.new_cache(3, 20)
    if past:
        append(cpu_decoder, cache, random_rows(past))
    runs.clear()
    append(cpu_decoder, cache, random_rows(new, seed=1))
    assert runs == plan
    assert cache.lengths.tolist() == [a + b for a, b in zip(past or [0] * 3, new, strict=True)]


def test_the_buffers_of_a_step_are_bound_once(cpu_decoder: SessionDecoder, runs: list[Run]) -> None:
    """For each number of rows that take it together."""
    cache = cpu_decoder.new_cache(3, 20)
    for rows in ([[5]] * 3, [[6]] * 3, [[7], [], [7]], [[8]] * 2, [[9], [9]], [[3]] * 3):
        append(cpu_decoder, cache, rows)
    assert [shape for _, _, shape, _ in runs] == [(3, 1), (2, 1)]
    assert cache.lengths.tolist() == [6, 5, 4]


def test_the_portable_graphs_take_everything_at_once(portable: SessionDecoder, runs: list[Run]) -> None:
    cache = portable.new_cache(2, 20)
    append(portable, cache, random_rows([3, 1]))
    runs.clear()
    append(portable, cache, random_rows([2, 9]))
    assert runs == [(PREFILL, 0, (2, 9), [2, 9])]


def test_a_step_with_hidden_states_is_one_run(cpu_decoder: SessionDecoder, runs: list[Run]) -> None:
    cache = cpu_decoder.new_cache(2, 20)
    append(cpu_decoder, cache, random_rows([3, 1]))
    runs.clear()
    append(cpu_decoder, cache, [[5], [6]], hidden_states=True)
    assert runs == [(DECODE, 0, (2, 1), [1, 1])]


def test_rows_of_hidden_states_without_tokens_are_zero(cpu_decoder: SessionDecoder) -> None:
    """What no run wrote is told from what one did: past each row's end after a past."""
    cache = cpu_decoder.new_cache(2, 20)
    append(cpu_decoder, cache, random_rows([3, 1]))
    states = append(cpu_decoder, cache, [[5, 6, 7], []], hidden_states=True).hidden_states
    assert np.abs(states[0]).sum(axis=-1).all()
    assert not states[1].any()
