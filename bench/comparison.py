"""Measures several systems side by side: who is asked what, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.comparison_result import (
    Case,
    CaseResult,
    Comparison,
    Settings,
    SystemResult,
    Trial,
    choose_reference,
)
from bench.logit_error import LogitErrorSum
from bench.measure import Spread, random_prompts
from bench.workers.process import Worker
from bench.workers.protocol import RefusalError
from graphs.contract import ModelConfig

QUALITY_ROWS, QUALITY_PLACES = 4, 16  # rows whose logits are compared, after their last tokens

Prompts = tuple[NDArray[np.int64], NDArray[np.int64]]


def compare(
    workers: Sequence[Worker],
    config: ModelConfig,
    settings: Settings,
    weight_bytes: Mapping[str, int],
    read_bandwidth: Callable[[], float],
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Asks each worker in turn, trial after trial, with the same new prompts for all.

    Args:
        workers: in the order to take turns.
        config: of the model that all have loaded.
        settings: what to measure.
        weight_bytes: that a decode step of each system reads, by name.
        read_bandwidth: reads memory and tells bytes per second; takes its turn in each trial.
        progress: told what is being done.

    Raises:
        WorkerError: if a worker dies or does not do what it was asked to.
    """
    results = [
        SystemResult(w.system, w.versions, w.load_seconds, weight_bytes[w.name]) for w in workers
    ]
    bandwidths: list[float] = []
    for case in settings.cases:
        generator = np.random.default_rng([settings.seed, case.batch, case.prompt_tokens])
        prompts = _new_prompts(generator, case, config)
        for worker, result in zip(workers, results, strict=True):
            progress(f"{case}: warming up {worker.name}")
            result.cases[case] = _warm_up(worker, prompts, settings)
        for trial in range(settings.trials):
            progress(f"{case}: trial {trial + 1} of {settings.trials}")
            prompts = _new_prompts(generator, case, config)
            bandwidths.append(read_bandwidth())
            for worker, result in zip(workers, results, strict=True):
                if result.cases[case].refusal is None:
                    result.cases[case].trials.append(_trial(worker, prompts, settings))
                    result.peak_memory_bytes = worker.peak_memory_bytes
    reference = choose_reference(worker.system for worker in workers)
    progress("comparing logits")
    _compare_logits(workers, results, reference, config, settings)
    return Comparison(config, settings, results, Spread.of(bandwidths), reference)


def _new_prompts(generator: np.random.Generator, case: Case, config: ModelConfig) -> Prompts:
    shape = (case.batch, case.prompt_tokens)
    one, other = (random_prompts(generator, config.vocabulary_size, *shape) for _ in range(2))
    return one, other


def _warm_up(worker: Worker, prompts: Prompts, settings: Settings) -> CaseResult:
    try:
        trial = _trial(worker, prompts, settings)
    except RefusalError as refusal:
        return CaseResult(refusal=str(refusal))
    return CaseResult(first_call_seconds=trial.whole.seconds)


def _trial(worker: Worker, prompts: Prompts, settings: Settings) -> Trial:
    # Two prompts, so that a system that remembers a prompt's cache does not skip the second prefill.
    return Trial(worker.generate(prompts[0], 1), worker.generate(prompts[1], settings.new_tokens))


def _compare_logits(
    workers: Sequence[Worker],
    results: Sequence[SystemResult],
    reference: str | None,
    config: ModelConfig,
    settings: Settings,
) -> None:
    """Sets `logit_error` of the systems that give logits; after the trials, as it costs memory."""
    expecting = next((w for w in workers if w.name == reference), None)
    if expecting is None or not expecting.gives_logits:
        return
    length = settings.prompt_tokens[0]
    generator = np.random.default_rng([settings.seed, length])
    tokens = random_prompts(generator, config.vocabulary_size, QUALITY_ROWS, length)
    places = min(QUALITY_PLACES, length)
    expected = expecting.logits(tokens, places)
    for worker, result in zip(workers, results, strict=True):
        if worker.gives_logits:
            said = expected if worker is expecting else worker.logits(tokens, places)
            found = LogitErrorSum()
            found.add(said, expected)
            result.logit_error = found.result()
