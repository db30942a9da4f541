"""Greedy `generate` and logits of a model with Hugging Face's interface; its worker has torch."""

from __future__ import annotations

from typing import Any

from bench.workers.protocol import Model


def generation_of(model: Any) -> Model:
    """What a worker serves of a `GenerationMixin` with a KV cache; it never stops early."""
    import torch

    model.generation_config.eos_token_id = None

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

    def logits(token_ids: list[list[int]], places: int) -> Any:
        tokens = torch.tensor(token_ids)
        with torch.inference_mode():
            outputs = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        return outputs.logits[:, -places:].float().numpy()

    return Model(generate, logits)
