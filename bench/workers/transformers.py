"""Hugging Face transformers on torch: greedy `generate` with its KV cache, in float32."""

from __future__ import annotations

from typing import Any

from bench.workers.protocol import Generate, Job, serve


def load(job: Job) -> Generate:
    """See `bench.workers.protocol.serve`."""
    import torch
    from transformers import OPTForCausalLM

    torch.set_num_threads(job.threads)
    torch.set_num_interop_threads(job.threads)
    model: Any = OPTForCausalLM.from_pretrained(
        job.checkpoint, dtype=torch.float32, local_files_only=True
    )
    model.eval()
    model.generation_config.eos_token_id = None  # never stops early

    def generate(token_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        prompts = torch.tensor(token_ids)
        outputs = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
        )
        rows: list[list[int]] = outputs[:, prompts.shape[1] :].tolist()
        return rows

    return generate


if __name__ == "__main__":
    serve(load, ("transformers", "torch", "numpy"))
