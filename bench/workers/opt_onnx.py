"""This project: `runtime.Generator` over a bundle, by its public interface."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.workers.closed_loop import Running, closed_loop, static_batches
from bench.workers.padding import with_room
from bench.workers.protocol import Job, Model, serve


def load(job: Job) -> Model:
    """See `bench.workers.protocol.serve`."""
    from runtime import Generator
    from runtime.bundle import load_bundle
    from runtime.call_limits import CallLimits
    from runtime.engine.call import Call
    from runtime.engine.engine import Engine
    from runtime.engine.request import Request
    from runtime.samplers import GreedySampler
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

    def serve_requests(
        prompts: list[list[int]], new_tokens: int, in_flight: int
    ) -> list[dict[str, Any]]:
        if job.options.get("static"):
            return static_batches(prompts, new_tokens, in_flight, generate)
        engine = Engine(decoder, max_prefix_bytes=job.options.get("max_prefix_bytes"))

        def start(prompt: list[int], count: int) -> Running:
            requests = [Request(tuple(prompt), len(prompt) + count)]
            search = GreedySampler().search(requests, decoder.config.vocabulary_size)
            call = Call(requests, search, CallLimits())
            engine.check(call)
            engine.add(call)
            return _Running(call)

        return closed_loop(prompts, new_tokens, in_flight, start, engine.step)

    return Model(generate, logits, serve_requests)


class _Running:
    """A call of one sequence."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def token_ids(self) -> list[int]:
        self._call.check_error()
        ids: list[int] = self._call.sequences[0].token_ids
        return ids


if __name__ == "__main__":
    serve(load, ("opt-onnx", "onnxruntime", "numpy", "tokenizers"))
