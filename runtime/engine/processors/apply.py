"""Processors one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.engine.request import Request


def apply_processors(
    request: Request, new_token_ids: Sequence[int], logits: NDArray[np.float32]
) -> None:
    """Changes a row of logits [vocabulary] in place as a request's processors do.

    Raises:
        ValueError: if they rule out every token.
    """
    token_ids = [*request.prompt, *new_token_ids]
    for processor in request.processors:
        processor.process(token_ids, len(request.prompt), logits)
    if not math.isfinite(logits.max()):
        raise ValueError(
            f"the options leave no token to choose after {len(new_token_ids)} new ones: what they "
            "allow and what they rule out contradict each other"
        )
