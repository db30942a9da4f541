"""This project: `runtime.Generator` over a bundle, by its public interface."""

from __future__ import annotations

from bench.workers.padding import with_room
from bench.workers.protocol import Generate, Job, serve


def load(job: Job) -> Generate:
    """See `bench.workers.protocol.serve`."""
    from runtime import Generator

    generator = Generator.from_bundle(job.checkpoint, device="cpu", threads=job.threads)
    generator.compile(sampler="greedy")

    def generate(token_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        inputs = with_room(token_ids, new_tokens)
        outputs = generator.generate(inputs, stop_token_ids=None)
        rows: list[list[int]] = outputs["token_ids"][:, -new_tokens:].tolist()
        return rows

    return generate


if __name__ == "__main__":
    serve(load, ("opt-onnx", "onnxruntime", "numpy", "tokenizers"))
