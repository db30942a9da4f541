"""Measures several systems side by side, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.measure import Spread, random_prompts
from bench.workers.process import Generation, Worker
from graphs.contract import ModelConfig


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        prompt_tokens, new_tokens: of each row; at least two new ones, as prefill gives the first.
        batch: rows.
        trials: of each system, not counting the one that warms up.
        threads: CPU threads of each system.
        seed: of the random prompts.
    """

    prompt_tokens: int = 128
    new_tokens: int = 64
    batch: int = 1
    trials: int = 5
    threads: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """One new token after one prompt, which is prefill, and all of them after another prompt."""

    prefill: Generation
    whole: Generation


@dataclass
class SystemResult:
    """What one system did.

    Attributes:
        first_call_seconds: of the first whole generation, which compiles where a system does that.
        trials: the ones that count.
        For the others see `bench.workers.process.Worker`.
    """

    name: str
    versions: dict[str, str]
    load_seconds: float
    first_call_seconds: float
    peak_memory_bytes: int | None = None
    trials: list[Trial] = field(default_factory=list)

    @property
    def prefill_ms(self) -> Spread:
        """Milliseconds to the first new token."""
        return Spread.of(1e3 * trial.prefill.seconds for trial in self.trials)

    @property
    def whole_seconds(self) -> Spread:
        """Seconds for all tokens."""
        return Spread.of(trial.whole.seconds for trial in self.trials)

    @property
    def decode_ms_per_token(self) -> Spread:
        """Milliseconds for each token after the first: what a whole generation takes beyond prefill."""
        return Spread.of(
            1e3 * (trial.whole.seconds - trial.prefill.seconds) / (trial.whole.token_ids.shape[1] - 1)
            for trial in self.trials
        )

    @cached_property
    def token_ids(self) -> NDArray[np.int64]:
        """All tokens of all trials, flat."""
        parts = [part.token_ids for trial in self.trials for part in (trial.prefill, trial.whole)]
        return np.concatenate([part.ravel() for part in parts])

    def agreement(self, other: SystemResult) -> float:
        """Share of tokens that are the same as the other's at the same place."""
        return float((self.token_ids == other.token_ids).mean())


@dataclass(frozen=True)
class Comparison:
    """What all systems did on the same model and prompts, in one interleaved run."""

    config: ModelConfig
    settings: Settings
    systems: list[SystemResult]

    @property
    def baseline(self) -> SystemResult:
        """The system that the others are set against: this project's, or else the first one."""
        return next((s for s in self.systems if s.name == "opt-onnx"), self.systems[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `ratios` are medians over the baseline's."""
        return {
            "model": self.config.to_dict(),
            "settings": asdict(self.settings),
            "baseline": self.baseline.name,
            "systems": [self._system_dict(system) for system in self.systems],
        }

    def _system_dict(self, system: SystemResult) -> dict[str, Any]:
        spreads = {
            name: (getattr(system, name), getattr(self.baseline, name))
            for name in ("prefill_ms", "decode_ms_per_token", "whole_seconds")
        }
        return {
            "name": system.name,
            "versions": system.versions,
            "load_seconds": system.load_seconds,
            "first_call_seconds": system.first_call_seconds,
            "peak_memory_bytes": system.peak_memory_bytes,
            **{name: asdict(spread) for name, (spread, _) in spreads.items()},
            "ratios": {name: own.median / base.median for name, (own, base) in spreads.items()},
            "token_agreement": system.agreement(self.baseline),
            "trials": [
                {"prefill_seconds": t.prefill.seconds, "whole_seconds": t.whole.seconds}
                for t in system.trials
            ],
        }


def compare(
    workers: Sequence[Worker],
    config: ModelConfig,
    settings: Settings,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Asks each worker in turn, trial after trial, with the same new prompts for all.

    Raises:
        WorkerError: if a worker dies or does not do what it was asked to.
    """
    generator = np.random.default_rng(settings.seed)

    def new_prompts() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shape = (settings.batch, settings.prompt_tokens)
        one, other = (random_prompts(generator, config.vocabulary_size, *shape) for _ in range(2))
        return one, other

    prompts = new_prompts()
    results = []
    for worker in workers:
        progress(f"warming up {worker.name}")
        warm_up = _trial(worker, prompts, settings)
        first_call = warm_up.whole.seconds
        results.append(SystemResult(worker.name, worker.versions, worker.load_seconds, first_call))
    for trial in range(settings.trials):
        progress(f"trial {trial + 1} of {settings.trials}")
        prompts = new_prompts()
        for worker, result in zip(workers, results, strict=True):
            result.trials.append(_trial(worker, prompts, settings))
            result.peak_memory_bytes = worker.peak_memory_bytes
    return Comparison(config, settings, results)


def _trial(
    worker: Worker, prompts: tuple[NDArray[np.int64], NDArray[np.int64]], settings: Settings
) -> Trial:
    # Two prompts, so that a system that remembers a prompt's cache does not skip the second prefill.
    return Trial(worker.generate(prompts[0], 1), worker.generate(prompts[1], settings.new_tokens))
