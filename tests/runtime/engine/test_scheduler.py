"""What is read of a prompt at a time."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.engine import scheduler as scheduling
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.engine.scheduler import Scheduler
from runtime.samplers import GreedySampler
from tests.runtime.engine.test_company import VOCABULARY, ChunkDecoder
from tests.runtime.engine_runs import new_call, run_calls
from tests.runtime.fake_decoder import SequenceDecoder

BLOCK = 4


class WidthDecoder(ChunkDecoder):
    """Tells how many tokens of a row its runs read."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY)
        self.widths: list[int] = []

    def append(self, cache: Any, token_ids: Any, new_lengths: Any, **options: Any) -> Any:
        self.widths.append(token_ids.shape[1])
        return super().append(cache, token_ids, new_lengths, **options)


@pytest.mark.parametrize("decoding", [0, 1])
@pytest.mark.parametrize("length", range(1, 4 * BLOCK + 3))
def test_parts_end_at_borders_and_none_is_a_single_token(length: int, decoding: int) -> None:
    """A token alone would not give the same bits as beside another one."""
    scheduler = Scheduler(BLOCK, 2 * BLOCK, BLOCK)
    call = new_call(SequenceDecoder(9), [Request((1,) * length, 60)], GreedySampler())
    call.sequences[0].rows = [0]
    scheduler.add(call)
    entries = scheduler.start(1)
    borders = [0]
    while borders[-1] < length:
        (piece,) = scheduler.pieces(entries, lambda call, sequence: borders[-1], decoding=decoding)
        (stop,) = piece.stops
        assert piece.start == borders[-1]
        assert stop == length or stop % BLOCK == 0
        assert stop - borders[-1] > 1 or length == 1
        borders.append(stop)


def _parts(prompts: list[int], read: int, decoding: int) -> list[tuple[int, int]]:
    """How many prompts a step reads at once, and how much of them, where some is read of all."""
    scheduler = Scheduler(BLOCK, 100 * BLOCK, 4 * BLOCK)
    requests = [Request((i,) * length, 1000) for i, length in enumerate(prompts)]
    for request in requests:
        scheduler.add(new_call(SequenceDecoder(9), [request], GreedySampler()))
    entries = scheduler.start(len(prompts))
    for place, (_, sequence) in enumerate(entries):
        sequence.rows = [2 * place]  # no neighbours: each is read alone
    pieces = scheduler.pieces(entries, lambda call, sequence: read, decoding=decoding)
    return [(len(piece.stops), piece.stops[0] - piece.start) for piece in pieces]


def test_more_is_read_where_many_prompts_wait_for_few_streams() -> None:
    """One stream does not keep eight prompts waiting; eight streams stall for one alone."""
    prompts = [3 * BLOCK] * 8
    step = 4 * BLOCK
    assert sum(tokens for _, tokens in _parts(prompts, 0, decoding=8)) <= step
    assert sum(tokens for _, tokens in _parts(prompts, 0, decoding=4)) <= 2 * step
    assert _parts(prompts, 0, decoding=1) == [(1, 3 * BLOCK)] * 8


def test_parts_after_a_long_past_are_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer; while nobody waits for a token, that is no reason."""
    monkeypatch.setattr(scheduling, "LONG_PAST", 8 * BLOCK)
    prompts = [40 * BLOCK]
    assert _parts(prompts, 7 * BLOCK, decoding=8) == [(1, 4 * BLOCK)]
    assert _parts(prompts, 8 * BLOCK, decoding=8) == [(1, 2 * BLOCK)]
    assert _parts(prompts, 8 * BLOCK, decoding=0) == [(1, 32 * BLOCK)]


@pytest.mark.parametrize("together", [True, False])
def test_small_parts_are_read_for_the_sake_of_other_calls_alone(together: bool) -> None:
    """A call's own texts may wait while its other prompts are read: it ends when all have ended."""
    decoder = WidthDecoder()
    requests = [Request((1, 2), 20), Request((3,) * 24, 25)]
    groups = [requests] if together else [[request] for request in requests]
    engine = Engine(decoder, step_tokens=BLOCK)
    run_calls(engine, *(new_call(decoder, group, GreedySampler()) for group in groups))
    read = [width for width in decoder.widths if width > 1]
    assert read == ([2, 8, 8, 8] if together else [2, 8, *[BLOCK] * 4])
