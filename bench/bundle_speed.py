"""Measures one bundle: loading, prefill and decode at several batch sizes, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.measure import Spread, check_room, random_prompts, time_generation
from bench.system import Hardware, describe_hardware
from graphs.manifest import Manifest
from graphs.versions import package_versions
from runtime.bundle import load_bundle
from runtime.decoder import Decoder
from runtime.system.memory import ResidentMemory, peak_memory_bytes, resident_memory

PACKAGES = ("opt-onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        prompt_tokens, new_tokens: of each row; at least two new ones, as prefill gives the first.
        batches: batch sizes.
        trials: of each batch size, not counting the one that warms up.
        threads, device, packed_weights: as `runtime.open_decoder` takes them.
        seed: of the random prompts.
    """

    prompt_tokens: int = 128
    new_tokens: int = 64
    batches: tuple[int, ...] = (1, 8)
    trials: int = 5
    threads: int | None = None
    device: str = "auto"
    seed: int = 0
    packed_weights: bool = True


@dataclass(frozen=True)
class Loading:
    """Seconds to load a bundle, and from the same start to the first token of a first prompt."""

    seconds: float
    to_first_token_seconds: float


@dataclass(frozen=True)
class Serving:
    """Memory in RAM after a prefill and decode steps at the first batch size, its cache still there.

    Attributes:
        resident: of the process.
        before: of the process before the bundle was loaded: Python and libraries.
        weight_bytes: of the weights file.
        cache_bytes: of the KV cache.
    """

    resident: ResidentMemory
    before: ResidentMemory
    weight_bytes: int
    cache_bytes: int

    @property
    def ratio(self) -> float:
        """All of the process over weights and cache."""
        return self.resident.total / (self.weight_bytes + self.cache_bytes)

    @property
    def ratio_of_bundle(self) -> float:
        """What came with the bundle over weights and cache."""
        own = self.resident.total - self.before.total
        return own / (self.weight_bytes + self.cache_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "ratio": self.ratio, "ratio_of_bundle": self.ratio_of_bundle}


@dataclass(frozen=True)
class BatchReport:
    """Speed at one batch size.

    Attributes:
        batch: rows.
        prefill_ms: milliseconds of a prefill of all rows.
        prefill_tokens_per_second: prompt tokens of all rows, at the median.
        decode_ms_per_token: milliseconds of a decode step, one more token for each row.
        decode_tokens_per_second: new tokens of all rows, at the median.
    """

    batch: int
    prefill_ms: Spread
    prefill_tokens_per_second: float
    decode_ms_per_token: Spread
    decode_tokens_per_second: float


@dataclass(frozen=True)
class Report:
    """All that was found; the settings name the device that was chosen."""

    bundle: str
    manifest: Manifest
    settings: Settings
    loading: Loading
    batches: tuple[BatchReport, ...]
    serving: Serving | None
    peak_memory_bytes: int
    versions: dict[str, str]
    hardware: Hardware

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        manifest = self.manifest
        return {
            "bundle": {
                "path": self.bundle,
                "size_bytes": manifest.total_bytes,
                "precision": manifest.precision,
                "target": manifest.target,
                "cache_dtype": manifest.cache_dtype,
                "parameters": manifest.model.num_parameters,
                "model": manifest.model.to_dict(),
                "source": dict(manifest.source),
            },
            "settings": asdict(self.settings),
            "load": asdict(self.loading),
            "batches": [asdict(batch) for batch in self.batches],
            "serving_memory": None if self.serving is None else self.serving.to_dict(),
            "peak_memory_bytes": self.peak_memory_bytes,
            "versions": self.versions,
            "hardware": asdict(self.hardware),
        }


def measure_bundle(
    folder: str, settings: Settings, progress: Callable[[str], None] = lambda text: None
) -> Report:
    """Loads a bundle and measures it.

    Raises:
        BundleError: if it is no bundle or cannot be run.
        ValueError: if prompt and new tokens are more than the model's positions.
    """
    # A missing ONNX Runtime is so an error of this call and not of importing this file.
    from runtime.open_decoder import open_decoder

    before = resident_memory()
    started = time.perf_counter()
    bundle = load_bundle(folder)
    check_room(bundle.manifest.model, settings.prompt_tokens, settings.new_tokens)
    decoder = open_decoder(
        bundle, settings.device, settings.threads, packed_weights=settings.packed_weights
    )
    load_seconds = time.perf_counter() - started
    prompt = _prompts(np.random.default_rng(settings.seed), decoder, 1, settings)
    first_seconds = time_generation(decoder, prompt, 1).prefill_seconds
    serving = _measure_serving(decoder, before, bundle.manifest.weights.size, settings)

    batches = []
    for batch in settings.batches:
        progress(f"batch {batch}: a warm-up and {settings.trials} trials")
        batches.append(_measure_batch(decoder, batch, settings))
    return Report(
        bundle=folder,
        manifest=bundle.manifest,
        settings=Settings(**{**asdict(settings), "device": decoder.device}),
        loading=Loading(load_seconds, load_seconds + first_seconds),
        batches=tuple(batches),
        serving=serving,
        peak_memory_bytes=peak_memory_bytes(),
        versions=package_versions(PACKAGES),
        hardware=describe_hardware(),
    )


def _prompts(generator: np.random.Generator, decoder: Decoder, rows: int, settings: Settings) -> Any:
    size = decoder.config.vocabulary_size
    return random_prompts(generator, size, rows, settings.prompt_tokens)


def _measure_serving(
    decoder: Decoder, before: ResidentMemory | None, weight_bytes: int, settings: Settings
) -> Serving | None:
    generator = np.random.default_rng([settings.seed, settings.batches[0], 1])
    prompts = _prompts(generator, decoder, settings.batches[0], settings)
    cache = decoder.new_cache(len(prompts), settings.prompt_tokens + settings.new_tokens)
    time_generation(decoder, prompts, settings.new_tokens, cache)
    resident = resident_memory()
    if before is None or resident is None:
        return None
    return Serving(resident, before, weight_bytes, cache.nbytes)


def _measure_batch(decoder: Decoder, batch: int, settings: Settings) -> BatchReport:
    # The prompts of a batch size depend on the seed and that size only.
    generator = np.random.default_rng([settings.seed, batch])
    # One for all trials, as the engine keeps its rows.
    cache = decoder.new_cache(batch, settings.prompt_tokens + settings.new_tokens)
    runs = []
    for _ in range(1 + settings.trials):
        cache.lengths[:] = 0
        prompts = _prompts(generator, decoder, batch, settings)
        runs.append(time_generation(decoder, prompts, settings.new_tokens, cache))
    counted = runs[1:]  # the first one warmed up
    prefill = Spread.of(run.prefill_seconds * 1e3 for run in counted)
    decode = Spread.of(seconds * 1e3 for run in counted for seconds in run.step_seconds)
    return BatchReport(
        batch=batch,
        prefill_ms=prefill,
        prefill_tokens_per_second=1e3 * batch * settings.prompt_tokens / prefill.median,
        decode_ms_per_token=decode,
        decode_tokens_per_second=1e3 * batch / decode.median,
    )
