"""What one generation gave."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

CutReason = Literal["timeout", "cancelled"]
FinishReason = Literal["stop", "length", "timeout", "cancelled"]


@dataclass(frozen=True)
class Beam:
    """One of the continuations that beam search found for a prompt.

    Attributes:
        text: as `GenerationResult.text`.
        token_ids: the new tokens, with the stop token where one was drawn.
        score: sum of the new tokens' log-probabilities, natural logarithm.
        finish_reason: as `GenerationResult.finish_reason`.
    """

    text: str | None
    token_ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True)
class TokenLogProbability:
    """How probable a model finds a token in its place.

    Attributes:
        token_id: the token.
        log_probability: natural logarithm, of the model as it is.
        text: what the token stands for; bytes that are no whole characters as OpenAI shows them,
            `bytes:` and their hexadecimal codes. `None` where there is no tokenizer.
        bytes: the same, as numbers from 0 to 255.
        text_offset: characters of the text before this token's first; `None` among `best`.
        best: the most probable tokens in this place, best first, without their own `best`.
    """

    token_id: int
    log_probability: float
    text: str | None = None
    bytes: tuple[int, ...] | None = None
    text_offset: int | None = None
    best: tuple[TokenLogProbability, ...] = ()


@dataclass(frozen=True)
class GenerationResult:
    """One row's outcome.

    Attributes:
        text: the text as `generate` gives it; `None` where there is no tokenizer.
        prompt_token_ids: the prompt's tokens, with the start token.
        token_ids: the new tokens, with the stop token where one was drawn.
        finish_reason: `"stop"` after a stop token or string, or where a structure is complete;
            `"length"` where a limit cut it; `"timeout"` or `"cancelled"` where the call ended before,
            with the tokens so far.
        prefill_seconds: time of the runs that read the prompt.
        decode_seconds: time of the runs after that, which serve other rows too.
        cached_prompt_tokens: tokens of the prompt that were not read, as the same beginning had been.
        beams: all beams, best first, where the sampler was asked for them; the first is this result.
        stop_reason: the stop string or the stop token that ended it; `None` where neither did.
        logprobs: of each new token, where `GenerationOptions.logprobs` asked for them.
        prompt_logprobs: of each token of the prompt, the first of which has none: `None`.
        samples: all texts of the prompt, where `GenerationOptions.n` asked for several; the first is
            this result.
    """

    text: str | None
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float
    beams: tuple[Beam, ...] | None = None
    cached_prompt_tokens: int = 0
    stop_reason: int | str | None = None
    logprobs: tuple[TokenLogProbability, ...] | None = None
    prompt_logprobs: tuple[TokenLogProbability | None, ...] | None = None
    samples: tuple[GenerationResult, ...] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt_token_ids)

    @property
    def generated_tokens(self) -> int:
        """Number of new tokens."""
        return len(self.token_ids)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens of this row over the prefill time."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """New tokens of this row after the first, which prefill gives, over the decode time."""
        return max(0, self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, speeds and counts included; what was not asked for is left out."""
        values = asdict(self)
        for name in ("beams", "stop_reason", "logprobs", "prompt_logprobs", "samples"):
            if values[name] is None:
                del values[name]
        if self.samples is not None:
            values["samples"] = [sample.to_dict() for sample in self.samples]
        return {
            **values,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
        }


@dataclass(frozen=True)
class Score:
    """How probable a model finds the tokens of a text.

    Attributes:
        context_token_ids: what stands before the scored tokens: the start token, and a context.
        token_ids: the scored tokens.
        log_probabilities: of each, after all that stands before it; natural logarithms.
        greedy: whether each is the most probable token there, the first of them on a tie.
    """

    context_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    greedy: tuple[bool, ...]

    @property
    def total(self) -> float:
        """The logarithm of the probability of all scored tokens together."""
        return math.fsum(self.log_probabilities)

    @property
    def perplexity(self) -> float:
        """The inverse of the tokens' geometric mean probability; NaN where there are none."""
        if not self.token_ids:
            return math.nan
        return math.exp(-self.total / len(self.token_ids))
