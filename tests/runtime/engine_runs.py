"""Calls of an engine in tests that need no generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runtime.call_limits import CallLimits
from runtime.engine.call import Call
from runtime.engine.engine import Engine
from runtime.engine.request import Request


def new_call(decoder: Any, requests: Sequence[Request], sampler: Any, **limits: Any) -> Call:
    """A call that no engine has yet."""
    search = sampler.search(requests, decoder.config.vocabulary_size)
    return Call(requests, search, CallLimits(**limits))


def begin(engine: Engine, call: Call) -> Call:
    """Gives an engine a call, if there is anything to do."""
    if not call.ended:
        engine.check(call)
        engine.add(call)
    return call


def run_calls(engine: Engine, *calls: Call) -> None:
    """Begins calls and steps the engine until all of them have ended."""
    for call in calls:
        begin(engine, call)
    while not all(call.ended for call in calls):
        engine.step()


def run(decoder: Any, requests: Sequence[Request], sampler: Any) -> Call:
    """A call from its first step to its last; raises its error."""
    call = new_call(decoder, requests, sampler)
    run_calls(Engine(decoder), call)
    call.check_error()
    return call


def steps(decoder: Any, call: Call) -> Iterator[dict[int, list[int]]]:
    """The new tokens of each step, by the index of the sequence."""
    engine = Engine(decoder)
    begin(engine, call)
    while not call.ended:
        known = [len(sequence.token_ids) for sequence in call.sequences]
        engine.step()
        call.check_error()
        pairs = zip(call.sequences, known, strict=True)
        yield {s.index: s.token_ids[n:] for s, n in pairs if len(s.token_ids) > n}
