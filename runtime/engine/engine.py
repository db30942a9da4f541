"""The step: sequences come and go, and one run of the model serves all that are there.

Each step ends what is cut, lets in what waits, appends the newest token of every sequence that has been
read, and reads parts of prompts within a budget of tokens. What a sequence becomes does not depend on
the others: rows are independent, each has its own random generator, and prompts are read up to the same
borders in any company.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from runtime.call_limits import CallCut
from runtime.decoder import Decoder
from runtime.engine.call import Call, Entry
from runtime.engine.memory import CacheMemory
from runtime.engine.outcome import Outcome, outcomes, scored_tokens
from runtime.engine.prefixes import Prefixes
from runtime.engine.scheduler import STEP_TOKENS, Scheduler, has_ended
from runtime.engine.sequence import Sequence
from runtime.engine.slots import Slots
from runtime.errors import CacheMemoryError, LogitsError

MAX_SLOTS = 256  # rows of the cache in use at a time


class Engine:
    """Runs a model for all calls that it has been given, step by step.

    Not for several threads at once; `runtime.engine.turns` sees to that.

    Args:
        decoder: the model.
        max_cache_bytes: see `runtime.engine.memory.CacheMemory`.
        max_prefix_bytes: see `runtime.engine.prefixes.Prefixes`.
        max_slots: rows of the cache that may be in use at a time; what needs more waits.
        step_tokens: most tokens of prompts that a step reads while sequences wait for their next one.

    Attributes:
        prefixes: beginnings of prompts that are kept; `None` where the model reads prompts whole.
        memory: what the rows take.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_cache_bytes: int | None = None,
        max_prefix_bytes: int | None = None,
        max_slots: int = MAX_SLOTS,
        step_tokens: int = STEP_TOKENS,
    ) -> None:
        block = decoder.block_tokens
        self.prefixes = None if block is None else Prefixes(block, max_prefix_bytes)
        self.memory = CacheMemory(decoder, max_cache_bytes)
        self._decoder = decoder
        self._max_slots = max_slots
        self._scheduler = Scheduler(block, decoder.chunk_tokens, step_tokens)
        self._calls: list[Call] = []
        self._slots: dict[int, Slots] = {}  # by the capacity of their rows
        # What has been run and not been looked at: a signal may come in between.
        self._outcomes: list[Outcome] = []

    def check(self, call: Call) -> None:
        """Checks that a call can be served at all.

        Raises:
            ValueError: if its search takes more rows than there may be.
            CacheMemoryError: if one of its sequences could never fit.
        """
        rows = call.search.rows
        if rows > self._max_slots:
            raise ValueError(
                f"a search of {rows} rows for each prompt is more than the {self._max_slots} rows that "
                "may be in use; give it fewer beams or candidates"
            )
        for sequence in call.sequences:
            if sequence.finish_reason is None and self.memory.never_fits(sequence, rows):
                refusal = self.memory.refusal(sequence, rows)
                assert refusal is not None
                raise refusal

    def add(self, call: Call) -> None:
        """Takes a call that has been checked; its sequences begin in one of the next steps."""
        self._calls.append(call)
        self._scheduler.add(call)

    def step(self) -> None:
        """One run of the model for each thing that there is to do."""
        if self._outcomes:
            self._accept_rest()
        for call in self._calls:
            call.check_limits()
        self.release_ended()
        if self._scheduler.waiting:
            self._admit()
        for slots in [*self._slots.values()]:
            entries = self._scheduler.running
            if len(self._slots) > 1:
                entries = [entry for entry in entries if entry[1].capacity == slots.capacity]
            # In this order, so that a prompt's first token is there as soon as the prompt is read.
            self._decode(slots, entries)
            self._read(slots, entries)
        self.release_ended()

    def release_ended(self) -> None:
        """Frees the rows of what has ended."""
        for call, sequence in self._scheduler.drop_ended():
            slots = self._slots[sequence.capacity]
            slots.free(sequence, clean=isinstance(call.error, LogitsError))
            self.memory.give_back(sequence)
            if not slots.used:
                self._drop_unused()
        if any([call.ended for call in self._calls]):
            self._calls = [call for call in self._calls if not call.ended]

    def _drop_unused(self) -> None:
        """Frees the caches that no sequence has rows of, where these cost memory."""
        if not self._decoder.keeps_slots:
            self._slots = {c: slots for c, slots in self._slots.items() if slots.used}

    # === Coming ===

    def _admit(self) -> None:
        """Gives rows to those that wait, in their order, as far as there are rows and memory."""
        scheduler = self._scheduler
        rows = sum(len(sequence.rows) for _, sequence in scheduler.running)
        idle = sum(slots.idle_bytes for slots in self._slots.values())
        admitted: list[Entry] = []
        refusal = None
        for call, sequence in scheduler.waiting:
            rows += call.search.rows
            if rows > self._max_slots:
                break
            refusal = self.memory.refusal(sequence, call.search.rows, idle)
            if refusal is not None:
                break
            self.memory.promise(sequence, call.search.rows)
            sequence.capacity = self._decoder.slot_capacity(sequence.request.room)
            admitted.append((call, sequence))
        count, missing = self._reserve(admitted)
        for _, sequence in admitted[count:]:
            self.memory.give_back(sequence)
        refusal = missing or refusal
        if not count and not scheduler.running and refusal is not None:  # nobody's end would help
            scheduler.waiting[0][0].error = refusal
        started = scheduler.start(count)
        # First of all those that read prompts, which are neighbours so.
        for call, sequence in started:
            self._slots[sequence.capacity].take(sequence, 1, call.search.temperature_of(sequence))
        for call, sequence in started:
            more = call.search.rows - 1
            self._slots[sequence.capacity].take(sequence, more, call.search.temperature_of(sequence))

    def _reserve(self, admitted: list[Entry]) -> tuple[int, CacheMemoryError | None]:
        """Sees to rows for as many of some sequences as there is room for; and why for no more."""
        refusal = None
        count = len(admitted)
        while count:
            needed: dict[int, int] = {}
            for call, sequence in admitted[:count]:
                needed[sequence.capacity] = needed.get(sequence.capacity, 0) + call.search.rows
            try:
                for capacity, rows in needed.items():
                    slots = self._slots.get(capacity)
                    if slots is None:
                        slots = Slots(self._decoder, capacity, self.memory.new_cache)
                    slots.reserve(rows)
                    self._slots[capacity] = slots
                return count, refusal
            except CacheMemoryError as error:
                # Without the frames that it came through: this one, which has caches, would live on.
                refusal = error.with_traceback(None)
                self._drop_unused()  # some were made for sequences that do not begin now
                count //= 2
        return 0, refusal

    # === Running ===

    def _read(self, slots: Slots, entries: list[Entry]) -> None:
        """Reads parts of the prompts that are not read yet."""
        if all([sequence.feed for _, sequence in entries]):
            return
        going_on = [entry for entry in entries if not has_ended(*entry)]
        unread, twins = _twins([entry for entry in going_on if not entry[1].feed], slots)
        if not unread:
            return

        def length(call: Call, sequence: Sequence) -> int:
            return self._reuse(slots, call, sequence)

        # A call's own prompts stall nobody else.
        reader = unread[0][0]
        decoding = sum([bool(sequence.feed) and call is not reader for call, sequence in going_on])
        for piece in self._scheduler.pieces(unread, length, decoding=decoding):
            if all(has_ended(*entry) for entry in piece.sequences):  # cut by the run before
                continue
            lengths = np.array([stop - piece.start for stop in piece.stops], np.int32)
            token_ids = np.zeros((len(lengths), int(lengths.max())), np.int64)
            for i, (_, sequence) in enumerate(piece.sequences):
                token_ids[i, : lengths[i]] = sequence.request.prompt[piece.start : piece.stops[i]]
            first_row = piece.sequences[0][1].rows[0]
            self._run(slots, piece.sequences, token_ids, lengths, first_row, twins)
            if self.prefixes is not None:
                for call, sequence in piece.sequences:
                    if call.error is None:
                        self.prefixes.keep(sequence.request.prompt, slots.cache, sequence.rows[0])

    def _reuse(self, slots: Slots, call: Call, sequence: Sequence) -> int:
        """Takes what is kept of a prompt; returns how much of it is read."""
        if self.prefixes is not None:
            prompt, row = sequence.request.prompt, sequence.rows[0]
            most = call.search.first_output(sequence)
            sequence.cached_prompt_tokens += self.prefixes.extend(prompt, slots.cache, row, most)
        return slots.length(sequence)

    def _decode(self, slots: Slots, entries: list[Entry]) -> None:
        """Appends the newest tokens of all sequences that have been read, in one run."""
        ready = [entry for entry in entries if entry[1].feed and not has_ended(*entry)]
        if not ready:
            return
        slots.close_gaps()
        token_ids = np.zeros((slots.used, 1), np.int64)
        new_lengths = np.zeros(slots.used, np.int32)
        for _, sequence in ready:
            slots.copy(sequence)
            for row, token_id in zip(sequence.rows, sequence.feed, strict=True):
                if token_id is not None:
                    token_ids[row, 0] = token_id
                    new_lengths[row] = 1
        self._run(slots, ready, token_ids, new_lengths, 0)

    def _run(
        self,
        slots: Slots,
        entries: list[Entry],
        token_ids: NDArray[np.int64],
        new_lengths: NDArray[np.int32],
        first_row: int,
        twins: Mapping[Sequence, list[Sequence]] | None = None,
    ) -> None:
        """Appends tokens to rows of the cache, and has the searches look at what comes of it."""
        started = time.perf_counter()
        parts = outcomes(entries, slots.cache, new_lengths)
        only = parts[0].call if len(parts) == 1 else None
        lengths, before = slots.cache.lengths, slots.cache.lengths.copy()
        outputs = None
        if not entries[0][1].feed:  # some of which may score what they read
            outputs = scored_tokens(entries, lengths[first_row:], token_ids.shape[1], new_lengths)
        try:
            output = self._decoder.append(
                slots.cache,
                token_ids,
                new_lengths,
                first_row=first_row,
                outputs=outputs,
                hidden_states=any(part.call.search.hidden_states for part in parts),
                check=None if only is None else only.limits.check,
            )
            for part in parts:
                part.output = output
                if twins:
                    part.share(twins)
            self._outcomes = parts
        except CallCut as cut:
            assert only is not None  # whose limits these were
            only.cut(cut.reason)
            return
        except Exception as error:
            # Its traceback would keep the calls, which keep the error, and the cache with them.
            error.__traceback__ = None
            for part in parts:
                part.call.error = error
            return
        except BaseException:  # a signal in this thread; other threads' sequences go on
            if self._outcomes is not parts:
                lengths[:] = before
            raise
        for part in tuple(parts):
            part.accept()
            self._outcomes.pop(0)
            part.add_seconds(time.perf_counter() - started)

    def _accept_rest(self) -> None:
        """Has the searches look at what a signal kept them from."""
        while self._outcomes:
            self._outcomes[0].accept()
            self._outcomes.pop(0)


def _twins(unread: list[Entry], slots: Slots) -> tuple[list[Entry], dict[Sequence, list[Sequence]]]:
    """Sequences that read prompts, and those of the same calls that share what each of them reads."""
    readers: dict[tuple[int, tuple[int, ...]], Sequence] = {}
    twins: dict[Sequence, list[Sequence]] = {}
    reading = []
    for call, sequence in unread:
        reader = readers.setdefault((id(call), sequence.request.prompt), sequence)
        alone = call.search.hidden_states or call.search.scores or not slots.shares_logits
        if reader is sequence or alone:
            reading.append((call, sequence))
        else:
            twins.setdefault(reader, []).append(sequence)
    return reading, twins
