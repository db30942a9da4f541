"""What came of a comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.logit_error import LogitError
from bench.measure import Spread
from bench.workers.process import Generation
from bench.workers.systems import PRECISIONS, System
from graphs.contract import ModelConfig

COMPARED_TOKENS = 16  # of each generation: once one differs, all after it may


@dataclass(frozen=True)
class Case:
    """Rows, and prompt tokens of each."""

    batch: int
    prompt_tokens: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.prompt_tokens} prompt tokens"


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        batches, prompt_tokens: each with each is a case.
        new_tokens: of each row; at least two, as prefill gives the first.
        trials: of each system and case, not counting the one that warms up.
        threads: CPU threads of each system.
        seed: of the random prompts.
    """

    batches: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = (128,)
    new_tokens: int = 64
    trials: int = 5
    threads: int = 2
    seed: int = 0

    @property
    def cases(self) -> list[Case]:
        """In the order in which they are measured."""
        return [Case(batch, tokens) for batch in self.batches for tokens in self.prompt_tokens]


@dataclass(frozen=True)
class Trial:
    """One new token after one prompt, which is prefill, and all of them after another prompt."""

    prefill: Generation
    whole: Generation


@dataclass
class CaseResult:
    """What one system did in one case.

    Attributes:
        first_call_seconds: of the first whole generation, which compiles where a system does that.
        trials: the ones that count; none if the system refused.
        refusal: why it cannot do the case.
    """

    first_call_seconds: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    refusal: str | None = None

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

    def same_tokens(self, other: CaseResult) -> float:
        """Share of the first tokens of each generation that the other has at the same place."""
        return float((self._first_tokens() == other._first_tokens()).mean())

    def _first_tokens(self) -> NDArray[np.int64]:
        parts = [part.token_ids for trial in self.trials for part in (trial.prefill, trial.whole)]
        return np.concatenate([part[:, :COMPARED_TOKENS].ravel() for part in parts])


@dataclass
class SystemResult:
    """What one system did in all cases.

    Attributes:
        system: which.
        weight_bytes: that a decode step reads.
        cases: by case.
        logit_error: beside the reference's; `None` where either gives no logits.
        For the others see `bench.workers.process.Worker`.
    """

    system: System
    versions: dict[str, str]
    load_seconds: float
    weight_bytes: int
    peak_memory_bytes: int | None = None
    cases: dict[Case, CaseResult] = field(default_factory=dict)
    logit_error: LogitError | None = None

    @property
    def name(self) -> str:
        """The system's."""
        return self.system.name


FIGURES = ("prefill_ms", "decode_ms_per_token", "whole_seconds")


@dataclass(frozen=True)
class Advantage:
    """A bundle beside the fastest other system at its precision: its median over the bundle's."""

    peer: str
    times_as_fast: float


@dataclass(frozen=True)
class Comparison:
    """What all systems did on the same model and prompts, in one interleaved run.

    Attributes:
        read_bandwidth: of the machine in the same run, bytes per second.
        reference: name of the system whose tokens and logits stand for float32; `None` without any.
    """

    config: ModelConfig
    settings: Settings
    systems: list[SystemResult]
    read_bandwidth: Spread
    reference: str | None

    @property
    def precisions(self) -> list[str]:
        """Those of the systems, the known ones in order first."""
        found = {result.system.precision for result in self.systems}
        return [*(p for p in PRECISIONS if p in found), *sorted(found.difference(PRECISIONS))]

    def of_precision(self, precision: str) -> list[SystemResult]:
        """The systems of a precision."""
        return [result for result in self.systems if result.system.precision == precision]

    def baseline(self, result: SystemResult, case: Case) -> SystemResult:
        """What a system is set against in a case: at the same precision this project, or the first.

        Only systems that did the case count; there is one, as `result` did.
        """
        able = [r for r in self.of_precision(result.system.precision) if r.cases[case].trials]
        return next((r for r in able if r.system.checkpoint == "bundle"), able[0])

    def ratios(self, result: SystemResult, case: Case) -> dict[str, float]:
        """Medians over the baseline's."""
        base = self.baseline(result, case)
        return {
            figure: _median(result.cases[case], figure) / _median(base.cases[case], figure)
            for figure in FIGURES
        }

    def fastest_peer(self, result: SystemResult, case: Case, figure: str) -> SystemResult | None:
        """Of the other systems at the same precision the one with the least median of a figure.

        `None` where no other system did the case.
        """
        peers = [
            other
            for other in self.of_precision(result.system.precision)
            if other.system.checkpoint != "bundle" and other.cases[case].trials
        ]
        return min(peers, key=lambda peer: _median(peer.cases[case], figure), default=None)

    def advantages(self, result: SystemResult, case: Case) -> dict[str, Advantage]:
        """How many times as fast as the fastest peer a bundle is, by figure; empty without peers."""
        found = {}
        for figure in FIGURES:
            peer = self.fastest_peer(result, case, figure)
            if peer is not None:
                own = _median(result.cases[case], figure)
                found[figure] = Advantage(peer.name, _median(peer.cases[case], figure) / own)
        return found

    def bandwidth_share(self, result: SystemResult, case: Case) -> float:
        """Bytes of weights in the time of a decode step, over the machine's read bandwidth."""
        seconds = result.cases[case].decode_ms_per_token.median / 1e3
        return result.weight_bytes / seconds / self.read_bandwidth.median

    def same_tokens(self, result: SystemResult, case: Case) -> float | None:
        """Share of first tokens that equal the reference's, where it did the case."""
        reference = next((r for r in self.systems if r.name == self.reference), None)
        if reference is None or not reference.cases[case].trials:
            return None
        return result.cases[case].same_tokens(reference.cases[case])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.config.to_dict(),
            "settings": asdict(self.settings),
            "read_bandwidth_bytes_per_second": asdict(self.read_bandwidth),
            "reference": self.reference,
            "systems": [_system_values(result) for result in self.systems],
            "cases": [
                {**asdict(case), "systems": [self._case_values(r, case) for r in self.systems]}
                for case in self.settings.cases
            ],
        }

    def _case_values(self, result: SystemResult, case: Case) -> dict[str, Any]:
        found = result.cases[case]
        values: dict[str, Any] = {"name": result.name, "precision": result.system.precision}
        if not found.trials:
            return {**values, "refusal": found.refusal}
        if result.system.checkpoint == "bundle":
            advantages = self.advantages(result, case)
            values["fastest_peers"] = {figure: asdict(found) for figure, found in advantages.items()}
        return {
            **values,
            "baseline": self.baseline(result, case).name,
            **{figure: asdict(getattr(found, figure)) for figure in FIGURES},
            "ratios": self.ratios(result, case),
            "bandwidth_share": self.bandwidth_share(result, case),
            "same_tokens": self.same_tokens(result, case),
            "first_call_seconds": found.first_call_seconds,
            "trials": [
                {"prefill_seconds": t.prefill.seconds, "whole_seconds": t.whole.seconds}
                for t in found.trials
            ],
        }


def choose_reference(systems: Iterable[System]) -> str | None:
    """Name of the system that stands for float32: transformers, else this project, else the first."""
    exact = [system for system in systems if system.precision == "fp32"]
    exact.sort(key=lambda system: (system.name != "transformers", system.checkpoint != "bundle"))
    return exact[0].name if exact else None


def _median(found: CaseResult, figure: str) -> float:
    spread: Spread = getattr(found, figure)
    return spread.median


def _system_values(result: SystemResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "precision": result.system.precision,
        "versions": result.versions,
        "load_seconds": result.load_seconds,
        "weight_bytes": result.weight_bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "logit_error": None if result.logit_error is None else asdict(result.logit_error),
    }
