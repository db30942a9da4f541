"""`python -m runtime.probe BUNDLE`: logits of a bundle for given tokens, for verification.

Reads a JSON request from standard input: nothing, or `token_ids` [rows, length], `prompt_lengths`
[rows] and `steps`. Each row's prompt is its first tokens; its next `steps` tokens follow one by one.
Of the request `repeat` it repeats the run that the manifest stores, and writes JSON: the largest
`difference` of a logit, or the `problem`. Of others it writes to standard output in NumPy's `.npz`
format: of such a request the `logits` after the prompt and after each step, float32 [rows, 1 + steps,
vocabulary]; `probe`, the JSON of what `runtime.stored_probe` makes; and the process's peak memory.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.manifest import read_manifest
from runtime.decoder import Decoder
from runtime.errors import RuntimeMissingError
from runtime.stored_probe import check_probe, make_probe, open_for_probe
from runtime.system.memory import peak_memory_bytes

REPEAT = "repeat"  # the request


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


def _repeat(folder: Path) -> dict[str, float | str]:
    probe = read_manifest(folder).probe
    assert probe is not None
    try:
        return {"difference": check_probe(open_for_probe(folder), probe)}
    except RuntimeMissingError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        return {"problem": " ".join(str(error).split())}


def main() -> None:
    """The command."""
    request = json.load(sys.stdin)
    folder = Path(sys.argv[1])
    if request == REPEAT:
        print(json.dumps(_repeat(folder)))
        return
    decoder = open_for_probe(folder)
    probe = make_probe(decoder, read_manifest(folder).precision)
    answer: dict[str, Any] = {"probe": json.dumps(None if probe is None else asdict(probe))}
    if request:
        answer["logits"] = teacher_forced_logits(
            decoder,
            np.array(request["token_ids"], np.int64),
            np.array(request["prompt_lengths"], np.int32),
            int(request["steps"]),
        )
    np.savez(sys.stdout.buffer, peak_memory_bytes=np.int64(peak_memory_bytes()), **answer)


if __name__ == "__main__":
    main()
