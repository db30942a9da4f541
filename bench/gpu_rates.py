"""The rates of a card that a model's speed is compared with, measured with torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.roofline import Rates

COPY_BYTES = {"cuda": 4 << 30, "cpu": 1 << 26}  # many times any cache of a card
MATRIX_SIZE = {"cuda": 8192, "cpu": 512}
TRIALS = 20


def measure_rates(device: str) -> Rates:
    """Medians of copies of a large buffer and of products of square float16 matrices."""
    import torch

    source = torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _median_seconds(lambda: target.copy_(source), device)
    size = MATRIX_SIZE[device]
    # Random values: a card draws less power on zeros, and so is faster.
    left, right = torch.randn(2, size, size, device=device).half()
    product = _median_seconds(lambda: left @ right, device)
    return Rates(2 * source.nbytes / copy, 2.0 * size**3 / product)


def describe_card(device: str) -> dict[str, str]:
    """The card, its driver's CUDA and the versions of what is compared."""
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device == "cpu":
        return {"card": "none, on the CPU", **versions}
    facts = torch.cuda.get_device_properties(0)
    card = f"{facts.name}, {facts.total_memory / 1e9:.1f} GB"
    return {"card": card, "CUDA": str(torch.version.cuda), **versions}


def synchronize(device: str) -> None:
    """Waits until the card has done all that torch gave it."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _median_seconds(work: Callable[[], Any], device: str) -> float:
    """Of a single call; the first ones warm up."""
    seconds = []
    for trial in range(3 + TRIALS):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        if trial >= 3:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
