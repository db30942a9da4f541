"""What `generate` gives back, in the form of what it was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engine.call import Call
from runtime.engine.sequence import Sequence as Row
from runtime.inputs import PADDING_MASK, TOKEN_IDS, TokenBatch
from runtime.results import Beam, GenerationResult
from runtime.tokenization.tokenizer import Tokenizer

SCORES = "scores"


def give_results(call: Call, tokenizer: Tokenizer | None, strip_prompt: bool) -> list[GenerationResult]:
    """The outcome of each row, with texts where there is a tokenizer."""

    def text(row: Row, answer: Sequence[int]) -> str | None:
        if tokenizer is None:
            return None
        prompt = () if strip_prompt else row.request.prompt
        return tokenizer.decode([*prompt, *answer], skip_special_tokens=True)

    def beams(row: Row) -> tuple[Beam, ...] | None:
        if row.hypotheses is None:
            return None
        return tuple(
            Beam(text(row, h.token_ids), h.token_ids, h.score, h.finish_reason) for h in row.hypotheses
        )

    return [
        GenerationResult(
            text=text(row, row.token_ids),
            prompt_token_ids=row.request.prompt,
            token_ids=tuple(row.token_ids),
            finish_reason=row.finish_reason or "length",
            prefill_seconds=row.read_seconds,
            decode_seconds=row.decode_seconds,
            beams=beams(row),
            cached_prompt_tokens=row.cached_prompt_tokens,
        )
        for row in call.sequences
    ]


def give_texts(results: Sequence[GenerationResult], single: bool) -> Any:
    """Texts of a batch of strings; with all beams `(lists of texts, scores [batch, num_beams])`.

    `single` takes the first of each: for one string that was given without a list around it.
    """
    if results[0].beams is None:
        texts = [result.text for result in results]
        return texts[0] if single else texts
    beams = [result.beams or () for result in results]
    texts_of = [[beam.text for beam in row] for row in beams]
    scores = np.array([[beam.score for beam in row] for row in beams], np.float32)
    return (texts_of[0], scores[0]) if single else (texts_of, scores)


def give_tokens(batch: TokenBatch, rows: Sequence[Row], strip_prompt: bool) -> dict[str, Any]:
    """The rows written into arrays of the input's shape, with an axis of beams where there are.

    Returns:
        `token_ids` int32 and `padding_mask` bool [batch, length]. With all beams both are [batch,
        num_beams, length], and there is `scores` float32 [batch, num_beams].
    """
    found: dict[str, NDArray[Any]] = {}
    if rows[0].hypotheses is None:
        answers = [row.token_ids for row in rows]
        found[TOKEN_IDS], found[PADDING_MASK] = _fill(batch, rows, answers, strip_prompt)
    else:
        ranks = zip(*(row.hypotheses or () for row in rows), strict=True)
        filled = [_fill(batch, rows, [h.token_ids for h in rank], strip_prompt) for rank in ranks]
        found[TOKEN_IDS] = np.stack([token_ids for token_ids, _ in filled], axis=1)
        found[PADDING_MASK] = np.stack([mask for _, mask in filled], axis=1)
        scores = [[h.score for h in row.hypotheses or ()] for row in rows]
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
