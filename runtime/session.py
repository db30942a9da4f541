"""A bundle on the CPU: ONNX Runtime sessions over its graphs, run on the buffers of a KV cache."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.contract import (
    HIDDEN_STATES,
    INPUT_IDS,
    LOGITS,
    NEW_LENGTHS,
    OUTPUT_POSITIONS,
    PAST_LENGTHS,
    Phase,
    past_names,
    present_names,
)
from runtime.bundle import Bundle
from runtime.cache import KVCache
from runtime.decoder import IntArray, StepOutput
from runtime.devices import CPU
from runtime.onnx_runtime import ort
from runtime.session_opener import SessionOpener, check_threads
from runtime.system.available_memory import address_space_is_limited
from runtime.system.forked_process import keep_in_children
from runtime.system.interruptible_run import run_interruptibly
from runtime.wanted_outputs import WantedOutputs, last_tokens

# Weights times tokens of a run that is worth a thread of its own, to be able to end it: tens of
# milliseconds, where the thread costs a tenth of one.
LONG_RUN = 5e9
SPARE_ROWS = 64  # of a cache, which take no memory until they are used; more rows cost a copy of all
CHUNK_TOKENS = 192  # of a long prompt at a time: its scores fit the cache, and their memory is bounded
# Kernels compute a row in the same order among two and more of them; those of int4 take rows in pairs.
BLOCK_TOKENS = 32


class BoundCache(KVCache):
    """A KV cache that is bound to both graphs, with the buffers of decode steps."""

    def __init__(self, decoder: SessionDecoder, batch: int, capacity: int) -> None:
        super().__init__(decoder.config, batch, capacity, decoder.cache_dtype)
        self._decoder = weakref.proxy(decoder)
        self.decode_ids = np.zeros((batch, 1), np.int64)
        self.new_lengths = np.zeros(batch, np.int32)
        self._decode_outputs = np.arange(batch, dtype=np.int64)
        # Zeros, so that rows which have had no token yet do not show what the memory held before.
        self.logits = np.zeros((batch, decoder.config.vocabulary_size), np.float32)
        # Bound once for each number of rows: a step writes new numbers into the same buffers.
        self._decode_bindings: dict[int, list[tuple[slice, Any]]] = {}
        # The lengths as plain numbers, and what a step gives: always the same buffer.
        self.length_view = self.lengths.data
        self.step_output = StepOutput(self.logits)

    def decode_bindings(self, count: int) -> list[tuple[slice, Any]]:
        """Rows that take a decode step together, of the first `count`, and their binding."""
        found = self._decode_bindings.get(count)
        if found is None:
            found = [(rows, self._bind(rows)) for rows in self._decoder.groups(count)]
            self._decode_bindings[count] = found
        return found

    def _bind(self, rows: slice) -> Any:
        ids, lengths = self.decode_ids[rows], self.new_lengths[rows]
        places, logits = self._decode_outputs[: rows.stop - rows.start], self.logits[rows]
        return self._decoder.bind(Phase.DECODE, self, ids, lengths, places, logits, None, rows)


class SessionDecoder:
    """A `runtime.decoder.Decoder` that runs a bundle on the CPU.

    Args:
        bundle: what to run.
        threads: CPU threads of a step; by default one for each physical core that this process may
            use, see `runtime.system.threads`.
        packed_weights: whether a bundle for CPUs may keep its weights packed on disk, see
            `runtime.packs.packed_weights`. `False` packs them in memory at every start, for this
            process alone, and writes nothing: for a bundle that is run once, or where disk is scarce.
            `None` maps them as they are: slow, for a few steps of a large model.
        independent_rows: whether what a row becomes must not depend on the rows beside it, where that
            costs speed: the int4 kernel takes rows in pairs and rounds a single one differently, so
            that rows run one at a time. Other precisions' rows are independent as they are.

    Warns:
        RuntimeWarning: if the weights cannot be kept packed on disk; they are packed in memory then.

    Raises:
        ValueError: if the thread count is not valid.
        BundleError: if ONNX Runtime cannot load a graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        *,
        packed_weights: bool | None = True,
        independent_rows: bool = True,
    ) -> None:
        self.config = bundle.manifest.model
        self.cache_dtype = bundle.manifest.cache_dtype
        self._portable = bundle.manifest.target == "portable"
        self._rows_alone = independent_rows and bundle.manifest.precision == "int4"
        self.device = CPU.name
        opener = SessionOpener(bundle, check_threads(threads))
        if self._portable or packed_weights is None:
            open_session = opener.unpacked
        else:
            open_session = opener.packed_on_disk if packed_weights else opener.packed_in_memory
        graphs = bundle.manifest.graphs
        sessions = {graph: open_session(graph) for graph in dict.fromkeys(graphs.values())}
        bundle.check_unchanged()
        self._sessions = {phase: sessions[graph] for phase, graph in graphs.items()}
        for session in sessions.values():
            keep_in_children(session)
        self._weights = self.config.num_parameters
        self.block_tokens: int | None = None if self._portable else BLOCK_TOKENS
        self.chunk_tokens = CHUNK_TOKENS
        # Rows take memory where they are written to; but all of the address space, where that is short.
        self.keeps_slots = not address_space_is_limited()
        self.spare_rows = SPARE_ROWS if self.keeps_slots else 0

    def slot_capacity(self, tokens: int) -> int:
        """The capacity of the cache in which sequences of up to so many tokens run together."""
        return self.config.max_sequence_length if self.keeps_slots else tokens

    def new_cache(self, batch: int, capacity: int) -> BoundCache:
        """An empty cache of `batch` rows with room for `capacity` tokens each."""
        return BoundCache(self, batch, capacity)

    def groups(self, batch: int) -> list[slice]:
        """The rows that take a decode step together."""
        return [slice(i, i + 1) for i in range(batch)] if self._rows_alone else [slice(0, batch)]

    def append(
        self,
        cache: BoundCache,
        token_ids: IntArray,
        new_lengths: IntArray,
        *,
        first_row: int = 0,
        outputs: IntArray | None = None,
        hidden_states: bool = False,
        check: Callable[[], object] | None = None,
    ) -> StepOutput:
        """Appends tokens to a cache; see `runtime.decoder.Decoder.append`.

        A long run ends on a signal whose handler raises, Ctrl-C's for one, and with what `check`
        raises. What a run that was ended should have appended to the cache is not in it.

        Returns:
            Of a row without new tokens the logits are finite numbers without a meaning.

        Raises:
            ValueError: if the shapes do not fit the cache, it has no room, or an output is no token.
        """
        added = cache.check_new_tokens(token_ids, new_lengths, first_row)
        batch, sequence = token_ids.shape
        if sequence == 1 and outputs is None and not hidden_states and not first_row:
            cache.new_lengths[:batch] = new_lengths
            cache.decode_ids[:batch] = token_ids
            for rows, binding in cache.decode_bindings(batch):
                if any(added[rows]):
                    self._run(Phase.DECODE, binding, len(added[rows]), check)
            for row, count in enumerate(added):
                cache.length_view[row] += count
            return cache.step_output
        wanted = hidden = None
        if outputs is not None:
            wanted = WantedOutputs(outputs, batch, sequence, self.config.vocabulary_size)
        if hidden_states:
            hidden = np.zeros((batch, sequence, self.config.embedding_width), np.float32)
        past = cache.lengths[first_row : first_row + batch]
        for rows, columns in self._pieces(past, new_lengths, sequence, cache.capacity):
            tokens = np.ascontiguousarray(token_ids[rows, columns], np.int64)
            lengths = np.clip(new_lengths[rows] - columns.start, 0, tokens.shape[1]).astype(np.int32)
            states = None if hidden is None else hidden[rows, columns]
            place = slice(first_row + rows.start, first_row + rows.stop)
            phase = Phase.DECODE if tokens.shape[1] == 1 else Phase.PREFILL
            positions, logits = last_tokens(lengths, tokens.shape[1]), cache.logits[place]
            if wanted is not None:
                places, positions = wanted.places(rows, columns)
                logits = wanted.buffer(places)
            binding = self.bind(phase, cache, tokens, lengths, positions, logits, states, place)
            self._run(phase, binding, tokens.size, check)
            if wanted is not None:
                wanted.put(places, logits)
            cache.lengths[place] += lengths
        return StepOutput(cache.logits if wanted is None else wanted.logits, hidden)

    def _pieces(
        self, past: IntArray, new_lengths: IntArray, sequence: int, capacity: int
    ) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the runs that appending tokens takes.

        The fused attention takes several tokens after a past for one row at a time, without padding.
        It also computes scores of the whole square, so that long prompts cost less in chunks.
        """
        if not new_lengths.any():
            return
        # Padding is written too, so it needs room.
        fits = not past.any() and sequence <= min(CHUNK_TOKENS, capacity)
        if not self._rows_alone and (sequence == 1 or self._portable or fits):
            yield slice(0, len(past)), slice(0, sequence)
            return
        for row, length in enumerate(new_lengths.tolist()):
            # The last run takes one more where a single token would be left.
            for start in range(0, max(min(1, length), length - 1), CHUNK_TOKENS):
                stop = start + CHUNK_TOKENS
                yield slice(row, row + 1), slice(start, stop if stop < length - 1 else length)

    def _run(self, phase: Phase, binding: Any, tokens: int, check: Callable[[], object] | None) -> None:
        run = self._sessions[phase].run_with_iobinding
        if self._weights * tokens < LONG_RUN:
            run(binding)
            return
        options = ort.RunOptions()
        run_interruptibly(
            lambda: run(binding, options), lambda: setattr(options, "terminate", True), check
        )

    def bind(
        self,
        phase: Phase,
        cache: BoundCache,
        token_ids: NDArray[np.int64],
        new_lengths: NDArray[np.int32],
        output_positions: NDArray[np.int64],
        logits: NDArray[np.float32],
        hidden_states: NDArray[np.float32] | None,
        rows: slice,
    ) -> Any:
        """Binds the buffers of some of a cache's rows to a graph, the same as past and as present."""
        binding = self._sessions[phase].io_binding()
        inputs = {
            INPUT_IDS: token_ids,
            PAST_LENGTHS: cache.lengths[rows],
            NEW_LENGTHS: new_lengths,
            OUTPUT_POSITIONS: output_positions,
        }
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        outputs = {LOGITS: logits}
        if hidden_states is not None:
            outputs[HIDDEN_STATES] = hidden_states
        for name, output in outputs.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(output))
        for layer, buffers in enumerate(cache.layers):
            names = zip(past_names(layer), present_names(layer), buffers, strict=True)
            for past, present, buffer in names:
                value = ort.OrtValue.ortvalue_from_numpy(buffer[rows])
                binding.bind_ortvalue_input(past, value)
                binding.bind_ortvalue_output(present, value)
        return binding
