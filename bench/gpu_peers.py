"""transformers on a card: reference of logits and greedy tokens, and what decoding is compared with."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The CPU is for trying the command out: compiling there needs a C++ compiler and a minute.
COMPILE_OPTIONS: dict[str, dict[str, Any]] = {
    "cuda": {"mode": "reduce-overhead"},
    "cpu": {"backend": "eager"},
}


class TransformersModel:
    """An OPT model of transformers.

    Args:
        checkpoint: a folder in Hugging Face's format.
        dtype: torch's name.
        device: `"cuda"` or `"cpu"`.
    """

    def __init__(self, checkpoint: Path, dtype: str, device: str) -> None:
        import torch
        from transformers import OPTForCausalLM

        self._torch = torch
        self._device = device
        model: Any = OPTForCausalLM.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), local_files_only=True
        )
        self._model = model.to(device).eval()
        self._step: Any = None
        self._cache: Any = None

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The tokens that follow a prompt; stop tokens do not end it."""
        return [token for token, _ in self._eager(prompt, new_tokens)]

    def logits(self, token_ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """Logits after each of the last `count` tokens of a row, float32 [count, vocabulary]."""
        with self._torch.inference_mode():
            ids = self._torch.tensor([list(token_ids)], device=self._device)
            found = self._model(ids, use_cache=False).logits[0, -count:]
        return found.float().cpu().numpy()

    def time_eager(self, prompt: Sequence[int], new_tokens: int) -> list[float]:
        """Seconds of each decode step with the cache that grows, which gives one token each.

        There is one step less than tokens: the first is the prompt's.
        """
        return np.diff([mark for _, mark in self._eager(prompt, new_tokens)]).tolist()

    def time_compiled(self, prompt: Sequence[int], new_tokens: int) -> list[float]:
        """The same with a static cache and a compiled step; the first call compiles.

        The calls of a model have prompts of one length, and one number of new tokens.
        """
        return np.diff([mark for _, mark in self.compiled(prompt, new_tokens)]).tolist()

    def _eager(self, prompt: Sequence[int], new_tokens: int) -> list[tuple[int, float]]:
        """Greedy tokens, and when the host knew each of them."""
        torch = self._torch
        found, cache = [], None
        with torch.inference_mode():
            ids = torch.tensor([list(prompt)], device=self._device)
            for _ in range(new_tokens):
                output = self._model(ids, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                ids = output.logits[:, -1:].argmax(dim=-1)
                # Reading it waits for the card, as whoever streams tokens does.
                found.append((int(ids), time.perf_counter()))
        return found

    def compiled(self, prompt: Sequence[int], new_tokens: int) -> list[tuple[int, float]]:
        """Greedy tokens by the compiled step, and when the host knew each of them.

        As transformers' own `generate` does it, all calls share one cache and the step gets its mask
        ready-made, of a fixed shape: only so is it one CUDA graph.
        """
        from transformers import StaticCache

        torch, device, length = self._torch, self._device, len(prompt)
        if self._step is None:
            self._step = torch.compile(self._model.forward, **COMPILE_OPTIONS[device])
            self._cache = StaticCache(config=self._model.config, max_cache_len=length + new_tokens)
        found = []
        # Not inference_mode: compiled code changes tensors in place.
        with torch.no_grad():
            self._cache.reset()
            seen = torch.zeros(1, 1, 1, length + new_tokens, dtype=torch.bool, device=device)
            seen[..., :length] = True
            places = torch.arange(length + new_tokens, device=device)[None]
            call = {"past_key_values": self._cache, "use_cache": True}
            ids = torch.tensor([list(prompt)], device=device)
            output = self._model(ids, position_ids=places[:, :length], **call)
            for place in range(length, length + new_tokens):
                ids = output.logits[:, -1:].argmax(dim=-1)
                found.append((int(ids), time.perf_counter()))
                if len(found) < new_tokens:
                    seen[..., place] = True
                    here = places[:, place : place + 1].clone()
                    torch.compiler.cudagraph_mark_step_begin()
                    output = self._step(ids, attention_mask=seen, position_ids=here, **call)
        return found

    def close(self) -> None:
        """Frees the card's memory."""
        self._model = self._step = self._cache = None
        gc.collect()
        self._torch.compiler.reset()
        if self._device == "cuda":
            self._torch.cuda.empty_cache()
