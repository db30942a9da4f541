"""Prompts as Keras's `generate` takes them: with room on the right for the new tokens."""

from __future__ import annotations

import numpy as np


def with_room(token_ids: list[list[int]], new_tokens: int) -> dict[str, np.ndarray]:
    """`token_ids` and `padding_mask`, int32 [rows, length + new tokens], zero where there is room."""
    prompts = np.array(token_ids, np.int32)
    room = ((0, 0), (0, new_tokens))
    return {
        "token_ids": np.pad(prompts, room),
        "padding_mask": np.pad(np.ones_like(prompts), room),
    }
