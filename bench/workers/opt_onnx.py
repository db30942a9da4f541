"""This project: `runtime.Generator` over a bundle, by its public interface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.workers.padding import with_room
from bench.workers.protocol import Job, Model, serve


def load(job: Job) -> Model:
    """See `bench.workers.protocol.serve`."""
    from runtime import Generator
    from runtime.bundle import load_bundle
    from runtime.session import SessionDecoder

    # What `Generator.from_bundle` does; the decoder also tells logits, once speed has been measured.
    bundle = load_bundle(job.checkpoint)
    decoder = SessionDecoder(bundle, threads=job.threads)
    generator = Generator(decoder, bundle.tokenizer, sampler="greedy")

    def generate(token_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        inputs = with_room(token_ids, new_tokens)
        outputs = generator.generate(inputs, stop_token_ids=None)
        rows: list[list[int]] = outputs["token_ids"][:, -new_tokens:].tolist()
        return rows

    def logits(token_ids: list[list[int]], places: int) -> NDArray[np.float32]:
        # The first of the places by the prefill graph, the others by the decode graph.
        tokens = np.array(token_ids)
        rows, length = tokens.shape
        cache = decoder.new_cache(rows, length)
        values = []
        start = 0
        for end in range(length - places + 1, length + 1):
            new_lengths = np.full(rows, end - start, np.int32)
            values.append(decoder.append(cache, tokens[:, start:end], new_lengths).logits.copy())
            start = end
        return np.stack(values, axis=1)

    return Model(generate, logits)


if __name__ == "__main__":
    serve(load, ("opt-onnx", "onnxruntime", "numpy", "tokenizers"))
