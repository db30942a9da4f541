"""What is measured of a bundle on a card, beside transformers on the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.gpu_peers import TransformersModel
from bench.logit_error import LogitErrorSum
from bench.measure import Spread, random_prompts
from bench.step_overhead import SessionClock, StepTimes, new_call, new_engine, time_steps
from graphs.contract import ModelConfig
from runtime.decoder import Decoder
from runtime.generator import Generator
from runtime.probe import teacher_forced_logits
from runtime.samplers import GreedySampler

TRIALS = 3  # after one that warms up, captures graphs and compiles
PARITY_ROWS = 8
PARITY_TOKENS = 32
FORCED_STEPS = 8  # of which logits are compared
LONGEST_PROMPT = 40
PREFILL_TOKENS = 2048
FIRST_ID = 4  # random prompts have no special tokens

Contestant = Callable[[Sequence[int], int], list[float]]


def decode_lengths(config: ModelConfig) -> tuple[int, int]:
    """Prompt and new tokens of decode measurements: 128 and 64 where the model has the positions."""
    return min(128, config.max_sequence_length // 2), min(64, config.max_sequence_length // 4)


def ragged_prompts(config: ModelConfig) -> list[list[int]]:
    """Prompts of different lengths, one of them a single token."""
    generator = np.random.default_rng(7)
    lengths = [1, *generator.integers(2, LONGEST_PROMPT, PARITY_ROWS - 1).tolist()]
    return [generator.integers(FIRST_ID, config.vocabulary_size, n).tolist() for n in lengths]


# === Parity ===


def compare_tokens(generator: Generator, peer: TransformersModel) -> dict[str, Any]:
    """Greedy tokens of a ragged batch beside transformers', which gets the prompts one by one."""
    prompts = ragged_prompts(generator.config)
    token_ids, mask = _padded(prompts, PARITY_TOKENS)
    found = generator.generate({"token_ids": token_ids, "padding_mask": mask}, stop_token_ids=None)
    wanted = [peer.greedy(prompt, PARITY_TOKENS) for prompt in prompts]
    rows = zip(prompts, found["token_ids"], wanted, strict=True)
    equal = [
        row[len(prompt) : len(prompt) + PARITY_TOKENS].tolist() == tokens
        for prompt, row, tokens in rows
    ]
    distinct = len({token for tokens in wanted for token in tokens})
    facts = {"identical": sum(equal), "prompts": len(prompts), "new_tokens": PARITY_TOKENS}
    return {**facts, "distinct_tokens": distinct}


def compare_logits(decoder: Decoder, peer: TransformersModel) -> dict[str, Any]:
    """Logits of a ragged batch, after its prompts and some steps, beside transformers' in float32."""
    prompts = ragged_prompts(decoder.config)
    rows = [[*prompt, *peer.greedy(prompt, FORCED_STEPS)] for prompt in prompts]
    token_ids, _ = _padded(rows, FORCED_STEPS)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    logits = teacher_forced_logits(decoder, token_ids, lengths, FORCED_STEPS)
    wanted = np.stack([peer.logits(row, FORCED_STEPS + 1) for row in rows])
    error = LogitErrorSum()
    error.add(logits, wanted)
    return {**asdict(error.result()), "finite": bool(np.isfinite(logits).all())}


def _padded(rows: list[list[int]], more: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows with room for as many tokens again."""
    token_ids = np.ones((len(rows), max(map(len, rows)) + more), np.int64)
    mask = np.zeros(token_ids.shape, bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return token_ids, mask


# === Speed ===


def time_decode(
    decoder: Decoder, clock: SessionClock, batch: int = 1, peers: Mapping[str, Contestant] | None = None
) -> dict[str, Any]:
    """Milliseconds of decode steps; systems take turns, trial by trial.

    Args:
        decoder: the model.
        clock: from `step_overhead.session_clock`.
        batch: rows.
        peers: others, which get the first row's prompt. What one of them raises ends its own part
            and is returned as its error.
    """
    prompt_tokens, new_tokens = decode_lengths(decoder.config)
    random = np.random.default_rng(0)
    engine, ours = new_engine(decoder, batch), StepTimes()
    others: dict[str, list[float]] = {name: [] for name in peers or {}}
    errors: dict[str, str] = {}
    for trial in range(1 + TRIALS):
        prompts = random_prompts(random, decoder.config.vocabulary_size, batch, prompt_tokens).tolist()
        times = time_steps(engine, new_call(decoder, GreedySampler(), prompts, new_tokens), clock)
        if trial:
            ours.whole += times.whole
            ours.outside += times.outside
        for name, run in (peers or {}).items():
            if name in errors:
                continue
            try:
                seconds = run(prompts[0], new_tokens)
            except Exception as error:  # whatever goes wrong within torch or its compiler
                errors[name] = told(error)
                continue
            others[name] += seconds if trial else []
    result: dict[str, Any] = {
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "seconds": asdict(Spread.of(ours.whole)),
        "outside_seconds": asdict(Spread.of(ours.outside)),
    }
    measured = {name: found for name, found in others.items() if name not in errors}
    result["peers"] = {name: asdict(Spread.of(found)) for name, found in measured.items()}
    result["peer_errors"] = errors
    return result


def time_prefill(decoder: Decoder) -> dict[str, Any]:
    """Seconds from a long prompt to its first token, without making the cache."""
    tokens = min(PREFILL_TOKENS, decoder.config.max_sequence_length)
    random = np.random.default_rng(0)
    seconds = []
    for trial in range(1 + TRIALS):
        prompt = random_prompts(random, decoder.config.vocabulary_size, 1, tokens)
        cache = decoder.new_cache(1, tokens)
        started = time.perf_counter()
        output = decoder.append(cache, prompt, np.array([tokens], np.int32))
        if output.best is None:
            output.logits.argmax(axis=-1)
        if trial:
            seconds.append(time.perf_counter() - started)
        del cache
    return {"tokens": tokens, "seconds": asdict(Spread.of(seconds))}


def told(error: BaseException) -> str:
    """An error in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
