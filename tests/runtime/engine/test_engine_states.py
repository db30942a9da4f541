"""The engine as a state machine: whatever comes, steps, is cut or left, in whatever order."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.call_limits import CallLimits
from runtime.engine.call import Call
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.samplers import (
    BeamSampler,
    ContrastiveSampler,
    GreedySampler,
    RandomSampler,
    Sampler,
)
from tests.runtime.engine.test_company import POSITIONS, VOCABULARY, ChunkDecoder, assert_empty, result
from tests.runtime.engine_runs import begin, run
from tests.runtime.fake_decoder import SequenceDecoder

MAX_SLOTS, PREFIX_BYTES = 6, 16
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=14).map(tuple)  # many begin alike
REQUESTS = st.lists(
    st.builds(
        lambda prompt, more, stops: Request(prompt, min(POSITIONS, len(prompt) + more), stops),
        PROMPTS,
        st.integers(0, 6),
        st.frozensets(st.integers(0, VOCABULARY - 1), max_size=3),
    ),
    min_size=1,
    max_size=3,
)
SAMPLERS = st.one_of(
    st.just(GreedySampler()),
    st.integers(0, 9).map(lambda seed: RandomSampler(seed=seed)),
    st.builds(BeamSampler, st.integers(1, 4), st.booleans()),
    st.builds(ContrastiveSampler, st.integers(1, 3)),
)


class EngineStates(RuleBasedStateMachine):
    """An engine, and what each of its calls is to become."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = ChunkDecoder(VOCABULARY, 7)
        self.engine = Engine(self.decoder, None, PREFIX_BYTES, MAX_SLOTS)
        self.calls: list[tuple[Call, Sampler, threading.Event]] = []

    @rule(requests=REQUESTS, sampler=SAMPLERS, priority=st.integers(-2, 2))
    def add(self, requests: list[Request], sampler: Sampler, priority: int) -> None:
        cancel = threading.Event()
        search = sampler.search(requests, VOCABULARY)
        call = Call(requests, search, CallLimits(cancel=cancel), priority)
        self.calls.append((begin(self.engine, call), sampler, cancel))

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        data.draw(st.sampled_from(self.calls), label="call")[2].set()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        data.draw(st.sampled_from(self.calls), label="call")[0].left = True
        self.engine.release_ended()

    @invariant()
    def rows_belong_to_those_that_run(self) -> None:
        running = [sequence for _, sequence in self.engine._scheduler.running]
        rows = sorted(row for sequence in running for row in sequence.rows)
        assert len(rows) == len(set(rows)) <= MAX_SLOTS
        owned = [
            row
            for slots in self.engine._slots.values()
            for row, owner in enumerate(slots._owners)
            if owner is not None
        ]
        assert rows == owned

    @invariant()
    def prefixes_stay_within_their_bytes(self) -> None:
        prefixes = self.engine.prefixes
        assert prefixes is not None
        assert prefixes.bytes_in_use == 4 * len(prefixes._blocks) <= PREFIX_BYTES

    def teardown(self) -> None:
        for _ in range(2000):
            if all(call.ended for call, _, _ in self.calls):
                break
            self.engine.step()
        for call, sampler, _ in self.calls:
            assert call.ended
            assert call.error is None
            if call.cut_reason is None and not call.left:
                requests = [sequence.request for sequence in call.sequences]
                alone = run(SequenceDecoder(VOCABULARY, 7), requests, sampler)
                assert result(call) == result(alone)
        assert_empty(self.engine)


TestEngineStates = EngineStates.TestCase
TestEngineStates.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
