"""What `GenerationOptions` make of a prompt's requests: when they end, what chooses their tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Listed
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphs.contract import ModelConfig
from graphs.shown import shown
from runtime.engine.processors import (
    AllowedTokens,
    BadWords,
    BeginSuppressTokens,
    Chain,
    EpsilonCutoff,
    EtaCutoff,
    FrequencyPenalty,
    FunctionProcessor,
    LogitBias,
    MinNewTokens,
    MinP,
    NoRepeatNgram,
    PresencePenalty,
    Processor,
    RepetitionPenalty,
    SequenceBias,
    SuppressTokens,
    Temperature,
    TopK,
    TopP,
    TypicalP,
)
from runtime.engine.request import Request
from runtime.engine.search.sampling import SamplingSearch
from runtime.engine.search.search import Search
from runtime.engine.text.stop_strings import StopStrings
from runtime.engine.text.text_ends import TextEnds
from runtime.generation_options import GenerationOptions
from runtime.probabilities import bounded_temperature
from runtime.samplers import GreedySampler, RandomSampler, Sampler, TopKSampler, TopPSampler
from runtime.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from runtime.structured.grammar import Grammar


@dataclass(frozen=True)
class RequestOptions:
    """Options brought to a model: what the requests of any prompt with them have.

    Attributes:
        options: as they were given.
        sampler: chooses the tokens.
        base: a request with all that does not depend on the prompt.
        processors: change the logits before a structure does, and after it.
        grammar: the structure of the texts, if they have one.
    """

    options: GenerationOptions
    sampler: Sampler
    base: Request
    processors: tuple[list[Processor], list[Processor]]
    grammar: Grammar | None

    def requests(self, prompt: tuple[int, ...], max_length: int) -> list[Request]:
        """A request for each text that is written of a prompt.

        Args:
            prompt: token ids.
            max_length: tokens of prompt and answer together, at most the model's positions.
        """
        options = self.options
        if options.max_new_tokens is not None:
            max_length = min(max_length, len(prompt) + options.max_new_tokens)
        return [
            self._request(prompt, max_length, sample) for sample in range(options.best_of or options.n)
        ]

    def _request(self, prompt: tuple[int, ...], max_length: int, sample: int) -> Request:
        request = replace(
            self.base,
            prompt=prompt,
            max_length=max_length,
            sample=sample,
            # The prompt is the same for all samples, so one tells of its tokens.
            prompt_logprobs=None if sample else self.options.prompt_logprobs,
        )
        before, after = self.processors
        if self.grammar is None:
            processors = [*before, *after]
            return replace(request, processor=Chain(processors)) if processors else request
        from runtime.structured.constraint import GrammarConstraint

        # Each text is followed by one of its own.
        constraint = GrammarConstraint(self.grammar, request.stop_token_ids)
        chain = Chain([*before, constraint, *after])
        return replace(request, processor=chain, is_complete=constraint.is_complete)


def request_options(
    options: GenerationOptions,
    sampler: Sampler,
    end_token_ids: frozenset[int],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    compile_structure: Callable[[Mapping[str, Any]], Grammar],
) -> RequestOptions:
    """Brings options to a model.

    Args:
        options: what is asked for.
        sampler: the one that is set.
        end_token_ids: what ends the model's texts.
        config: sizes of the model.
        tokenizer: turns tokens into text.
        compile_structure: makes a grammar of the option that gives texts a structure, by its name.

    Raises:
        ImportError: if a structure is asked for and the extra `structured` is not installed.
        ValueError: if they do not fit the model, its tokenizer or the sampler.
    """
    options.check_vocabulary(config.vocabulary_size)
    several = options.best_of or options.n
    if several > 1 and sampler.rows > 1:
        raise ValueError(
            f"{f'n={options.n}' if options.n > 1 else f'best_of={several}'} is for samplers that draw; "
            f"{type(sampler).__name__} finds one text, and BeamSampler(return_all_beams=True) all beams"
        )
    if (options.logprobs is not None or options.prompt_logprobs is not None) and sampler.rows > 1:
        raise ValueError(
            f"logprobs and prompt_logprobs are for samplers that draw, not {type(sampler).__name__}; "
            "beams have scores, and Generator.score tells of any text's tokens"
        )
    ends = frozenset(options.stop_token_ids) | (frozenset() if options.ignore_eos else end_token_ids)
    chosen, warpers = _choice(options, sampler, config)
    functions: list[Processor] = [FunctionProcessor(function) for function in options.processors]
    # A structure comes behind what could allow tokens again.
    processors = [*_processors(options, ends, config), *functions], warpers
    ranked = options.best_of is not None and options.best_of > options.n
    base = Request(
        prompt=(),
        max_length=0,
        stop_token_ids=ends,
        text_ends=_text_ends(options, tokenizer),
        logprobs=0 if ranked and options.logprobs is None else options.logprobs,
        kept_samples=options.n,
    )
    structure = options.structure
    grammar = compile_structure(structure) if structure else None
    return RequestOptions(options, chosen, base, processors, grammar)


def _text_ends(options: GenerationOptions, tokenizer: Tokenizer | None) -> TextEnds | None:
    if not options.stop:
        return None
    if tokenizer is None:
        raise ValueError(
            f"stop={shown(options.stop)} is looked for in text, and this model has no tokenizer: give "
            "stop_token_ids"
        )
    stops = StopStrings(options.stop, include=options.include_stop_str_in_output)
    return TextEnds(tokenizer, stops, options.min_new_tokens)


def _processors(
    options: GenerationOptions, ends: frozenset[int], config: ModelConfig
) -> Iterator[Processor]:
    """What changes the logits, in the order of transformers' `generate`."""
    size = config.vocabulary_size
    end_ids = sorted(ends)
    if options.sequence_bias:
        yield SequenceBias(dict(options.sequence_bias), size)
    if options.logit_bias:
        yield LogitBias(options.logit_bias, size)
    if options.repetition_penalty != 1:
        yield RepetitionPenalty(options.repetition_penalty)
    if options.presence_penalty:
        yield PresencePenalty(options.presence_penalty)
    if options.frequency_penalty:
        yield FrequencyPenalty(options.frequency_penalty)
    if options.no_repeat_ngram_size:
        yield NoRepeatNgram(options.no_repeat_ngram_size)
    if options.bad_words_ids:
        yield BadWords(options.bad_words_ids, size, end_ids)
    if options.min_new_tokens and end_ids:
        yield MinNewTokens(options.min_new_tokens, end_ids, size)
    if options.suppress_tokens:
        yield SuppressTokens(options.suppress_tokens, size)
    if options.begin_suppress_tokens:
        yield BeginSuppressTokens(options.begin_suppress_tokens, size)
    if options.allowed_token_ids is not None:
        yield AllowedTokens(options.allowed_token_ids, size)


def _choice(
    options: GenerationOptions, sampler: Sampler, config: ModelConfig
) -> tuple[Sampler, list[Processor]]:
    """What chooses the tokens, and the changes to the logits that belong to that."""
    sampling = options.sampling
    if not sampling:
        if options.seed is not None and "seed" in sampler.get_config():
            sampler = copy.copy(sampler)  # one of the caller's own may need more than its config
            sampler.seed = options.seed
        return sampler, []
    if sampler.rows > 1:
        raise ValueError(
            f"tokens are drawn by {' and '.join(sampling)}, and {type(sampler).__name__} searches for "
            "them: set another sampler, or leave them out"
        )
    seed = sampler.seed if options.seed is None else options.seed
    temperature = sampling.pop("temperature", 1.0)
    if not temperature:
        return GreedySampler(), []
    # What a sampler does alone, it does without a pass over all logits.
    if not sampling:
        return RandomSampler(seed, temperature), []
    if sampling.keys() == {"top_k"}:
        k = min(int(sampling["top_k"]), config.vocabulary_size)
        return TopKSampler(k=k, seed=seed, temperature=temperature), []
    if sampling.keys() == {"top_p"}:
        return TopPSampler(p=sampling["top_p"], seed=seed, temperature=temperature), []
    makers: dict[str, Callable[[float], Processor]] = {
        "top_k": TopK,
        "top_p": TopP,
        "min_p": MinP,
        "typical_p": TypicalP,
        "epsilon_cutoff": EpsilonCutoff,
        "eta_cutoff": EtaCutoff,
    }
    warpers: list[Processor] = (
        [] if temperature == 1 else [Temperature(bounded_temperature(temperature))]
    )
    # 0 and 1 cut nothing off, which the warpers do not take.
    for name, make in makers.items():
        if name in sampling and sampling[name] != (1 if name in ("top_p", "typical_p") else 0):
            warpers.append(make(sampling[name]))
    return RandomSampler(seed), warpers


def search_of(samplers: Listed[Sampler], requests: Listed[Request], vocabulary: int) -> Search:
    """How the tokens of requests are chosen, each by a sampler that may be another one's too."""
    distinct = {id(sampler): sampler for sampler in samplers}.values()
    if len(distinct) == 1:
        return samplers[0].search(requests, vocabulary)
    for sampler in distinct:
        sampler.check_vocabulary(vocabulary)
    return SamplingSearch(samplers, requests, vocabulary)
