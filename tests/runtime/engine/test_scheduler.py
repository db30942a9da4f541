"""What is read of a prompt at a time."""

from __future__ import annotations

import pytest

from runtime.engine.request import Request
from runtime.engine.scheduler import Scheduler
from runtime.samplers import GreedySampler
from tests.runtime.engine_runs import new_call
from tests.runtime.fake_decoder import SequenceDecoder

BLOCK = 4


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
