"""A bundle on a device whose memory holds the cache, a step's inputs and its results.

A decode step is one copy to the device, one run and one copy back: what the host reads are the best
logits of each row. On a GPU the run replays a CUDA graph, which starts all kernels at once.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.contract import (
    CACHE_BYTES,
    HIDDEN_STATES,
    LOGITS,
    OUTPUT_POSITIONS,
    TOTAL_LENGTH,
    Phase,
    Revision,
    past_names,
    present_names,
)
from graphs.manifest import Manifest
from runtime.cache import SPARE_SLOTS
from runtime.decoder import IntArray, LazyStepOutput, StepOutput
from runtime.engine.memory import CacheDemand
from runtime.errors import DeviceMemoryError
from runtime.gpu.buffers import (
    CAPACITY_STEP,
    BufferPool,
    CacheBuffers,
    CacheShape,
    DecodeStep,
    ScratchBuffer,
    result_names,
)
from runtime.gpu.cache import DeviceCache
from runtime.gpu.memory import DeviceMemory
from runtime.gpu.packed_arrays import ALIGNMENT, PackedArrays
from runtime.gpu.runs import DeviceRuns
from runtime.gpu.step_inputs import fill, input_layout
from runtime.system.forked_process import keep_in_children
from runtime.wanted_outputs import WantedOutputs

# Rows times tokens of a run: enough to keep a GPU busy, few enough to bound what lies between layers.
RUN_TOKENS = 8192
# Of a run where the logits of more are wanted: those of a token take more than all that lies between
# layers, several times over.
OUTPUT_TOKENS = 512
_ELEMENT_TYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": 16}


class DeviceDecoder:
    """A `runtime.decoder.Decoder` over buffers of a device.

    Args:
        manifest: of the bundle.
        sessions: ONNX Runtime's, one for each phase or one for both.
        memory: of the device that they run on.
        cuda_graphs: whether decode steps are recorded and replayed as CUDA graphs.

    Attributes:
        device: its name, `"cuda:0"` for one.
    """

    def __init__(
        self,
        manifest: Manifest,
        sessions: Mapping[Phase, Any],
        memory: DeviceMemory,
        *,
        cuda_graphs: bool,
    ) -> None:
        self.config = manifest.model
        self.cache_dtype = manifest.cache_dtype
        self.device = memory.name
        self._revision = manifest.contract_revision
        self._sessions = dict(sessions)
        self._memory = memory
        self._pool = BufferPool()
        self._scratch = ScratchBuffer(memory)
        self._runs = DeviceRuns(cuda_graphs=cuda_graphs)
        self._graph_ids: dict[tuple[int, ...], int] = {}
        self._new_ids = itertools.count(1)
        self._last_position = self.config.max_sequence_length - 1
        self.block_tokens: int | None = None
        self.chunk_tokens = RUN_TOKENS
        self.spare_rows = 0
        self.keeps_slots = False  # the pool keeps their buffers
        # A session that records CUDA graphs runs one thing at a time.
        self._lock = threading.Lock()
        for session in set(self._sessions.values()):
            keep_in_children(session)

    def slot_capacity(self, tokens: int) -> int:
        """The capacity of the cache in which sequences of up to so many tokens run together.

        One of few, so that recorded graphs are found again.
        """
        size = CAPACITY_STEP
        while size - SPARE_SLOTS < tokens:
            size *= 2
        return max(tokens, min(size - SPARE_SLOTS, self.config.max_sequence_length))

    # === Caches ===

    def cache_demand(self, batch: int, capacity: int) -> CacheDemand:
        """What a cache would take and may have, see `runtime.engine.memory`."""
        shape = self._shape(batch, capacity)
        free = self._memory.available_bytes()
        # Idle buffers are freed where there is no room beside them.
        available = None if free is None else free + self._pool.idle_bytes
        workspace = self._workspace_bytes(batch, min(RUN_TOKENS, batch * capacity))
        more = max(0, workspace - self._runs.arena_bytes)
        return CacheDemand(shape.nbytes, more, available, self.device)

    def new_cache(self, batch: int, capacity: int) -> DeviceCache:
        """An empty cache of `batch` rows with room for `capacity` tokens each.

        Raises:
            DeviceMemoryError: if it does not fit.
        """
        buffers = self._buffers(self._shape(batch, capacity))
        return DeviceCache(self._memory, buffers, self._pool, capacity)

    def _shape(self, batch: int, capacity: int) -> CacheShape:
        return CacheShape(self.config, self.cache_dtype, batch, capacity)

    def _workspace_bytes(self, outputs: int, tokens: int) -> int:
        """About what lies between layers in a run of so many tokens, and beside the logits of some."""
        c, itemsize = self.config, CACHE_BYTES[self.cache_dtype]
        between = itemsize * tokens * (2 * c.intermediate_dim + 7 * c.hidden_dim)
        return between + 16 * outputs * c.vocabulary_size

    def _buffers(self, shape: CacheShape) -> CacheBuffers:
        pooled = self._pool.take(shape)
        if pooled is not None:
            return pooled
        while True:
            try:
                buffers = CacheBuffers(self._memory, self.config, self._revision, shape)
                break
            except DeviceMemoryError:
                if not self._pool.free_one():
                    raise
        return buffers

    # === Steps ===

    def append(
        self,
        cache: DeviceCache,
        token_ids: IntArray,
        new_lengths: IntArray,
        *,
        first_row: int = 0,
        outputs: IntArray | None = None,
        hidden_states: bool = False,
        check: Callable[[], object] | None = None,
    ) -> StepOutput:
        """Appends tokens to a cache; see `runtime.decoder.Decoder.append`.

        `check` is called before each run of a prompt; where it raises, the cache holds a part of it.

        Returns:
            The best logits, and all of them when they are looked at, which must be before the next
            step. Those of a row without new tokens have no meaning. With `outputs`, all logits of
            these and no best ones.

        Raises:
            ValueError: if the shapes do not fit the cache, it has no room, or an output is no token.
        """
        cache.check_new_tokens(token_ids, new_lengths, first_row)
        batch, sequence = token_ids.shape
        buffers, wanted, hidden = cache.buffers, None, None
        most = RUN_TOKENS
        if outputs is not None:
            wanted = WantedOutputs(outputs, batch, sequence, self.config.vocabulary_size)
            if len(outputs) > max(batch, OUTPUT_TOKENS):
                most = min(RUN_TOKENS, OUTPUT_TOKENS)
        with self._lock:
            if sequence == 1 and outputs is None and not hidden_states and not first_row:
                self._decode(cache, token_ids, new_lengths)
            else:
                if hidden_states:
                    hidden = np.zeros((batch, sequence, self.config.embedding_width), np.float32)
                past = cache.lengths[first_row : first_row + batch]
                pieces = self._pieces(past, new_lengths, sequence, buffers.shape.slots, most)
                for rows, columns in pieces:
                    if check is not None:
                        check()
                    tokens = token_ids[rows, columns]
                    lengths = np.clip(new_lengths[rows] - columns.start, 0, tokens.shape[1])
                    states = None if hidden is None else hidden[rows, columns]
                    positions = logits = None
                    if wanted is not None:
                        places, positions = wanted.places(rows, columns)
                        logits = wanted.buffer(places)
                    place = first_row + rows.start
                    self._run_piece(cache, place, tokens, lengths, states, positions, logits)
                    if wanted is not None and logits is not None:
                        wanted.put(places, logits)
            if wanted is not None:
                return StepOutput(wanted.logits, hidden)
            if self._revision is Revision.HOST:
                return StepOutput(buffers.read_logits(), hidden)
            buffers.results.download()
        assert buffers.best is not None
        # Through the cache, without which its buffers are another one's soon.
        return LazyStepOutput(buffers.best, cache.read_logits, hidden)

    def _decode(self, cache: DeviceCache, token_ids: IntArray, new_lengths: IntArray) -> None:
        """One step of the first rows, and of idle ones up to a number for which there is a step."""
        batch = len(token_ids)
        rows = min(cache.batch, 1 << (batch - 1).bit_length())
        step = self._decode_step(cache.buffers, rows)
        ids, lengths = np.zeros((rows, 1), np.int64), np.zeros(rows, np.int64)
        ids[:batch], lengths[:batch] = token_ids, new_lengths
        self._fill(step.inputs, cache, slice(0, rows), ids, lengths, None)
        session = self._sessions[Phase.DECODE]
        self._runs.run_recorded(session, step.binding, step.options, step.graph_id)
        cache.lengths[:batch] += new_lengths.astype(np.int32, copy=False)

    def _decode_step(self, buffers: CacheBuffers, rows: int) -> DecodeStep:
        step = buffers.steps.get(rows)
        if step is None:
            # What ONNX Runtime has recorded it keeps: buffers at the places of former ones use theirs.
            places = (rows, buffers.shape.batch, buffers.shape.slots, *buffers.addresses)
            graph_id = self._graph_ids.setdefault(places, next(self._new_ids))
            inputs = buffers.inputs(rows)
            total = np.array([buffers.shape.slots], np.int32)
            binding = self._bind(Phase.DECODE, buffers, inputs, slice(0, rows), total)
            options = self._runs.options(graph_id)
            step = buffers.steps[rows] = DecodeStep(inputs, binding, options, graph_id, total)
        return step

    def _fill(
        self,
        inputs: PackedArrays,
        cache: DeviceCache,
        rows: slice,
        token_ids: IntArray,
        new_lengths: IntArray,
        outputs: NDArray[np.int64] | None,
    ) -> None:
        past, last = cache.lengths[rows], self._last_position
        temperatures = cache.temperatures[rows]
        if outputs is not None:  # nobody sees what they would be for
            temperatures = np.ones(len(outputs), np.float32)
        fill(inputs, self._revision, token_ids, past, new_lengths, temperatures, last, outputs)
        inputs.upload()

    def _pieces(
        self, past: IntArray, new_lengths: IntArray, sequence: int, slots: int, most: int
    ) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the runs, each of at most `most` tokens, that appending takes.

        The attention takes several tokens after a past for one row at a time, without padding; graphs
        of `Revision.HOST` take any.
        """
        if not new_lengths.any():
            return
        together = sequence == 1 or not past.any() or self._revision is Revision.HOST
        if sequence <= min(most, slots) and together:
            count = most // sequence
            for start in range(0, len(past), count):
                yield slice(start, min(start + count, len(past))), slice(0, sequence)
            return
        for row, length in enumerate(new_lengths.tolist()):
            for start in range(0, length, most):
                yield slice(row, row + 1), slice(start, min(start + most, length))

    def _run_piece(
        self,
        cache: DeviceCache,
        first_row: int,
        tokens: IntArray,
        lengths: IntArray,
        hidden_states: NDArray[np.float32] | None,
        outputs: NDArray[np.int64] | None,
        logits: NDArray[np.float32] | None,
    ) -> None:
        """Runs some rows' tokens; what the caller wants of them is written to its arrays.

        Without `outputs` the logits of each row's last token go to the cache's buffers.
        """
        batch, sequence = tokens.shape
        rows = slice(first_row, first_row + batch)
        count = batch if outputs is None else len(outputs)
        layout = input_layout(batch, sequence, count, self._revision)
        width = self.config.embedding_width
        hidden_bytes = 0 if hidden_states is None else 4 * batch * sequence * width
        hidden_bytes = -(-hidden_bytes // ALIGNMENT) * ALIGNMENT
        logits_bytes = 0 if logits is None else logits.nbytes
        scratch = self._scratch.of_size(layout.nbytes + hidden_bytes + logits_bytes)
        inputs = PackedArrays(self._memory, layout, scratch)
        self._fill(inputs, cache, rows, tokens, lengths, outputs)
        total = np.array([self._total_length(cache, rows, sequence)], np.int32)
        phase = Phase.DECODE if sequence == 1 else Phase.PREFILL
        logits_place = None if logits is None else scratch + layout.nbytes + hidden_bytes
        binding = self._bind(phase, cache.buffers, inputs, rows, total, logits_place)
        if hidden_states is not None:
            shape, place = [batch, sequence, width], scratch + layout.nbytes
            self._bind_one(binding.bind_output, HIDDEN_STATES, np.float32, shape, place)
        self._runs.run(self._sessions[phase], binding)
        if self.device != "cpu":
            taken = self._workspace_bytes(count, batch * sequence)
            self._runs.arena_bytes = max(self._runs.arena_bytes, taken)
        if hidden_states is not None:
            found = np.empty((batch, sequence, width), np.float32)
            self._memory.read(scratch + layout.nbytes, found)
            hidden_states[...] = found
        if logits is not None and logits_place is not None:
            self._memory.read(logits_place, logits)
        cache.lengths[rows] += lengths.astype(np.int32, copy=False)

    def _total_length(self, cache: DeviceCache, rows: slice, sequence: int) -> int:
        """See `graphs.contract.graph_inputs`."""
        if sequence == 1:
            return cache.buffers.shape.slots
        return sequence + int(cache.lengths[rows].max())

    # === Bindings ===

    def _bind(
        self,
        phase: Phase,
        buffers: CacheBuffers,
        inputs: PackedArrays,
        rows: slice,
        total_length: NDArray[np.int32],
        logits: int | None = None,
    ) -> Any:
        """Binds some rows' buffers to a graph, those of the cache as past and as present.

        `total_length` must live as long as the binding. Where there is no other address of the logits,
        these and the best ones are written to the rows' own.
        """
        binding = self._sessions[phase].io_binding()
        first, batch = rows.start, rows.stop - rows.start
        for name, array in inputs.views.items():
            self._bind_one(
                binding.bind_input, name, array.dtype.type, array.shape, inputs.address(name)
            )
        if self._revision is Revision.DEVICE:
            place = total_length.ctypes.data
            binding.bind_input(TOTAL_LENGTH, "cpu", 0, np.int32, [1], place)
        shape = [len(inputs.views[OUTPUT_POSITIONS]), self.config.vocabulary_size]
        place = buffers.logits_row(first) if logits is None else logits
        self._bind_one(binding.bind_output, LOGITS, np.float32, shape, place)
        for name in result_names(self._revision) if logits is None else ():
            array = buffers.results.views[name]
            shape = [batch, *array.shape[1:]]
            place = buffers.results.address(name, first)
            self._bind_one(binding.bind_output, name, array.dtype.type, shape, place)
        element = _ELEMENT_TYPES[self.cache_dtype]
        shape = [batch, self.config.num_heads, buffers.shape.slots, self.config.head_dim]
        for layer in range(self.config.num_layers):
            for i, names in enumerate(zip(past_names(layer), present_names(layer), strict=True)):
                place = buffers.tensor(2 * layer + i, first)
                self._bind_one(binding.bind_input, names[0], element, shape, place)
                self._bind_one(binding.bind_output, names[1], element, shape, place)
        return binding

    def _bind_one(self, bind: Any, name: str, element: Any, shape: Any, place: int) -> None:
        bind(name, self._memory.device_type, self._memory.device_id, element, list(shape), place)
