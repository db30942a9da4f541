"""Beginnings of prompts are kept within their bytes, and change no text."""

from __future__ import annotations

from typing import Any

import pytest

from runtime import Generator
from runtime.bundle import Bundle
from runtime.engine import prefixes as module
from runtime.engine.prefixes import Prefixes
from runtime.samplers import ContrastiveSampler, RandomSampler
from runtime.session import SessionDecoder
from tests.runtime.fake_decoder import SequenceCache

BLOCK = 4


def read(kept: Prefixes, *tokens: int) -> int:
    """Reads a prompt in a new row, and keeps its blocks; returns how many tokens were there."""
    cache = SequenceCache(1, 40)
    copied = kept.extend(tokens, cache, 0)
    assert cache.lengths[0] == copied
    assert cache.tokens[0, :copied].tolist() == list(tokens[:copied])
    for start in range(copied, len(tokens), BLOCK):
        stop = min(start + BLOCK, len(tokens))
        cache.tokens[0, start:stop] = tokens[start:stop]
        cache.lengths[0] = stop
        kept.keep(tokens, cache, 0)
    return copied


def test_the_longest_beginning_is_taken_and_a_token_left() -> None:
    kept = Prefixes(BLOCK, 1000)
    prompt = tuple(range(13))
    assert read(kept, *prompt) == 0
    assert kept.bytes_in_use == 12
    assert read(kept, *prompt, 99) == 12
    assert read(kept, *prompt) == 8  # its last token alone would not give the same bits
    assert read(kept, *prompt[:9], 77) == 8
    assert read(kept, *prompt[:3], 77, *prompt[4:]) == 0
    assert read(kept, *prompt[4:]) == 0
    assert read(kept, 1) == 0


def test_the_same_tokens_behind_others_are_other_blocks() -> None:
    kept = Prefixes(BLOCK, 1000)
    read(kept, 1, 1, 1, 1, 5, 6, 7, 8, 0)
    assert read(kept, 2, 2, 2, 2, 5, 6, 7, 8, 0) == 0
    assert read(kept, 2, 2, 2, 2, 5, 6, 7, 8, 9, 9) == 8


def test_the_longest_unused_goes_first_and_ends_before_beginnings() -> None:
    kept = Prefixes(BLOCK, 3 * BLOCK)
    first, second = (1,) * 10, (2,) * 6
    read(kept, *first)
    read(kept, *second)
    assert kept.bytes_in_use == 12
    assert read(kept, *first) == 8  # used again
    read(kept, *(3,) * 6)
    assert kept.bytes_in_use == 12
    assert read(kept, *first) == 8
    read(kept, *(4,) * 6), read(kept, *(5,) * 6)
    assert read(kept, *first) == 4  # its end is gone and its beginning is not


@pytest.mark.parametrize("most", [0, BLOCK - 1])
def test_less_than_a_block_keeps_nothing(most: int) -> None:
    kept = Prefixes(BLOCK, most)
    assert read(kept, *range(9)) == read(kept, *range(9)) == kept.bytes_in_use == 0


def test_one_block_for_a_prompt_of_more() -> None:
    kept = Prefixes(BLOCK, BLOCK)
    assert read(kept, *range(17)) == 0
    assert kept.bytes_in_use == BLOCK


@pytest.mark.parametrize("most", [-1, 1.5, True, "1GB"])
def test_bad_limits(most: Any) -> None:
    with pytest.raises(ValueError, match="max_prefix_bytes must be a whole number of at least 0"):
        Prefixes(BLOCK, most)


def test_by_default_it_is_a_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory_bytes", lambda: 85)
    kept = Prefixes(BLOCK)
    read(kept, *range(13))
    assert kept.bytes_in_use == 8
    monkeypatch.setattr(module, "available_memory_bytes", lambda: None)
    kept = Prefixes(BLOCK)
    read(kept, *range(13))
    assert kept.bytes_in_use == 12


# === Of a model ===


@pytest.fixture
def chunked(cpu_decoder: SessionDecoder, monkeypatch: pytest.MonkeyPatch) -> SessionDecoder:
    """Reads prompts in parts of 8 tokens."""
    monkeypatch.setattr(cpu_decoder, "block_tokens", 8)
    monkeypatch.setattr(cpu_decoder, "chunk_tokens", 8)
    return cpu_decoder


TEXTS = ["the quick king ate in the inn", "the quick king ate in the inn again", "the quick", "a"]


def test_hits_change_no_text(chunked: SessionDecoder, bundle: Bundle) -> None:
    def generators() -> list[Generator]:
        sampler = RandomSampler(seed=5)
        made = [
            Generator(chunked, bundle.tokenizer, sampler, max_prefix_bytes=most) for most in (0, 10**6)
        ]
        return made

    without, kept = generators()
    lengths = [len(bundle.tokenizer.encode(text)) + 1 for text in TEXTS] if bundle.tokenizer else []
    for _ in range(2):
        for text in TEXTS:
            wanted = without.generate_results(text, max_length=60, stop_token_ids=None)[0]
            found = kept.generate_results(text, max_length=60, stop_token_ids=None)[0]
            assert found.token_ids == wanted.token_ids
            assert wanted.cached_prompt_tokens == 0
    assert found.cached_prompt_tokens == 0  # a short prompt has no whole part
    hits = [kept.generate_results(text, max_length=60)[0].cached_prompt_tokens for text in TEXTS]
    assert hits == [(length - 2) // 8 * 8 for length in lengths]
    assert max(hits) > 8
    assert kept._engine.prefixes is not None
    assert 0 < kept._engine.prefixes.bytes_in_use <= 10**6


def test_rows_read_beside_each_other_share_parts(chunked: SessionDecoder, bundle: Bundle) -> None:
    generator = Generator(chunked, bundle.tokenizer, RandomSampler(seed=5), max_prefix_bytes=10**6)
    found = generator.generate_results(TEXTS[:2], max_length=60, stop_token_ids=None)
    without = Generator(chunked, bundle.tokenizer, RandomSampler(seed=5), max_prefix_bytes=0)
    wanted = without.generate_results(TEXTS[:2], max_length=60, stop_token_ids=None)
    assert [r.token_ids for r in found] == [r.token_ids for r in wanted]
    assert sum(r.cached_prompt_tokens for r in found) >= 8


def test_a_search_that_looks_at_hidden_states_reads_all(
    chunked: SessionDecoder, bundle: Bundle
) -> None:
    generator = Generator(chunked, bundle.tokenizer, ContrastiveSampler(3), max_prefix_bytes=10**6)
    texts = [generator.generate_results(TEXTS[0], max_length=50)[0] for _ in range(2)]
    assert texts[0].token_ids == texts[1].token_ids
    assert texts[1].cached_prompt_tokens == 0


def test_the_same_prompt_several_times_is_read_once(chunked: SessionDecoder, bundle: Bundle) -> None:
    generator = Generator(chunked, bundle.tokenizer, RandomSampler(seed=5), max_prefix_bytes=0)
    found = generator.generate_results([TEXTS[0]] * 3, max_length=50, stop_token_ids=None)
    (alone,) = generator.generate_results(TEXTS[0], max_length=50, stop_token_ids=None)
    assert found[0].token_ids == alone.token_ids
    assert len({result.token_ids for result in found}) == 3
    assert [r.cached_prompt_tokens for r in found] == [0, alone.prompt_tokens, alone.prompt_tokens]
