"""What changes logits before a sampler sees them, in the order in which it is to be applied.

| field | class | after |
|---|---|---|
| `sequence_bias` | `SequenceBias` | transformers |
| `logit_bias` | `LogitBias` | OpenAI, vLLM |
| `repetition_penalty` | `RepetitionPenalty` | transformers, vLLM |
| `frequency_penalty` | `FrequencyPenalty` | OpenAI, vLLM |
| `presence_penalty` | `PresencePenalty` | OpenAI, vLLM |
| `no_repeat_ngram_size` | `NoRepeatNgram` | transformers |
| `bad_words_ids` | `BadWords` | transformers |
| `min_new_tokens` | `MinNewTokens` | transformers |
| `suppress_tokens` | `SuppressTokens` | transformers |
| `begin_suppress_tokens` | `BeginSuppressTokens` | transformers |
| `allowed_token_ids` | `AllowedTokens` | vLLM |
| functions of one's own | `FunctionProcessor` | transformers' `logits_processor` |
| `temperature` | `Temperature` | transformers |
| `top_k` | `TopK` | transformers |
| `top_p` | `TopP` | transformers |
| `min_p` | `MinP` | transformers |
| `typical_p` | `TypicalP` | transformers |
| `epsilon_cutoff` | `EpsilonCutoff` | transformers |
| `eta_cutoff` | `EtaCutoff` | transformers |

The order is transformers', and vLLM's for what only that has. `Chain` applies several as one.
"""

from __future__ import annotations

from runtime.engine.processors.allowed_tokens import AllowedTokens
from runtime.engine.processors.arguments import check_token_ids
from runtime.engine.processors.bad_words import BadWords
from runtime.engine.processors.begin_suppress_tokens import BeginSuppressTokens
from runtime.engine.processors.chain import Chain
from runtime.engine.processors.epsilon_cutoff import EpsilonCutoff
from runtime.engine.processors.eta_cutoff import EtaCutoff
from runtime.engine.processors.frequency_penalty import FrequencyPenalty
from runtime.engine.processors.function import FunctionProcessor
from runtime.engine.processors.logit_bias import LogitBias
from runtime.engine.processors.min_new_tokens import MinNewTokens
from runtime.engine.processors.min_p import MinP
from runtime.engine.processors.no_repeat_ngram import NoRepeatNgram
from runtime.engine.processors.presence_penalty import PresencePenalty
from runtime.engine.processors.processor import Processor, TokenIds
from runtime.engine.processors.repetition_penalty import RepetitionPenalty
from runtime.engine.processors.sequence_bias import SequenceBias
from runtime.engine.processors.suppress_tokens import SuppressTokens
from runtime.engine.processors.temperature import Temperature
from runtime.engine.processors.top_k import TopK
from runtime.engine.processors.top_p import TopP
from runtime.engine.processors.typical_p import TypicalP

__all__ = [
    "AllowedTokens",
    "BadWords",
    "BeginSuppressTokens",
    "Chain",
    "EpsilonCutoff",
    "EtaCutoff",
    "FrequencyPenalty",
    "FunctionProcessor",
    "LogitBias",
    "MinNewTokens",
    "MinP",
    "NoRepeatNgram",
    "PresencePenalty",
    "Processor",
    "RepetitionPenalty",
    "SequenceBias",
    "SuppressTokens",
    "Temperature",
    "TokenIds",
    "TopK",
    "TopP",
    "TypicalP",
    "check_token_ids",
]
