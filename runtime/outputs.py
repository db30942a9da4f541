"""What `generate` gives back, in the form of what it was given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.engine.call import Call
from runtime.engine.request import Request
from runtime.engine.sequence import Hypothesis
from runtime.engine.sequence import Sequence as Row
from runtime.engine.text.answer_text import AnswerText
from runtime.inputs import PADDING_MASK, TOKEN_IDS, TokenBatch
from runtime.log_probabilities import log_probabilities
from runtime.results import Beam, GenerationResult
from runtime.tokenization.tokenizer import Tokenizer

SCORES = "scores"
Found = TypeVar("Found")  # a beam


def give_results(call: Call, tokenizer: Tokenizer | None, strip_prompt: bool) -> list[GenerationResult]:
    """The outcome of each prompt, with texts where there is a tokenizer."""
    texts: list[list[GenerationResult]] = []
    for row in call.sequences:
        if not row.request.sample:
            texts.append([])
        texts[-1].append(_result(row, tokenizer, strip_prompt))
    kept = [row.request.kept_samples for row in call.sequences if not row.request.sample]
    return [_chosen(found, count) for found, count in zip(texts, kept, strict=True)]


def begin_text(request: Request, tokenizer: Tokenizer, strip_prompt: bool) -> AnswerText:
    """The text of a request that has no new token yet: its prompt, or nothing."""
    prompt = () if strip_prompt else request.prompt
    if request.text_ends is None:
        return AnswerText(tokenizer, prompt=prompt)
    return request.text_ends.begin(prompt)


def _result(row: Row, tokenizer: Tokenizer | None, strip_prompt: bool) -> GenerationResult:
    """The outcome of one sequence."""
    text = None if tokenizer is None else _whole_text(row, row.token_ids, tokenizer, strip_prompt)
    beams = None
    if row.hypotheses is not None:
        beams = tuple(_beam(row, found, tokenizer, strip_prompt) for found in row.hypotheses)
    logprobs, prompt_logprobs = log_probabilities(row, tokenizer, text, strip_prompt)
    return GenerationResult(
        text=None if text is None else text.text,
        prompt_token_ids=row.request.prompt,
        token_ids=tuple(row.token_ids),
        finish_reason=row.finish_reason or "length",
        prefill_seconds=row.read_seconds,
        decode_seconds=row.decode_seconds,
        beams=beams,
        cached_prompt_tokens=row.cached_prompt_tokens,
        stop_reason=_stop_reason(row, text),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _whole_text(
    row: Row, answer: Sequence[int], tokenizer: Tokenizer, strip_prompt: bool
) -> AnswerText:
    """The text of a sequence with these new tokens, which ends as it did while they came."""
    text = begin_text(row.request, tokenizer, strip_prompt)
    for token_id in answer:
        text.push(token_id)
    text.finish()
    return text


def _stop_reason(row: Row, text: AnswerText | None) -> int | str | None:
    """The stop string or the token that ended a sequence."""
    if text is not None and text.match is not None:
        return text.match.stop
    last = row.token_ids[-1] if row.token_ids else None
    return last if row.finish_reason == "stop" and last in row.request.stop_token_ids else None


def _beam(row: Row, found: Hypothesis, tokenizer: Tokenizer | None, strip_prompt: bool) -> Beam:
    text = None
    if tokenizer is not None:
        text = _whole_text(row, found.token_ids, tokenizer, strip_prompt).text
    return Beam(text, found.token_ids, found.score, found.finish_reason)


def _chosen(texts: Sequence[GenerationResult], count: int) -> GenerationResult:
    """The best of a prompt's texts, by the mean log-probability of a token where there are more."""
    if len(texts) > count:
        prompt = texts[0].prompt_logprobs  # which the first one tells of
        texts = sorted(texts, key=_mean_log_probability, reverse=True)[:count]
        texts = [replace(text, prompt_logprobs=None) for text in texts]
        texts[0] = replace(texts[0], prompt_logprobs=prompt)
    return texts[0] if len(texts) == 1 else replace(texts[0], samples=tuple(texts))


def _mean_log_probability(result: GenerationResult) -> float:
    found = [token.log_probability for token in result.logprobs or ()]
    return math.fsum(found) / len(found) if found else -math.inf


def give_texts(results: Sequence[GenerationResult], single: bool, num_beams: int) -> Any:
    """Texts of a batch of strings; with all beams `(lists of texts, scores [batch, num_beams])`.

    Where the options allow fewer texts than beams, those that are missing are empty and have the score
    minus infinity.

    Where several texts of a prompt were asked for, a list of them stands in the place of each string.
    `single` takes the first of each: for one string that was given without a list around it.
    """
    if results[0].beams is None:
        texts = [
            result.text if result.samples is None else [sample.text for sample in result.samples]
            for result in results
        ]
        return texts[0] if single else texts
    missing = Beam("", (), -math.inf, "length")
    beams = [_filled(result.beams, num_beams, missing) for result in results]
    texts_of = [[beam.text for beam in row] for row in beams]
    scores = np.array([[beam.score for beam in row] for row in beams], np.float32)
    return (texts_of[0], scores[0]) if single else (texts_of, scores)


def _filled(beams: tuple[Found, ...] | None, count: int, missing: Found) -> tuple[Found, ...]:
    """As many beams as were asked for."""
    beams = beams or ()
    return (*beams, *[missing] * (count - len(beams)))


def give_tokens(
    batch: TokenBatch, rows: Sequence[Row], strip_prompt: bool, num_beams: int
) -> dict[str, Any]:
    """The rows written into arrays of the input's shape, with an axis of beams where there are.

    Beams that are missing, see `give_texts`, have no new token.

    Returns:
        `token_ids` int32 and `padding_mask` bool [batch, length]. With all beams both are [batch,
        num_beams, length], and there is `scores` float32 [batch, num_beams].
    """
    found: dict[str, NDArray[Any]] = {}
    if rows[0].hypotheses is None:
        answers = [row.token_ids for row in rows]
        found[TOKEN_IDS], found[PADDING_MASK] = _fill(batch, rows, answers, strip_prompt)
    else:
        missing = Hypothesis((), -math.inf, "length")
        beams = [_filled(row.hypotheses, num_beams, missing) for row in rows]
        ranks = zip(*beams, strict=True)
        filled = [_fill(batch, rows, [h.token_ids for h in rank], strip_prompt) for rank in ranks]
        found[TOKEN_IDS] = np.stack([token_ids for token_ids, _ in filled], axis=1)
        found[PADDING_MASK] = np.stack([mask for _, mask in filled], axis=1)
        scores = [[h.score for h in row] for row in beams]
        found[SCORES] = np.array(scores, np.float32)
    return {name: value[0] for name, value in found.items()} if batch.single else found


def _fill(
    batch: TokenBatch, rows: Sequence[Row], answers: Sequence[Sequence[int]], strip_prompt: bool
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Token ids and mask with each row's answer after its prompt, or in place of it."""
    token_ids = batch.token_ids.astype(np.int32)
    mask = batch.padding_mask.copy()
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        start = len(row.request.prompt)
        if strip_prompt:
            start, mask[i] = 0, False
        end = start + len(answer)
        token_ids[i, start:end] = answer
        mask[i, start:end] = True
    return token_ids, mask


def join(parts: Iterator[Any]) -> Any:
    """The results of several batches as one: lists end to end, arrays by row."""
    found = list(parts)
    if not found:
        return []
    if isinstance(found[0], dict):
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    if isinstance(found[0], tuple):
        texts, scores = zip(*found, strict=True)
        return [text for part in texts for text in part], np.concatenate(scores)
    return [text for part in found for text in part]
