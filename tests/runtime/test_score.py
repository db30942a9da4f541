"""`Generator.score`: the probability of each token, by any way of reading it."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from runtime import GenerationCancelledError, GenerationTimeoutError, Generator, LogitsError
from runtime.decoder import StepOutput
from runtime.samplers import RandomSampler
from runtime.session import SessionDecoder
from tests.runtime.toy import POSITIONS, START

TEXT = "the quick king ate in the inn"


def step_by_step(decoder: Any, ids: list[int]) -> list[float]:
    """Log-probabilities of all tokens but the first, from the logits after each single step."""
    cache = decoder.new_cache(1, len(ids))
    found = []
    for token, following in itertools.pairwise(ids):
        logits = decoder.append(cache, np.array([[token]]), np.array([1], np.int32)).logits[0]
        exact = logits.astype(np.float64)
        shifted = exact - exact.max()
        found.append(float(shifted[following] - np.log(np.exp(shifted).sum())))
    return found


def test_a_text_follows_the_start_token(generator: Generator, decoder: SessionDecoder) -> None:
    assert generator.tokenizer is not None
    score = generator.score(TEXT)
    assert score.context_token_ids == (START,)
    assert score.token_ids == tuple(generator.tokenizer.encode(TEXT))
    wanted = step_by_step(decoder, [START, *score.token_ids])
    assert np.abs(np.subtract(score.log_probabilities, wanted)).max() < 1e-5
    assert score.total == pytest.approx(sum(wanted), abs=1e-4)
    assert score.perplexity == pytest.approx(np.exp(-sum(wanted) / len(wanted)), rel=1e-5)


def test_the_most_probable_tokens_are_told(generator: Generator) -> None:
    generator.compile("greedy")
    (result,) = generator.generate_results("the", max_length=12, stop_token_ids=None)
    score = generator.score(result.token_ids, result.prompt_token_ids)
    assert score.context_token_ids == result.prompt_token_ids
    assert all(score.greedy)
    other = [*result.token_ids[:3], (result.token_ids[3] + 1) % 300]
    assert generator.score(other, result.prompt_token_ids).greedy == (True, True, True, False)


def test_text_after_a_context(generator: Generator) -> None:
    whole = generator.score(TEXT)
    for split in (0, 4, 10, len(TEXT) - 1):
        score = generator.score(TEXT[split:], TEXT[:split])
        assert (*score.context_token_ids, *score.token_ids) == (START, *whole.token_ids)
        count = len(score.token_ids)
        assert score.log_probabilities == pytest.approx(whole.log_probabilities[-count:], abs=1e-5)


def test_a_token_across_the_border_is_the_texts(generator: Generator) -> None:
    assert generator.tokenizer is not None
    (the,) = generator.tokenizer.encode(" the")
    score = generator.score("he", " t")
    assert (score.context_token_ids, score.token_ids) == ((START,), (the,))


def test_several_at_a_time_are_what_each_is_alone(generator: Generator) -> None:
    texts = ["a", TEXT, "the inn", TEXT + TEXT[:20], "in"]
    alone = [generator.score(text) for text in texts]
    together = generator.score(texts)
    assert [score.token_ids for score in together] == [score.token_ids for score in alone]
    for one, other in zip(alone, together, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-5)


def test_all_positions_and_one_more(generator: Generator, decoder: SessionDecoder) -> None:
    ids = np.random.default_rng(1).integers(3, 300, POSITIONS + 1)
    score = generator.score(ids)
    assert score.context_token_ids == (ids[0],)
    wanted = step_by_step(decoder, ids.tolist())
    assert np.abs(np.subtract(score.log_probabilities, wanted)).max() < 1e-5
    with pytest.raises(ValueError, match=r"text 0 has 66 tokens .*more than one after the model's 64"):
        generator.score([*ids, 5])


def test_parts_are_bounded_and_change_nothing(
    cpu_decoder: SessionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.random.default_rng(2).integers(3, 300, 60).tolist()
    whole = Generator(cpu_decoder, None).score(ids)
    monkeypatch.setattr(cpu_decoder, "block_tokens", 8)
    monkeypatch.setattr(cpu_decoder, "chunk_tokens", 16)
    asked: list[int] = []
    append = cpu_decoder.append

    def counting(*arguments: Any, outputs: Any = None, **options: Any) -> StepOutput:
        asked.append(len(outputs))
        return append(*arguments, outputs=outputs, **options)

    monkeypatch.setattr(cpu_decoder, "append", counting)
    generator = Generator(cpu_decoder, None)
    assert generator.score(ids).log_probabilities == pytest.approx(whole.log_probabilities, abs=1e-5)
    assert asked == [16, 16, 16, 11]
    asked.clear()
    score = generator.score(ids[30:], ids[:30])  # whose first three blocks are kept
    assert score.log_probabilities == pytest.approx(whole.log_probabilities[29:], abs=1e-5)
    assert asked == [11, 16, 3]


def test_beside_calls_that_generate(generator: Generator) -> None:
    generator.compile(RandomSampler(seed=2))
    options: dict[str, Any] = {"max_length": 60, "stop_token_ids": None}
    text, score = generator.generate("the", **options), generator.score(TEXT)
    with ThreadPoolExecutor(6) as threads:
        texts = [threads.submit(generator.generate, "the", **options) for _ in range(3)]
        scores = [threads.submit(generator.score, TEXT) for _ in range(3)]
        assert [found.result() for found in texts] == [text] * 3
        for found in scores:
            assert found.result().log_probabilities == pytest.approx(score.log_probabilities, abs=1e-5)
    assert generator.cache_bytes_in_use == 0


@pytest.mark.parametrize(
    ("inputs", "context", "message"),
    [
        ("", None, "text 0 has no token to score after another one"),
        ([5], None, "text 0 has no token to score"),
        (["the", ""], None, "text 1 has no token to score"),
        ([5, 300], None, "token id 300 of prompt 0 is not in the model's vocabulary"),
        (["the", "a"], ["b"], "context must be of the inputs' kind and number, 2 of them"),
        ("the", [5], "context must be"),
        ([5, 6], "the", "context must be"),
        (7, None, "takes a string"),
        ({"token_ids": [[5]], "padding_mask": [[1]]}, None, "or lists of token ids"),
        ("a" * 4000, None, "a prompt has"),
    ],
)
def test_bad_input(generator: Generator, inputs: Any, context: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator.score(inputs, context)


def test_limits(generator: Generator) -> None:
    with pytest.raises(GenerationTimeoutError):
        generator.score([TEXT] * 200, timeout=1e-6)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(GenerationCancelledError):
        generator.score(TEXT, cancel=cancel)
    assert generator.cache_bytes_in_use == 0


def test_limits_hold_while_texts_become_tokens(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = generator.tokenizer
    assert tokenizer is not None
    encode_batch = tokenizer.encode_batch

    def looking(texts: Any, check: Any) -> Any:
        check()
        return encode_batch(texts, check)

    monkeypatch.setattr(tokenizer, "encode_batch", looking)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(GenerationCancelledError, match="after 0 new tokens"):
        generator.score(TEXT, cancel=cancel)


def test_logits_that_are_no_numbers(
    cpu_decoder: SessionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = cpu_decoder.append

    def broken(*arguments: Any, **options: Any) -> StepOutput:
        output = append(*arguments, **options)
        output.logits[4, 7] = np.nan
        return output

    monkeypatch.setattr(cpu_decoder, "append", broken)
    generator = Generator(cpu_decoder, None)
    with pytest.raises(LogitsError, match=r"1 of 300 logits .* in row 0 of 1, after 5 tokens"):
        generator.score(list(range(5, 15)))
    assert generator.cache_bytes_in_use == 0
