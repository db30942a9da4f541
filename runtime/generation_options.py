"""What a caller may ask of a text, beside the sampler: one frozen set of options for a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from graphs.shown import shown
from runtime.engine.text.stop_strings import read_stops
from runtime.option_values import (
    LogitsFunction,
    read_biases,
    read_flag,
    read_functions,
    read_id_sequences,
    read_ids,
    read_schema,
    read_sequence_biases,
    read_text,
    read_texts,
    read_top_k,
    real,
    whole,
)

STRUCTURES = ("json_schema", "regex", "choice", "grammar", "json_object")
# What says how tokens are drawn, in place of the sampler that is set.
SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
MOST_SAMPLES = 128  # of a prompt
MOST_LOG_PROBABILITIES = 1000


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """What is asked of a text; each option by the name, and with the meaning, that it has elsewhere.

    Given to `Generator.generate` and its like as `options=`, one for all prompts or one for each. An
    option that is left out asks for nothing.

    Of transformers (https://huggingface.co/docs/transformers, `GenerationConfig`) are the lengths,
    `repetition_penalty`, `no_repeat_ngram_size`, `bad_words_ids`, `sequence_bias`, `suppress_tokens`,
    `begin_suppress_tokens`, `min_p`, `typical_p`, `epsilon_cutoff` and `eta_cutoff`, and the order in
    which they are applied; of vLLM (https://docs.vllm.ai, `SamplingParams`) is the rest, which OpenAI's
    completions share where they have it.

    Attributes:
        max_new_tokens: most tokens of the answer. Prompt and answer together still end at the model's
            positions, and at `max_length` where that is given too.
        min_new_tokens: tokens before which nothing ends the text: stop tokens are not drawn, and stop
            strings are looked for after them only.
        stop: strings that end the text where they come up in the answer, across tokens too; a string
            alone is one of them. At most 32.
        include_stop_str_in_output: whether the text keeps the string that ended it.
        stop_token_ids: tokens that end the text, beside the model's own.
        ignore_eos: whether the model's own end tokens end nothing.
        temperature: divides the logits; 0 takes the most probable token. This and the next six draw
            from all tokens that they leave, in place of the sampler that is set; the order is theirs
            here, each on what the one before left.
        top_k: keeps so many of the most probable tokens; 0 and -1 keep all.
        top_p: keeps the most probable tokens whose probabilities together reach it.
        min_p: keeps the tokens with at least this share of the most probable one's probability.
        typical_p: keeps the tokens nearest to the expected information whose probabilities together
            reach it.
        epsilon_cutoff: keeps the tokens of at least this probability.
        eta_cutoff: the same, with a bound that is lower where the distribution is flat.
        seed: of the draws; the sampler's own by default.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens in the
            prompt or the answer; 1 changes nothing.
        presence_penalty: taken from the logits of tokens in the answer, -2 to 2.
        frequency_penalty: the same, for each time that they are there, -2 to 2.
        no_repeat_ngram_size: no so many tokens in a row come twice; 0 allows all.
        bad_words_ids: token sequences that are not written.
        sequence_bias: added to the logits of a sequence's last token after all its others: pairs of
            token ids and a number, or a mapping of tuples to numbers.
        suppress_tokens: token ids that are never drawn.
        begin_suppress_tokens: the same, of the answer's first token.
        logit_bias: token ids, and what is added to their logits, -100 to 100.
        allowed_token_ids: the only tokens that are drawn; `None` allows all.
        processors: functions of one's own, called in their order after all others: each takes the
            token ids so far, prompt included, and the logits float32 [vocabulary], which it may
            change, and returns logits of that shape. `float("-inf")` rules a token out. Example::

                def no_shouting(token_ids, logits):
                    logits[upper_case_ids] -= 5
                    return logits

        logprobs: log-probabilities of so many of the best tokens at each step, and of the one that was
            drawn, of the model as it is: before temperature, penalties and whatever else.
        prompt_logprobs: the same for the tokens of the prompt.
        json_schema: a JSON Schema, as a mapping or as text, that the answer satisfies. At most one of
            this and the next four; they need the extra `structured`.
        regex: a regular expression that the answer matches as a whole.
        choice: strings, one of which the answer is.
        grammar: a context-free grammar in Lark's notation that derives the answer.
        json_object: whether the answer is a JSON object.
        n: texts of the prompt. Which text the i-th is does not depend on how many there are.
        best_of: so many are written, and the n of them with the highest mean log-probability of a
            token are given.
        priority: of calls that wait, those with lower numbers are served first; of a call's prompts
            the lowest counts.

    Raises:
        ValueError: if a value is of another kind or out of range, or two contradict each other.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    seed: int | None = None

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    processors: tuple[LogitsFunction, ...] = ()

    logprobs: int | None = None
    prompt_logprobs: int | None = None

    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool = False

    n: int = 1
    best_of: int | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        for name, read in _READERS.items():
            # Brought to one form: what callers give may be lists, NumPy's numbers or a single string.
            object.__setattr__(self, name, read(name, getattr(self, name)))
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} must be at most "
                f"max_new_tokens={self.max_new_tokens}"
            )
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of={self.best_of} must be at least n={self.n}")
        if len(self.structure) > 1:
            raise ValueError(
                f"{' and '.join(self.structure)} are two structures; a text can have one of "
                f"{', '.join(STRUCTURES)}"
            )

    @property
    def structure(self) -> dict[str, Any]:
        """The option that gives the text a structure, by its name; empty without one."""
        values = {name: getattr(self, name) for name in STRUCTURES}
        return {
            name: value for name, value in values.items() if value is not None and value is not False
        }

    @property
    def sampling(self) -> dict[str, float]:
        """The options that are given of those that say how tokens are drawn."""
        values = {name: getattr(self, name) for name in SAMPLING}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationOptions:
        """Options from plain values, as of JSON; `null` leaves an option as it is without it.

        Raises:
            ValueError: if there is no such option, or a value is not valid.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"options must be a mapping of names to values, got {shown(values)}")
        known = {entry.name for entry in fields(cls)} - {"processors"}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(
                f"there is no option {shown(unknown[0])}; there are {', '.join(sorted(known))}"
            )
        return cls(**{name: value for name, value in values.items() if value is not None})

    def after(self, base: GenerationOptions) -> GenerationOptions:
        """These options, and those of `base` that are not given here; of structures one.

        A limit of `base` that contradicts one of these gives way to it.
        """
        given = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if getattr(self, entry.name) != _DEFAULTS[entry.name]
        }
        if self.structure:
            given = {name: _DEFAULTS[name] for name in STRUCTURES} | given
        for least, most in (("min_new_tokens", "max_new_tokens"), ("n", "best_of")):
            low, high = (given.get(name, getattr(base, name)) for name in (least, most))
            if high is not None and low > high:
                given |= {least: high} if most in given else {most: low}
        return replace(base, **given)

    def to_dict(self) -> dict[str, Any]:
        """The options that are not as they are by themselves, as plain JSON values.

        Raises:
            ValueError: if there are processors, which are functions.
        """
        if self.processors:
            raise ValueError("processors are functions, which have no JSON")
        found: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value != _DEFAULTS[entry.name]:
                found[entry.name] = _plain(value)
        return found

    def token_ids(self) -> dict[str, list[int]]:
        """All token ids that the options name, by option."""
        return {
            "stop_token_ids": [*self.stop_token_ids],
            "bad_words_ids": [token for word in self.bad_words_ids for token in word],
            "sequence_bias": [token for sequence, _ in self.sequence_bias for token in sequence],
            "suppress_tokens": [*self.suppress_tokens],
            "begin_suppress_tokens": [*self.begin_suppress_tokens],
            "logit_bias": [*self.logit_bias],
            "allowed_token_ids": [*(self.allowed_token_ids or ())],
        }

    def check_vocabulary(self, size: int) -> None:
        """Raises `ValueError` if a token id is none of a vocabulary of this size."""
        for name, ids in self.token_ids().items():
            if bad := [token for token in ids if token >= size]:
                raise ValueError(
                    f"{name} must be ids of the model's vocabulary, 0 to {size - 1}; got "
                    f"{shown(bad[0])}"
                )


def read_options(options: Any, count: int) -> list[GenerationOptions]:
    """One set of options for each of some prompts.

    Args:
        options: `GenerationOptions` for all, a sequence with one for each, or `None`.
        count: of prompts.

    Raises:
        ValueError: if they are of another kind or number.
    """
    if options is None:
        return [NO_OPTIONS] * count
    if isinstance(options, GenerationOptions):
        return [options] * count
    each = list(options) if isinstance(options, (list, tuple)) else [options]
    strange = [value for value in each if not isinstance(value, GenerationOptions)]
    if strange:
        raise ValueError(
            f"options must be GenerationOptions, or one for each prompt; got {shown(strange[0])}"
        )
    if len(each) != count:
        raise ValueError(
            f"options must be one for all prompts, or {count}, one for each; got {len(each)}"
        )
    return each


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": whole(0, none=True),
    "min_new_tokens": whole(0),
    "stop": lambda name, value: read_stops(value, name),
    "include_stop_str_in_output": read_flag,
    "stop_token_ids": read_ids,
    "ignore_eos": read_flag,
    "temperature": real(0, math.inf, none=True),
    "top_k": read_top_k,
    "top_p": real(0, 1, none=True, open_least=True),
    "min_p": real(0, 1, none=True),
    "typical_p": real(0, 1, none=True, open_least=True),
    "epsilon_cutoff": real(0, 1, none=True, open_most=True),
    "eta_cutoff": real(0, 1, none=True, open_most=True),
    "seed": whole(0, none=True),
    "repetition_penalty": real(0, math.inf, open_least=True),
    "presence_penalty": real(-2, 2),
    "frequency_penalty": real(-2, 2),
    "no_repeat_ngram_size": whole(0),
    "bad_words_ids": read_id_sequences,
    "sequence_bias": read_sequence_biases,
    "suppress_tokens": read_ids,
    "begin_suppress_tokens": read_ids,
    "logit_bias": read_biases,
    "allowed_token_ids": lambda name, value: None if value is None else read_ids(name, value),
    "processors": read_functions,
    "logprobs": whole(0, MOST_LOG_PROBABILITIES, none=True),
    "prompt_logprobs": whole(0, MOST_LOG_PROBABILITIES, none=True),
    "json_schema": read_schema,
    "regex": read_text,
    "choice": lambda name, value: None if value is None else read_texts(name, value),
    "grammar": read_text,
    "json_object": read_flag,
    "n": whole(1, MOST_SAMPLES),
    "best_of": whole(1, MOST_SAMPLES, none=True),
    "priority": whole(-1000, 1000),
}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return value


NO_OPTIONS = GenerationOptions()
_DEFAULTS = {entry.name: getattr(NO_OPTIONS, entry.name) for entry in fields(NO_OPTIONS)}
