"""OpenVINO GenAI: `LLMPipeline` over OpenVINO's format; the option `precision` is of the weights.

- fp32: `INFERENCE_PRECISION_HINT` is f32; by default it computes in bfloat16 where the CPU can. Its KV
  cache stays float16, its own choice then, so a token may differ.
- int8: one scale for each row of each matrix. int4: groups of 128, embedding and head in int8. Both
  are optimum-intel's defaults for these bits, with OpenVINO's own choice of how to compute.

The pipeline remembers the caches of prompts it has seen: each question must be a new prompt.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from bench.workers.closed_loop import Running, closed_loop
from bench.workers.protocol import Conversion, Job, Model, serve

# Toy models have layers narrower than a group; "adjust" leaves the groups of published ones alone.
QUANTIZATION: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8},
    "int4": {"bits": 4, "group_size": 128, "group_size_fallback": "adjust"},
}

CACHE_GB = 4  # of the continuous batching pipeline


def convert(conversion: Conversion) -> None:
    """Converts a Hugging Face folder by optimum-intel."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    options: dict[str, Any] = {"load_in_8bit": False}  # which it does on its own from a billion weights
    if quantization := QUANTIZATION.get(conversion.options["precision"]):
        options = {"quantization_config": OVWeightQuantizationConfig(**quantization)}
    model: Any = OVModelForCausalLM.from_pretrained(
        conversion.source, export=True, compile=False, local_files_only=True, **options
    )
    model.save_pretrained(conversion.target)


def load(job: Job) -> Model:
    """See `bench.workers.protocol.serve`."""
    import numpy as np
    import openvino
    import openvino_genai

    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads}
    if job.options["precision"] == "fp32":
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    pipeline = openvino_genai.LLMPipeline(job.checkpoint, "CPU", **properties)

    def generate(token_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        config = openvino_genai.GenerationConfig(
            max_new_tokens=new_tokens, ignore_eos=True, do_sample=False
        )
        tokens = np.array(token_ids, np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(tokens), openvino.Tensor(np.ones_like(tokens))
        )
        rows: list[list[int]] = pipeline.generate(inputs, config).tokens
        return rows

    def logits(token_ids: list[list[int]], places: int) -> Any:
        # The pipeline tells none, so the same files go through OpenVINO's runtime.
        model = openvino.Core().compile_model(
            str(Path(job.checkpoint, "openvino_model.xml")), "CPU", properties
        )
        tokens = np.array(token_ids, np.int64)
        values = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
            "beam_idx": np.arange(len(tokens), dtype=np.int32),
        }
        names = [port.get_any_name() for port in model.inputs]
        return model({name: values[name] for name in names})["logits"][:, -places:]

    def serve_requests(
        prompts: list[list[int]], new_tokens: int, in_flight: int
    ) -> list[dict[str, Any]]:
        if not batching:  # takes seconds and gigabytes, and nobody else asks for it
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.cache_size = CACHE_GB
            scheduler.enable_prefix_caching = bool(job.options.get("prefixes"))
            scheduler.dynamic_split_fuse = True
            batching.append(
                openvino_genai.ContinuousBatchingPipeline(job.checkpoint, scheduler, "CPU", properties)
            )
        (pipeline,) = batching

        def start(prompt: list[int], count: int) -> Running:
            config = openvino_genai.GenerationConfig(
                max_new_tokens=count, ignore_eos=True, do_sample=False
            )
            number = next(numbers)
            ids = openvino.Tensor(np.array([prompt], np.int64))
            return _Running(pipeline.add_request(number, ids, config))

        return closed_loop(prompts, new_tokens, in_flight, start, pipeline.step)

    batching: list[Any] = []
    numbers = itertools.count()
    return Model(generate, logits, serve_requests)


class _Running:
    """A request of the continuous batching pipeline."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._token_ids: list[int] = []

    def token_ids(self) -> list[int]:
        while self._handle.can_read():
            for output in self._handle.read().values():
                self._token_ids += output.generated_ids
        return self._token_ids


if __name__ == "__main__":
    serve(load, ("openvino-genai", "openvino", "numpy"), convert)
