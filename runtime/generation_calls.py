"""What a caller of `generate` gives, checked and brought to a call of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graphs.contract import ModelConfig
from runtime.arguments import check_length, check_prompts, default_stop_ids, encode_prompts
from runtime.call_limits import CallCut, CallLimits
from runtime.engine.call import Call
from runtime.engine.request import Request
from runtime.inputs import Batch, TokenBatch
from runtime.results import CutReason
from runtime.samplers import Sampler
from runtime.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class GenerationArguments:
    """The arguments of a call, and the sampler that was set when it came.

    Attributes:
        sampler: chooses the tokens.
        max_length: of texts, `None` where the caller gave none; token dictionaries have their own.
        default_length: of texts where nothing else says how long they may be.
        stop_token_ids: tokens that end a text, or `"auto"` for the model's own.
        limits: when the call ends although its texts are not complete.
        options: `GenerationOptions` of all prompts, or one for each.
        default_options: what these leave as it is.
    """

    sampler: Sampler
    max_length: int | None
    default_length: int
    stop_token_ids: frozenset[int] | Literal["auto"]
    limits: CallLimits
    options: Any = None
    default_options: Any = None

    @property
    def longest(self) -> int | None:
        """What a text's prompt may have, where that is not the model's positions."""
        if self.max_length is not None:
            return self.max_length
        given = self.options if isinstance(self.options, (list, tuple)) else [self.options]
        listed = [*given, self.default_options]
        if any(getattr(options, "max_new_tokens", None) is not None for options in listed):
            return None
        return self.default_length


def generation_call(
    batch: Batch,
    arguments: GenerationArguments,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    end_token_ids: Sequence[int] | None,
    compile_structure: Callable[[Mapping[str, Any]], Any],
) -> Call:
    """A call over a batch of prompts; one that has been cut where the limits end it meanwhile.

    Args:
        batch: the prompts.
        arguments: what is asked for.
        config: sizes of the model.
        tokenizer: turns text into tokens.
        end_token_ids: what ends the model's texts; by default the tokenizer's end token.
        compile_structure: see `runtime.request_options`.

    Raises:
        ValueError: see `runtime.Generator.generate`.
    """
    cut: CutReason | None = None
    if isinstance(batch, TokenBatch):
        limit = check_length(batch.token_ids.shape[1], "the length of token_ids", config)
        usual = limit
        prompts = [
            tuple(row[:n].tolist()) for row, n in zip(batch.token_ids, batch.lengths, strict=True)
        ]
    else:
        longest = arguments.longest
        if longest is None:
            longest = config.max_sequence_length
        limit = check_length(longest, "max_length", config)
        usual = arguments.default_length if arguments.max_length is None else limit
        try:
            prompts = encode_prompts(batch.texts, tokenizer, limit, config, arguments.limits.check)
        except CallCut as error:
            prompts, cut = [()] * len(batch.texts), error.reason
    check_prompts(prompts, config)
    stops = arguments.stop_token_ids
    if stops == "auto":
        stops = default_stop_ids(end_token_ids, tokenizer)
    if arguments.options is None and arguments.default_options is None:
        requests = [Request(p, limit, stops) for p in prompts]
        search = arguments.sampler.search(requests, config.vocabulary_size)
        call = Call(requests, search, arguments.limits)
    else:
        call = _call_with_options(
            prompts, limit, usual, stops, arguments, config, tokenizer, compile_structure
        )
    if cut is not None:
        call.cut(cut)
    return call


def _call_with_options(
    prompts: Sequence[tuple[int, ...]],
    limit: int,
    usual: int,
    stops: frozenset[int],
    arguments: GenerationArguments,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    compile_structure: Callable[[Mapping[str, Any]], Any],
) -> Call:
    # Who has no options does not wait for these to be imported.
    from runtime.generation_options import read_options
    from runtime.request_options import RequestOptions, request_options, search_of

    made: dict[int, RequestOptions] = {}  # by the options' identity: most prompts have the same
    requests: list[Request] = []
    samplers: list[Sampler] = []
    options = read_options(arguments.options, len(prompts))
    if arguments.default_options is not None:
        (base,) = read_options(arguments.default_options, 1)
        merged = {id(own): own.after(base) for own in options}
        options = [merged[id(own)] for own in options]
    for prompt, own in zip(prompts, options, strict=True):
        brought = made.get(id(own))
        if brought is None:
            brought = request_options(
                own, arguments.sampler, stops, config, tokenizer, compile_structure
            )
            made[id(own)] = brought
        # Who says how many new tokens there may be does not mean the usual length as well.
        texts = brought.requests(prompt, usual if own.max_new_tokens is None else limit)
        requests += texts
        samplers += [brought.sampler] * len(texts)
    search = search_of(samplers, requests, config.vocabulary_size)
    return Call(requests, search, arguments.limits, min(own.priority for own in options))
