"""What a caller of `generate` gives, checked and brought to a call of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
        max_length: of texts; token dictionaries have their own.
        stop_token_ids: tokens that end a text, or `"auto"` for the model's own.
        limits: when the call ends although its texts are not complete.
    """

    sampler: Sampler
    max_length: int
    stop_token_ids: frozenset[int] | Literal["auto"]
    limits: CallLimits


def generation_call(
    batch: Batch,
    arguments: GenerationArguments,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    end_token_ids: Sequence[int] | None,
) -> Call:
    """A call over a batch of prompts; one that has been cut where the limits end it meanwhile.

    Args:
        batch: the prompts.
        arguments: what is asked for.
        config: sizes of the model.
        tokenizer: turns text into tokens.
        end_token_ids: what ends the model's texts; by default the tokenizer's end token.

    Raises:
        ValueError: see `runtime.Generator.generate`.
    """
    cut: CutReason | None = None
    if isinstance(batch, TokenBatch):
        limit = check_length(batch.token_ids.shape[1], "the length of token_ids", config)
        prompts = [
            tuple(row[:n].tolist()) for row, n in zip(batch.token_ids, batch.lengths, strict=True)
        ]
    else:
        limit = check_length(arguments.max_length, "max_length", config)
        try:
            prompts = encode_prompts(batch.texts, tokenizer, limit, config, arguments.limits.check)
        except CallCut as error:
            prompts, cut = [()] * len(batch.texts), error.reason
    check_prompts(prompts, config)
    stops = arguments.stop_token_ids
    if stops == "auto":
        stops = default_stop_ids(end_token_ids, tokenizer)
    requests = [Request(p, limit, stops) for p in prompts]
    search = arguments.sampler.search(requests, config.vocabulary_size)
    call = Call(requests, search, arguments.limits)
    if cut is not None:
        call.cut(cut)
    return call
