"""What is read of a prompt at a time."""

from __future__ import annotations

from typing import Any

import pytest

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


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("length", range(1, 4 * BLOCK + 3))
def test_parts_end_at_borders_and_none_is_a_single_token(length: int, busy: bool) -> None:
    """A token alone would not give the same bits as beside another one."""
    scheduler = Scheduler(BLOCK, 2 * BLOCK, BLOCK)
    call = new_call(SequenceDecoder(9), [Request((1,) * length, 60)], GreedySampler())
    call.sequences[0].rows = [0]
    scheduler.add(call)
    entries = scheduler.start(1)
    borders = [0]
    while borders[-1] < length:
        (piece,) = scheduler.pieces(entries, lambda call, sequence: borders[-1], busy=busy)
        (stop,) = piece.stops
        assert piece.start == borders[-1]
        assert stop == length or stop % BLOCK == 0
        assert stop - borders[-1] > 1 or length == 1
        borders.append(stop)


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
