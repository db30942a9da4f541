"""optimum-onnx: `ORTModelForCausalLM` over its own ONNX export, in float32."""

from __future__ import annotations

from typing import Any

from bench.workers.hugging_face import generation_of
from bench.workers.protocol import Conversion, Job, Model, serve


def convert(conversion: Conversion) -> None:
    """Exports a Hugging Face folder with a KV cache, as `from_pretrained(export=True)` does."""
    from optimum.onnxruntime import ORTModelForCausalLM

    model: Any = ORTModelForCausalLM.from_pretrained(
        conversion.source, export=True, local_files_only=True
    )
    model.save_pretrained(conversion.target)


def load(job: Job) -> Model:
    """See `bench.workers.protocol.serve`."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    torch.set_num_threads(job.threads)  # for what is left around the session
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    model: Any = ORTModelForCausalLM.from_pretrained(
        job.checkpoint,
        provider="CPUExecutionProvider",
        session_options=options,
        local_files_only=True,
    )
    return generation_of(model)


if __name__ == "__main__":
    serve(load, ("optimum-onnx", "onnxruntime", "transformers", "torch", "numpy"), convert)
