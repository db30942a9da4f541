"""ONNX Runtime sessions over a bundle's two graphs: the one file that imports onnxruntime."""

from __future__ import annotations

import contextlib
import operator
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.contract import (
    HIDDEN_STATES,
    INPUT_IDS,
    LOGITS,
    NEW_LENGTHS,
    PAST_LENGTHS,
    Phase,
    past_names,
    present_names,
)
from graphs.manifest import FileEntry
from runtime.bundle import Bundle
from runtime.cache import KVCache
from runtime.cpu_features import sums_8_bit_products_exactly
from runtime.decoder import IntArray, StepOutput
from runtime.errors import BundleError, RuntimeMissingError
from runtime.packed_weights import DATA_FILE, MODEL_FILE, PackedWeights, PackError
from runtime.threads import available_cores

# ONNX Runtime reports usage to its makers unless told otherwise; who wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort
except ImportError as error:
    raise RuntimeMissingError(
        f"ONNX Runtime is not installed or does not load ({error}). Install one "
        "flavour of it: pip install 'opt-onnx[cpu]' for CPUs, or pip install 'opt-onnx[gpu]' for "
        "NVIDIA GPUs"
    ) from error

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DEVICES = ("auto", *PROVIDERS)
# Products of 8-bit numbers in a way that does not overflow, which takes two to three times as long: for
# CPUs whose fast way does.
EXACT = {} if sums_8_bit_products_exactly() else {"session.x64quantprecision": "1"}
# Threads wait awake between the parts of a step and from one step to the next, but use no CPU soon
# after the last one. By default they spin a million times, which is up to half a second.
SPINNING = {"session.intra_op.spin_duration_us": "2000"}
# Weights stay as they are in the file, mapped and shared by sessions and by processes.
UNPACKED = {"session.disable_prepacking": "1"}
# Saves a session's packed weights; smaller tensors stay in the graph file.
WRITE_PACK = {
    "session.optimized_model_external_initializers_file_name": DATA_FILE,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",
}
# ONNX Runtime joins a norm and the sum before it into one operator that takes five times as long.
SLOW_FUSIONS = ["SkipLayerNormFusion", "BiasSkipLayerNormFusion"]
# The attention kernel that keeps no scores takes up to twice as long for a prompt on the CPU, and as
# long for one token; chunks bound the memory of the scores. Read when a session is opened.
PLAIN_ATTENTION = {"ORT_GQA_DISABLE_FLASH_ATTENTION": "1"}
CHUNK_TOKENS = 192  # of a long prompt at a time: its scores fit the cache, and their memory is bounded


class BoundCache(KVCache):
    """A KV cache that is bound to both graphs, with the buffers of a decode step."""

    def __init__(self, decoder: SessionDecoder, batch: int, capacity: int) -> None:
        super().__init__(decoder.config, batch, capacity, decoder.cache_dtype)
        self.decode_ids = np.zeros((batch, 1), np.int64)
        self.new_lengths = np.zeros(batch, np.int32)
        self.logits = np.empty((batch, decoder.config.vocabulary_size), np.float32)
        # Bound once: a step writes new numbers into the same buffers.
        self.decode_binding = decoder.bind(Phase.DECODE, self, self.decode_ids, self.new_lengths)
        # The lengths as plain numbers, and what a step gives: always the same buffer.
        self.length_view = self.lengths.data
        self.step_output = StepOutput(self.logits)


class SessionDecoder:
    """A `runtime.decoder.Decoder` that runs a bundle with ONNX Runtime.

    Args:
        bundle: what to run.
        device: `"cpu"`, `"cuda"` or `"auto"`.
        threads: CPU threads of a step; by default one for each physical core that this process may
            use, see `runtime.threads`.
        packed_weights: whether a bundle for CPUs may keep its weights packed on disk, see
            `runtime.packed_weights`. `False` packs them in memory at every start, for this process
            alone, and writes nothing: for a bundle that is run once, or where disk is scarce.

    Warns:
        RuntimeWarning: if the weights cannot be kept packed on disk; they are packed in memory then.

    Raises:
        ValueError: if the device or the thread count is not valid.
        RuntimeMissingError: if the installed ONNX Runtime lacks the device.
        BundleError: if ONNX Runtime cannot load a graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        threads: int | None = None,
        *,
        packed_weights: bool = True,
    ) -> None:
        self.config = bundle.manifest.model
        self.cache_dtype = bundle.manifest.cache_dtype
        self._portable = bundle.manifest.target == "portable"
        provider = _choose_provider(device)
        self.device = next(name for name, value in PROVIDERS.items() if value == provider)
        opener = _SessionOpener(bundle, provider, _check_threads(threads))
        if self._portable or self.device != "cpu":
            open_session = opener.unpacked
        else:
            open_session = opener.packed_on_disk if packed_weights else opener.packed_in_memory
        graphs = bundle.manifest.graphs
        sessions = {graph: open_session(graph) for graph in dict.fromkeys(graphs.values())}
        self._sessions = {phase: sessions[graph] for phase, graph in graphs.items()}

    def new_cache(self, batch: int, capacity: int) -> BoundCache:
        """An empty cache of `batch` rows with room for `capacity` tokens each."""
        return BoundCache(self, batch, capacity)

    def append(
        self,
        cache: BoundCache,
        token_ids: IntArray,
        new_lengths: IntArray,
        *,
        hidden_states: bool = False,
    ) -> StepOutput:
        """Appends tokens to a cache; see `runtime.decoder.Decoder.append`.

        Args:
            cache: from `new_cache`; rows grow by `new_lengths`.
            token_ids: int [batch, sequence], right-padded.
            new_lengths: int [batch], valid tokens of each row.
            hidden_states: whether to return those too.

        Raises:
            ValueError: if the shapes do not fit the cache or it has no room.
        """
        batch, sequence = token_ids.shape
        if batch != cache.batch or new_lengths.shape != (batch,):
            raise ValueError(
                f"a cache of {cache.batch} rows got {batch} rows and {new_lengths.shape} lengths"
            )
        # Plain numbers: after a step an array operation costs tens of microseconds.
        added = new_lengths.tolist()
        if min(added) < 0 or max(added) > sequence:
            raise ValueError(f"new_lengths must be from 0 to {sequence}, got {new_lengths}")
        longest = max(map(operator.add, cache.lengths.tolist(), added))
        if longest > cache.capacity:
            raise ValueError(f"a row of {longest} tokens has no room in a cache of {cache.capacity}")
        cache.new_lengths[:] = new_lengths
        if sequence == 1 and not hidden_states:
            cache.decode_ids[:] = token_ids
            self._sessions[Phase.DECODE].run_with_iobinding(cache.decode_binding)
            for row, count in enumerate(added):
                cache.length_view[row] += count
            return cache.step_output
        hidden = None
        if hidden_states:
            hidden = np.zeros((batch, sequence, self.config.embedding_width), np.float32)
        for rows, columns in self._pieces(cache, sequence):
            tokens = np.ascontiguousarray(token_ids[rows, columns], np.int64)
            lengths = np.minimum(new_lengths[rows], tokens.shape[1])
            states = None if hidden is None else hidden[rows, columns]
            self._run_piece(cache, rows, tokens, lengths.astype(np.int32), states)
        return StepOutput(cache.logits, hidden)

    def _pieces(self, cache: BoundCache, sequence: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the runs that appending `cache.new_lengths` tokens takes.

        The fused attention takes several tokens after a past for one row at a time, without padding.
        It also computes scores of the whole square, so that long prompts cost less in chunks.
        """
        # Padding is written too, so it needs room.
        fits = not cache.lengths.any() and sequence <= min(CHUNK_TOKENS, cache.capacity)
        if sequence == 1 or self._portable or fits:
            yield slice(0, cache.batch), slice(0, sequence)
            return
        for row, length in enumerate(cache.new_lengths.tolist()):
            for start in range(0, length, CHUNK_TOKENS):
                yield slice(row, row + 1), slice(start, min(start + CHUNK_TOKENS, length))

    def _run_piece(
        self,
        cache: BoundCache,
        rows: slice,
        token_ids: NDArray[np.int64],
        new_lengths: NDArray[np.int32],
        hidden_states: NDArray[np.float32] | None,
    ) -> None:
        phase = Phase.DECODE if token_ids.shape[1] == 1 else Phase.PREFILL
        binding = self.bind(phase, cache, token_ids, new_lengths, hidden_states, rows)
        self._sessions[phase].run_with_iobinding(binding)
        cache.lengths[rows] += new_lengths

    def bind(
        self,
        phase: Phase,
        cache: BoundCache,
        token_ids: NDArray[np.int64],
        new_lengths: NDArray[np.int32],
        hidden_states: NDArray[np.float32] | None = None,
        rows: slice = slice(None),
    ) -> Any:
        """Binds the buffers of some of a cache's rows to a graph, the same as past and as present."""
        binding = self._sessions[phase].io_binding()
        inputs = {
            INPUT_IDS: token_ids,
            PAST_LENGTHS: cache.lengths[rows],
            NEW_LENGTHS: new_lengths,
        }
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        outputs = {LOGITS: cache.logits[rows]}
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


def _choose_provider(device: str) -> str:
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}; got {device!r}")
    available = ort.get_available_providers()
    if device == "auto":
        device = "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if PROVIDERS[device] not in available:
        raise RuntimeMissingError(
            f"device={device!r} needs ONNX Runtime's {PROVIDERS[device]}, and the installed one has "
            f"{', '.join(available)}; install it with: pip install 'opt-onnx[gpu]'"
        )
    return PROVIDERS[device]


def _check_threads(threads: int | None) -> int:
    """The number of threads; 0 leaves the choice to ONNX Runtime."""
    if threads is None:
        return available_cores() or 0
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads must be a whole number of at least 1 or None, got {threads!r}")
    return threads


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables set for a while, where they are not set already."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class _SessionOpener:
    """The ways to open a session on a bundle's graph files, by what becomes of the weights."""

    def __init__(self, bundle: Bundle, provider: str, threads: int) -> None:
        self._bundle = bundle
        self._provider = provider
        self._threads = threads

    def unpacked(self, graph: FileEntry) -> Any:
        """Weights mapped as they are; slow with the fused operators."""
        return self._open(self._bundle.folder / graph.name, self._options(UNPACKED))

    def packed_in_memory(self, graph: FileEntry) -> Any:
        """Weights packed for this session."""
        return self._open(self._bundle.folder / graph.name, self._options())

    def packed_on_disk(self, graph: FileEntry) -> Any:
        """Weights mapped from a pack, which is made if missing; in memory where that fails."""
        flavour = f"{ort.__version__} {ort.get_build_info()} {ort.get_available_providers()}"
        choices = {**EXACT, "disabled_optimizers": " ".join(SLOW_FUSIONS)}
        packs = PackedWeights(self._bundle, flavour, choices, self._write_pack)
        options = self._options()
        # The saved graph is an optimized one.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return packs.open(graph, lambda path: self._open(path, options))
        except PackError as error:
            problem = error
        session = self.packed_in_memory(graph)
        warnings.warn(
            f"the weights are packed in the memory of this process alone, at every start: {problem}. "
            "Where that is as it should be, packed_weights=False says so",
            RuntimeWarning,
            stacklevel=2,
        )
        return session

    def _write_pack(self, graph_path: Path, folder: Path) -> None:
        options = self._options(WRITE_PACK)
        options.optimized_model_filepath = os.fspath(folder / MODEL_FILE)
        self._open(graph_path, options)

    def _options(self, entries: Mapping[str, str] | None = None) -> Any:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # The arena would keep what packing and the longest prompt took; steps are as fast without.
        options.enable_cpu_mem_arena = False
        for name, value in {**EXACT, **SPINNING, **(entries or {})}.items():
            options.add_session_config_entry(name, value)
        return options

    def _open(self, path: Path, options: Any) -> Any:
        try:
            with _environment(PLAIN_ATTENTION):
                session = ort.InferenceSession(
                    os.fspath(path),
                    options,
                    providers=[self._provider],
                    disabled_optimizers=SLOW_FUSIONS,
                )
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            told = " ".join(str(error).split())
            raise BundleError(f"ONNX Runtime cannot load {path}: {told}") from error
        # ONNX Runtime falls back to the CPU without a word.
        started = session.get_providers()[0]
        if started != self._provider:
            raise RuntimeMissingError(
                f"ONNX Runtime could not start {self._provider} and fell back to {started}"
            )
        return session
