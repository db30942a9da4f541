"""ONNX Runtime sessions over a bundle's two graphs: the one file that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from runtime.bundle import Bundle
from runtime.cache import KVCache
from runtime.decoder import IntArray, StepOutput
from runtime.errors import BundleError, RuntimeMissingError

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
CHUNK_TOKENS = 512  # of a long prompt at a time, which bounds the memory of its attention scores


class BoundCache(KVCache):
    """A KV cache that is bound to both graphs, with the buffers of a decode step."""

    def __init__(self, decoder: SessionDecoder, batch: int, capacity: int) -> None:
        super().__init__(decoder.config, batch, capacity, decoder.cache_dtype)
        self.decode_ids = np.zeros((batch, 1), np.int64)
        self.new_lengths = np.zeros(batch, np.int32)
        self.logits = np.empty((batch, decoder.config.vocabulary_size), np.float32)
        # Bound once: a step writes new numbers into the same buffers.
        self.decode_binding = decoder.bind(Phase.DECODE, self, self.decode_ids, self.new_lengths)


class SessionDecoder:
    """A `runtime.decoder.Decoder` that runs a bundle with ONNX Runtime.

    Args:
        bundle: what to run.
        device: `"cpu"`, `"cuda"` or `"auto"`.
        threads: CPU threads of a step; by default one for each physical core.

    Raises:
        ValueError: if the device or the thread count is not valid.
        RuntimeMissingError: if the installed ONNX Runtime lacks the device.
        BundleError: if ONNX Runtime cannot load a graph.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> None:
        self.config = bundle.manifest.model
        self.cache_dtype = bundle.manifest.cache_dtype
        self._portable = bundle.manifest.target == "portable"
        provider = _choose_provider(device)
        self.device = next(name for name, value in PROVIDERS.items() if value == provider)
        options = _session_options(threads)
        self._sessions = {
            phase: _open_session(bundle.graph_path(phase), options, provider) for phase in Phase
        }

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
        if (new_lengths < 0).any() or (new_lengths > sequence).any():
            raise ValueError(f"new_lengths must be from 0 to {sequence}, got {new_lengths}")
        longest = int((cache.lengths + new_lengths).max())
        if longest > cache.capacity:
            raise ValueError(f"a row of {longest} tokens has no room in a cache of {cache.capacity}")
        cache.new_lengths[:] = new_lengths
        if sequence == 1 and not hidden_states:
            cache.decode_ids[:] = token_ids
            self._sessions[Phase.DECODE].run_with_iobinding(cache.decode_binding)
            cache.lengths += cache.new_lengths
            return StepOutput(cache.logits)
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


def _session_options(threads: int | None) -> Any:
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads must be a whole number of at least 1 or None, got {threads!r}")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only
    # None leaves the choice to ONNX Runtime: one thread for each physical core.
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Packed weights are a private copy for each session; unpacked ones stay mapped from the file,
    # which both sessions and other processes share.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _open_session(path: Path, options: Any, provider: str) -> Any:
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise BundleError(f"ONNX Runtime cannot load {path}: {error}") from error
    # ONNX Runtime falls back to the CPU without a word.
    if session.get_providers()[0] != provider:
        raise RuntimeMissingError(
            f"ONNX Runtime could not start {provider} and fell back to {session.get_providers()[0]}"
        )
    return session
