"""Requests that come as others end, and when their tokens came: what a worker that serves is asked for.

Standard library only, as the protocol.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol


class Running(Protocol):
    """One request on its way."""

    def token_ids(self) -> list[int]:
        """Its new tokens so far."""


# From a prompt and a number of tokens to a request that runs.
Start = Callable[[list[int], int], Running]


def closed_loop(
    prompts: Iterable[list[int]],
    new_tokens: int,
    in_flight: int,
    start: Start,
    step: Callable[[], object],
) -> list[dict[str, Any]]:
    """Has requests served, so many at a time: where one ends the next begins.

    Args:
        prompts: token ids of each.
        new_tokens: of each.
        in_flight: requests at a time.
        start: begins one.
        step: has all that run get on.

    Returns:
        Of each prompt `start`, the second at which it began, `times`, the seconds at which each of its
        tokens was there, and its `token_ids`.
    """
    waiting = deque(enumerate(prompts))
    found: dict[int, dict[str, Any]] = {}
    running: dict[int, Running] = {}
    while waiting or running:
        while waiting and len(running) < in_flight:
            i, prompt = waiting.popleft()
            found[i] = {"start": time.perf_counter(), "times": []}
            running[i] = start(prompt, new_tokens)
        step()
        now = time.perf_counter()
        for i, request in list(running.items()):
            token_ids = request.token_ids()
            times = found[i]["times"]
            times += [now] * (len(token_ids) - len(times))
            if len(token_ids) >= new_tokens:
                found[i]["token_ids"] = list(token_ids)
                del running[i]
    return [found[i] for i in sorted(found)]


def static_batches(
    prompts: list[list[int]],
    new_tokens: int,
    in_flight: int,
    generate: Callable[[list[list[int]], int], list[list[int]]],
) -> list[dict[str, Any]]:
    """The same requests in batches that begin and end together; as `closed_loop`.

    Only the end of a batch is seen, so that all of a request's tokens have that time.
    """
    found = []
    for first in range(0, len(prompts), in_flight):
        started = time.perf_counter()
        batch = generate(prompts[first : first + in_flight], new_tokens)
        ended = time.perf_counter()
        found += [{"start": started, "times": [ended] * len(ids), "token_ids": ids} for ids in batch]
    return found
