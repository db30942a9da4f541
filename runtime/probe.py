"""`python -m runtime.probe BUNDLE`: logits of a bundle for given tokens, for verification.

Reads a JSON request from standard input: `token_ids` [rows, length], `prompt_lengths` [rows] and
`steps`. Each row's prompt is its first tokens; its next `steps` tokens follow one by one. Writes the
logits after the prompt and after each step, float32 [rows, 1 + steps, vocabulary], and the process's
peak memory to standard output in NumPy's `.npz` format.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import load_bundle
from runtime.decoder import Decoder
from runtime.memory import peak_memory_bytes
from runtime.session import SessionDecoder


def teacher_forced_logits(
    decoder: Decoder, token_ids: NDArray[np.int64], prompt_lengths: NDArray[np.int32], steps: int
) -> NDArray[np.float32]:
    """Logits after each row's prompt and after each of the `steps` tokens that follow it there.

    Args:
        decoder: the model.
        token_ids: int64 [rows, length].
        prompt_lengths: int32 [rows], at least 1; each row has `steps` tokens after its prompt.
        steps: how many.

    Returns:
        float32 [rows, 1 + steps, vocabulary].
    """
    rows = np.arange(len(token_ids))
    cache = decoder.new_cache(len(token_ids), int(prompt_lengths.max()) + steps)
    longest = int(prompt_lengths.max())
    collected = [decoder.append(cache, token_ids[:, :longest], prompt_lengths).logits.copy()]
    ones = np.ones(len(token_ids), np.int32)
    for step in range(steps):
        following = token_ids[rows, prompt_lengths + step][:, None]
        collected.append(decoder.append(cache, following, ones).logits.copy())
    return np.stack(collected, axis=1)


def main() -> None:
    """The command."""
    request = json.load(sys.stdin)
    # Not packed on disk: the bundle that is being verified is not in its place yet.
    decoder = SessionDecoder(load_bundle(Path(sys.argv[1])), device="cpu", packed_weights=False)
    logits = teacher_forced_logits(
        decoder,
        np.array(request["token_ids"], np.int64),
        np.array(request["prompt_lengths"], np.int32),
        int(request["steps"]),
    )
    np.savez(sys.stdout.buffer, logits=logits, peak_memory_bytes=np.int64(peak_memory_bytes()))


if __name__ == "__main__":
    main()
