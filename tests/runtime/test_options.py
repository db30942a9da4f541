"""What options make of texts, on every way to generate: engine, streams, samples, beams."""

from __future__ import annotations

import asyncio
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from runtime import GenerationOptions, Generator
from runtime.samplers import BeamSampler, ContrastiveSampler, RandomSampler
from tests.runtime.toy import END, VOCABULARY, ScriptedSampler

PROMPTS = ["the king", "The quick", "t", "re" * 20]
DRAWN = RandomSampler(seed=4, temperature=2.0)
SAMPLERS = ["greedy", DRAWN, BeamSampler(num_beams=3), ContrastiveSampler(k=3)]


def results(generator: Generator, inputs: Any, **values: Any) -> Any:
    return generator.generate_results(inputs, strip_prompt=True, options=GenerationOptions(**values))


def words(generator: Generator) -> list[int]:
    """Tokens of letters alone: what a random model writes is rarely a character."""
    tokenizer = generator.tokenizer
    return [i for i in range(VOCABULARY) if tokenizer.token_bytes(i).isalpha() and i > END]


@pytest.fixture(params=SAMPLERS, ids=["greedy", "random", "beam", "contrastive"])
def sampled(request: Any, generator: Generator) -> Generator:
    """The generator with one sampler after another."""
    generator.compile(request.param)
    return generator


# === Ends ===


def test_new_tokens_are_counted_without_the_prompt(sampled: Generator) -> None:
    found = results(sampled, PROMPTS, max_new_tokens=5, ignore_eos=True)
    assert [result.generated_tokens for result in found] == [5] * len(PROMPTS)
    assert {result.finish_reason for result in found} == {"length"}


def test_the_models_positions_and_max_length_end_a_text_too(generator: Generator) -> None:
    generator.compile("greedy")
    options = GenerationOptions(max_new_tokens=1000, ignore_eos=True)
    (found,) = generator.generate_results(PROMPTS[0], options=options)
    assert found.prompt_tokens + found.generated_tokens == generator.config.max_sequence_length
    (found,) = generator.generate_results(PROMPTS[0], max_length=9, options=options)
    assert found.prompt_tokens + found.generated_tokens == 9


def test_stop_strings_cut_the_text_on_every_way(sampled: Generator) -> None:
    """Streamed, awaited and in batches; the tokens that completed the string are there."""
    letters = {"max_new_tokens": 12, "ignore_eos": True, "allowed_token_ids": words(sampled)}
    (whole,) = results(sampled, PROMPTS[0], **letters)
    stop = whole.text[3:5]
    place = whole.text.index(stop)
    for include in (False, True):
        options = GenerationOptions(stop=[stop], include_stop_str_in_output=include, **letters)
        cut = whole.text[: place + len(stop) * include]
        (found,) = sampled.generate_results(PROMPTS[0], strip_prompt=True, options=options)
        if isinstance(sampled.sampler, BeamSampler):  # another beam may be the best one now
            assert stop not in found.text[: len(found.text) - len(stop) * include]
            cut = found.text
        else:
            assert (found.finish_reason, found.stop_reason) == ("stop", stop)
            assert found.token_ids == whole.token_ids[: len(found.token_ids)]
        assert found.text == cut
        pieces = [*sampled.stream(PROMPTS[0], strip_prompt=True, options=options)]
        assert "".join(pieces) == cut
        later = sampled.agenerate(PROMPTS[0], strip_prompt=True, options=options)
        assert asyncio.run(later) == cut
        texts = sampled.generate(PROMPTS[:2], options=[options, GenerationOptions(max_new_tokens=2)])
        assert texts[0] == PROMPTS[0] + cut


def test_stop_tokens_add_to_the_models_own(generator: Generator) -> None:
    for drawn, values, reason in (
        ([40, END], {}, END),
        ([40, 41, 50], {"stop_token_ids": [41]}, 41),
        ([END, 41, 50], {"stop_token_ids": [41], "ignore_eos": True}, 41),
        ([END] * 9, {"ignore_eos": True, "max_new_tokens": 3}, None),
    ):
        generator.compile(ScriptedSampler(drawn))
        (found,) = results(generator, "t", **values)
        assert found.stop_reason == reason
        assert found.finish_reason == ("length" if reason is None else "stop")


def test_nothing_ends_a_text_before_its_least_length(generator: Generator) -> None:
    """Stop tokens are ruled out; stop strings are not looked for."""
    generator.compile("greedy")
    letters = {"max_new_tokens": 12, "ignore_eos": True, "allowed_token_ids": words(generator)}
    (plain,) = results(generator, PROMPTS[0], **letters)
    ends = set(plain.token_ids[:2])
    (found,) = results(generator, PROMPTS[0], min_new_tokens=7, stop_token_ids=[*ends], **letters)
    assert not ends & set(found.token_ids[:7])
    assert len(found.token_ids) >= 7
    (found,) = results(generator, PROMPTS[0], min_new_tokens=7, stop=plain.text[0], **letters)
    assert len(found.token_ids) >= 7


# === Samples ===


def test_samples_do_not_depend_on_their_number_or_on_company(generator: Generator) -> None:
    generator.compile(DRAWN)
    texts = results(generator, PROMPTS[0], n=4, max_new_tokens=8)[0].samples
    assert len({sample.text for sample in texts}) == 4
    (alone,) = results(generator, PROMPTS[0], max_new_tokens=8)
    assert alone.samples is None
    assert alone.token_ids == texts[0].token_ids
    for n in (2, 3):
        fewer = results(generator, PROMPTS[:2], n=n, max_new_tokens=8)[0].samples
        assert [s.token_ids for s in fewer] == [s.token_ids for s in texts[:n]]
    given = generator.generate(PROMPTS[:2], options=GenerationOptions(n=2, max_new_tokens=8))
    assert [len(row) for row in given] == [2, 2]
    assert given[0] == [PROMPTS[0] + sample.text for sample in texts[:2]]


def test_the_best_of_several_are_those_with_the_highest_mean(generator: Generator) -> None:
    generator.compile(DRAWN)
    values = {"max_new_tokens": 6, "ignore_eos": True}
    every = results(generator, PROMPTS[0], n=6, logprobs=0, **values)[0].samples
    means = {s.token_ids: np.mean([t.log_probability for t in s.logprobs]) for s in every}
    best = results(generator, PROMPTS[0], n=2, best_of=6, **values)[0].samples
    assert [s.token_ids for s in best] == sorted(means, key=means.get, reverse=True)[:2]


def test_the_best_of_several_comes_with_the_prompts_probabilities(generator: Generator) -> None:
    generator.compile(DRAWN)
    for seed in range(4):
        values = {"max_new_tokens": 3, "prompt_logprobs": 1, "seed": seed}
        (first, best) = (results(generator, PROMPTS[0], best_of=b, **values)[0] for b in (1, 5))
        assert best.prompt_logprobs == first.prompt_logprobs


def test_a_seed_of_the_options_goes_before_the_samplers(generator: Generator) -> None:
    generator.compile(RandomSampler(seed=1, temperature=2.0))
    own = results(generator, PROMPTS[0], seed=4, max_new_tokens=8)
    generator.compile(DRAWN)
    assert own[0].token_ids == results(generator, PROMPTS[0], max_new_tokens=8)[0].token_ids
    other = results(generator, PROMPTS[0], seed=5, max_new_tokens=8)
    assert own[0].token_ids != other[0].token_ids


def test_a_seed_goes_to_a_sampler_that_cannot_be_made_from_its_config(generator: Generator) -> None:
    class Own(RandomSampler):
        def __init__(self, heat: float) -> None:
            super().__init__(temperature=heat)

    generator.compile(DRAWN)
    wanted = results(generator, PROMPTS[0], seed=5, max_new_tokens=8)
    generator.compile(Own(DRAWN.temperature))
    found = results(generator, PROMPTS[0], seed=5, max_new_tokens=8)
    assert found[0].token_ids == wanted[0].token_ids
    assert generator.sampler.seed is None


# === Draws ===


def test_sampling_options_stand_in_place_of_the_sampler(generator: Generator) -> None:
    generator.compile("greedy")
    (greedy,) = results(generator, PROMPTS[0], max_new_tokens=10)
    generator.compile(DRAWN)
    for values in (
        {"temperature": 0},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"temperature": 1e-4, "typical_p": 0.99},
        {"temperature": 1e-300},
        {"temperature": 1e-300, "top_k": 5, "top_p": 0.9},
        {"top_k": 9, "min_p": 0.1, "epsilon_cutoff": 0.9999},
    ):
        (found,) = results(generator, PROMPTS[0], max_new_tokens=10, **values)
        assert found.token_ids == greedy.token_ids, values


def test_what_is_ruled_out_is_never_drawn(sampled: Generator) -> None:
    allowed = [*range(40, 60)]
    found = results(sampled, PROMPTS, max_new_tokens=8, ignore_eos=True, allowed_token_ids=allowed)
    assert {token for result in found for token in result.token_ids} <= set(allowed)
    assert [result.generated_tokens for result in found] == [8] * 4
    bias = {token: -100 for token in range(40, VOCABULARY)}
    found = results(sampled, PROMPTS, max_new_tokens=8, ignore_eos=True, logit_bias=bias)
    assert all(token < 40 for result in found for token in result.token_ids)


def test_functions_of_ones_own_see_all_tokens_so_far(generator: Generator) -> None:
    generator.compile("greedy")
    seen = []

    def one_more(token_ids: Any, logits: Any) -> Any:
        seen.append(list(token_ids))
        logits[:] = -np.inf
        logits[token_ids[-1] + 1] = 0
        return logits

    row = {"token_ids": [[2, 40, 0, 0, 0]], "padding_mask": [[1, 1, 0, 0, 0]]}
    (found,) = results(generator, row, processors=one_more)
    assert found.token_ids == (41, 42, 43)
    assert seen == [[2, 40], [2, 40, 41], [2, 40, 41, 42]]


# === Each for itself ===


def test_an_error_in_one_ends_that_one_alone(generator: Generator) -> None:
    generator.compile("greedy")

    def bad(token_ids: Any, logits: Any) -> Any:
        if len(token_ids) > 8:
            raise RuntimeError("of its own")
        return logits

    def call(number: int) -> Any:
        options = GenerationOptions(max_new_tokens=12, processors=[bad] if number % 3 == 0 else [])
        try:
            return generator.generate(PROMPTS[number % 2], options=options)
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(6) as threads:
        found = [*threads.map(call, range(12))]
    alone = [generator.generate(p, options=GenerationOptions(max_new_tokens=12)) for p in PROMPTS[:2]]
    for number, text in enumerate(found):
        assert text == ("of its own" if number % 3 == 0 else alone[number % 2])
    assert generator.cache_bytes_in_use == 0


def test_functions_that_use_their_own_generator_are_refused(generator: Generator) -> None:
    """They would wait for themselves, and all other threads for them."""
    generator.compile("greedy")

    def nested(token_ids: Any, logits: Any) -> Any:
        generator.generate("t", max_length=8)
        return logits

    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot use that generator itself"):
            results(generator, PROMPTS[0], processors=nested, max_new_tokens=3)
    assert results(generator, PROMPTS[0], max_new_tokens=3)[0].generated_tokens == 3
    assert generator.cache_bytes_in_use == 0


def test_contradictions_are_told_when_no_token_is_left(sampled: Generator) -> None:
    with pytest.raises(ValueError, match=r"(?i)no token|none|all tokens"):
        results(sampled, PROMPTS[0], allowed_token_ids=[40], suppress_tokens=[40])


def test_each_prompt_has_options_of_its_own(generator: Generator) -> None:
    """Other seeds, samplers and ends, and none, in one batch; each as alone."""
    generator.compile(DRAWN)
    options = [
        GenerationOptions(seed=1, max_new_tokens=6),
        GenerationOptions(temperature=0, repetition_penalty=1.5, max_new_tokens=9),
        GenerationOptions(top_k=3, n=2, max_new_tokens=4, logprobs=1),
        GenerationOptions(),
    ]
    together = generator.generate_results(PROMPTS, options=options)
    for prompt, own, found in zip(PROMPTS, options, together, strict=True):
        (alone,) = generator.generate_results(prompt, options=own)
        assert found.token_ids == alone.token_ids
        assert [s.text for s in found.samples or ()] == [s.text for s in alone.samples or ()]
        assert (found.logprobs is None) == (own.logprobs is None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"suppress_tokens": [VOCABULARY]}, f"suppress_tokens must be ids .* got {VOCABULARY}"),
        ({"bad_words_ids": [[3], [4, 10**6]]}, "bad_words_ids must be ids of the model's vocabulary"),
    ],
)
def test_ids_beyond_the_vocabulary_are_refused(
    generator: Generator, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        results(generator, PROMPTS[0], **values)


def test_what_searches_cannot_have_is_refused(generator: Generator) -> None:
    generator.compile(BeamSampler(num_beams=2))
    for values, words in (
        ({"temperature": 0.5}, "tokens are drawn by temperature"),
        ({"n": 2}, "for samplers that draw"),
        ({"logprobs": 1}, "beams have scores"),
    ):
        with pytest.raises(ValueError, match=words):
            results(generator, PROMPTS[0], **values)
    generator.compile("greedy")
    with pytest.raises(ValueError, match="stream\\(\\) gives one text"):
        generator.stream(PROMPTS[0], options=GenerationOptions(n=2))
    row = {"token_ids": [[2, 40, 0]], "padding_mask": [[1, 1, 0]]}
    with pytest.raises(ValueError, match="generate_results gives them"):
        generator.generate(row, options=GenerationOptions(n=2))
    without = Generator(generator._decoder, None, "greedy")
    with pytest.raises(ValueError, match="no tokenizer"):
        without.generate(row, stop_token_ids=None, options=GenerationOptions(stop="a"))


# === Log-probabilities ===


def test_offsets_put_the_text_together(generator: Generator) -> None:
    generator.compile(RandomSampler(seed=0, temperature=3.0))
    for prompt, strip in itertools.product(["Zoë, café: 😀", "t"], (False, True)):
        options = GenerationOptions(max_new_tokens=20, ignore_eos=True, logprobs=2, prompt_logprobs=1)
        (found,) = generator.generate_results(prompt, strip_prompt=strip, options=options)
        offsets = [token.text_offset for token in found.logprobs]
        parts = [found.text[a:b] for a, b in itertools.pairwise([*offsets, len(found.text)])]
        begin = "" if strip else prompt
        assert begin + "".join(parts) == found.text
        for token, part in zip(found.logprobs, parts, strict=True):
            assert all(best.log_probability >= token.log_probability for best in token.best[:1])
            if token.text == part:
                assert bytes(token.bytes).decode() == part
        assert found.prompt_logprobs[0] is None
        assert [t.token_id for t in found.prompt_logprobs[1:]] == list(found.prompt_token_ids[1:])
        json.dumps(found.to_dict(), allow_nan=False)


def test_prompts_are_scored_as_by_score(generator: Generator) -> None:
    generator.compile("greedy")
    options = [
        GenerationOptions(prompt_logprobs=0, max_new_tokens=3),
        GenerationOptions(max_new_tokens=3),
    ]
    first, other = generator.generate_results(["the king " * 3, "t"], options=options)
    score = generator.score("the king " * 3)
    own = [token.log_probability for token in first.prompt_logprobs[1:]]
    assert np.abs(np.array(own) - score.log_probabilities).max() < 1e-5
    assert other.prompt_logprobs is None
    plain = generator.generate_results(
        ["the king " * 3, "t"], options=GenerationOptions(max_new_tokens=3)
    )
    assert [r.token_ids for r in (first, other)] == [r.token_ids for r in plain]


def test_prompts_are_scored_where_nothing_is_to_be_written(generator: Generator) -> None:
    generator.compile("greedy")
    options = [
        GenerationOptions(prompt_logprobs=1, max_new_tokens=0),
        GenerationOptions(max_new_tokens=0),
        GenerationOptions(max_new_tokens=3),
        GenerationOptions(prompt_logprobs=1, max_new_tokens=0, n=2),
    ]
    prompt = "the king " * 3
    found = generator.generate_results([prompt] * 4, options=options)
    score = generator.score(prompt)
    for result in (found[0], found[3]):
        own = [token.log_probability for token in result.prompt_logprobs[1:]]
        assert own == pytest.approx(score.log_probabilities, abs=1e-5)
        assert (result.token_ids, result.finish_reason) == ((), "length")
    assert [len(result.token_ids) for result in found] == [0, 0, 3, 0]
    full = "t" * 63  # with the start token, all positions
    (result,) = generator.generate_results(full, 64, options=GenerationOptions(prompt_logprobs=0))
    assert len(result.prompt_logprobs) == len(result.prompt_token_ids)


def test_options_of_a_call_go_before_the_generators(generator: Generator) -> None:
    generator.compile("greedy")
    own = GenerationOptions(max_new_tokens=4, suppress_tokens=[40, 41])
    generator.default_options = own
    try:
        (found,) = generator.generate_results("t")
        assert found.generated_tokens <= 4
        given = GenerationOptions(max_new_tokens=6, ignore_eos=True)
        (found,) = generator.generate_results("t", options=given)
        both = GenerationOptions(max_new_tokens=6, ignore_eos=True, suppress_tokens=[40, 41])
        generator.default_options = None
        (wanted,) = generator.generate_results("t", options=both)
        assert found.token_ids == wanted.token_ids
        assert given.after(own) == both
        generator.default_options = {"n": 2}  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"must be GenerationOptions.*got \{'n': 2\}"):
            generator.generate("t")
    finally:
        generator.default_options = None
