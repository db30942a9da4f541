"""Hugging Face transformers on torch: greedy `generate` with its KV cache, in float32."""

from __future__ import annotations

from typing import Any

from bench.workers.hugging_face import generation_of
from bench.workers.protocol import Job, Model, serve


def load(job: Job) -> Model:
    """See `bench.workers.protocol.serve`."""
    import torch
    from transformers import OPTForCausalLM

    torch.set_num_threads(job.threads)
    torch.set_num_interop_threads(job.threads)
    model: Any = OPTForCausalLM.from_pretrained(
        job.checkpoint, dtype=torch.float32, local_files_only=True
    )
    model.eval()
    return generation_of(model)


if __name__ == "__main__":
    serve(load, ("transformers", "torch", "numpy"))
