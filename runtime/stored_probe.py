"""The short run that a bundle's manifest tells the result of: made at export, repeated by a check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphs.contract import ModelConfig
from graphs.manifest import Probe
from runtime.bundle import load_bundle
from runtime.decoder import Decoder
from runtime.errors import BundleError
from runtime.open_decoder import open_decoder

PROMPT_TOKENS, NEW_TOKENS = 8, 8
# Of the logits' standard deviation. CPUs sum in other orders; where activations are quantized, a sum
# that differs in its last bit can become another code.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.01, "bf16": 0.05, "int8": 0.05, "int4": 0.1}
LARGE_BYTES = 2 * 1024**3


def open_for_probe(folder: Path) -> Decoder:
    """Opens a bundle for one short run on the CPU, beside which nothing is written.

    Weights of gigabytes are mapped as they are: packing them in memory would need as much again. Not
    those of int4, whose kernel is a hundred times slower with weights that are not packed.
    """
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    large = manifest.weights.size > LARGE_BYTES and manifest.precision != "int4"
    packed = None if large else False
    return open_decoder(bundle, "cpu", packed_weights=packed)


def make_probe(decoder: Decoder, precision: str) -> Probe | None:
    """Runs the model; `None` if it has too few positions.

    Args:
        decoder: the model.
        precision: of its weights, which decides the tolerance.

    Raises:
        BundleError: if logits are not finite.
    """
    prompt, steps = _prompt(decoder.config)
    if not steps:
        return None
    token_ids: list[int] = []
    values: list[float] = []
    deviations = []
    for row in _rows(decoder, prompt, token_ids, steps):
        if not np.isfinite(row).all():
            raise BundleError(
                f"after {len(token_ids)} tokens of a run {np.count_nonzero(~np.isfinite(row))} of "
                f"{row.size} logits are NaN or infinite: the model would give no text"
            )
        token_ids.append(int(row.argmax()))
        values.append(float(row.max()))
        deviations.append(float(row.std()))
    tolerance = TOLERANCES[precision] * max(*deviations, 1e-6)
    return Probe(tuple(prompt), tuple(token_ids), tuple(values), tolerance)


def check_probe(decoder: Decoder, probe: Probe) -> float:
    """Repeats a run; returns the largest difference of a logit.

    Raises:
        BundleError: if a logit differs by more than the tolerance, or another token is clearly better.
    """
    token_ids: list[int] = []
    largest = 0.0
    steps = zip(probe.token_ids, probe.logits, strict=True)
    for row in _rows(decoder, list(probe.prompt), token_ids, len(probe.token_ids)):
        token, value = next(steps)
        difference = abs(float(row[token]) - value)
        best, gap = int(row.argmax()), float(row.max() - row[token])
        # Near ties may go to another token: both may be off by the tolerance.
        if not (difference <= probe.tolerance and gap <= 2 * probe.tolerance):
            raise BundleError(
                f"after {len(token_ids)} tokens of the stored run the best token is {best} and not "
                f"{token}, whose logit is {row[token]:.4f} and not {value:.4f} (within "
                f"{probe.tolerance:.1e})"
            )
        largest = max(largest, difference)
        token_ids.append(token)
    return largest


def _prompt(config: ModelConfig) -> tuple[list[int], int]:
    """Token ids that any model has, and how many may follow them."""
    length = min(PROMPT_TOKENS + NEW_TOKENS, config.max_sequence_length)
    steps = min(NEW_TOKENS, length - 1)
    step = config.vocabulary_size / PROMPT_TOKENS
    return [int((i + 0.5) * step) for i in range(length - steps)], steps


def _rows(
    decoder: Decoder, prompt: list[int], following: list[int], steps: int
) -> Iterator[NDArray[np.float32]]:
    """Logits [vocabulary] after the prompt and after each token that the caller adds to it."""
    cache = decoder.new_cache(1, len(prompt) + steps)
    token_ids = prompt
    for step in range(steps):
        added = np.array([len(token_ids)], np.int32)
        yield decoder.append(cache, np.array([token_ids], np.int64), added).logits[0]
        token_ids = following[step : step + 1]
