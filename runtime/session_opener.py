"""Opening ONNX Runtime sessions on a bundle's graph files, by what becomes of the weights."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from graphs.manifest import FileEntry
from graphs.native_path import native_path
from graphs.shown import shown
from runtime.bundle import Bundle
from runtime.devices import CPU, Device
from runtime.errors import BundleError, RuntimeMissingError
from runtime.gpu.node_placement import RECORD, check_placement
from runtime.numbers import whole_number
from runtime.onnx_runtime import ort
from runtime.packs.pack_folder import DATA_FILE, MODEL_FILE
from runtime.packs.packed_weights import PackedWeights, PackError
from runtime.system.cpu_features import sums_8_bit_products_exactly
from runtime.system.threads import available_cores

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
# On GPUs: products of float32 in float32, norms' sums in float32, and no more memory than is in use.
CUDA_SETTINGS = {
    "use_tf32": "0",
    "enable_skip_layer_norm_strict_mode": "1",
    "arena_extend_strategy": "kSameAsRequested",
}

MAX_THREADS = 4096


def check_threads(threads: int | None) -> int:
    """The number of threads; 0 leaves the choice to ONNX Runtime."""
    if threads is None:
        return available_cores() or 0
    threads = whole_number("threads", threads, none="")
    if threads > MAX_THREADS:
        raise ValueError(f"threads is {shown(threads)}, more than {MAX_THREADS}; give one a core")
    return threads


_ENVIRONMENT_LOCK = threading.Lock()
_ENVIRONMENT_USERS: Counter[str] = Counter()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables set for a while, where they are not set already.

    Sessions may be opened in several threads at once: the last one that needs a variable removes it.
    """
    with _ENVIRONMENT_LOCK:
        added = [name for name in values if name not in os.environ or _ENVIRONMENT_USERS[name]]
        _ENVIRONMENT_USERS.update(added)
        os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        with _ENVIRONMENT_LOCK:
            _ENVIRONMENT_USERS.subtract(added)
            for name in added:
                if not _ENVIRONMENT_USERS[name]:
                    os.environ.pop(name, None)


class SessionOpener:
    """The ways to open a session on a bundle's graph files, by what becomes of the weights."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle = bundle
        self._threads = threads

    def unpacked(self, graph: FileEntry) -> Any:
        """On the CPU, weights mapped as they are; slow with the fused operators."""
        return self._open(self._bundle.folder / graph.name, self._options(UNPACKED))

    def packed_in_memory(self, graph: FileEntry) -> Any:
        """On the CPU, weights packed for this session."""
        return self._open(self._bundle.folder / graph.name, self._options())

    def packed_on_disk(self, graph: FileEntry) -> Any:
        """On the CPU, weights mapped from a pack, made if missing; in memory where that fails."""
        flavour = f"{ort.__version__} {ort.get_build_info()} {ort.get_available_providers()}"
        choices = {**EXACT, "disabled_optimizers": " ".join(SLOW_FUSIONS)}
        options = self._options()
        # The saved graph is an optimized one.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            packs = PackedWeights(self._bundle, flavour, choices, self._write_pack)
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

    def on_cuda(
        self,
        graph: FileEntry,
        device: Device,
        *,
        cuda_graphs: bool,
        allow_cpu_nodes: bool,
        max_arena_bytes: int | None = None,
    ) -> Any:
        """On a GPU, which has the weights in its memory.

        Args:
            graph: which file to open.
            device: the GPU, from `choose_device`.
            cuda_graphs: whether runs may be recorded as CUDA graphs and replayed, see `gpu_graph_id`.
            allow_cpu_nodes: whether the CPU may run what ONNX Runtime has no CUDA kernel for.
            max_arena_bytes: most that ONNX Runtime may take for weights and what lies between layers.

        Raises:
            BundleError: if ONNX Runtime cannot load the graph; a `NodePlacementError` if the CPU would
                run parts of it.
            RuntimeMissingError: if ONNX Runtime cannot start on the GPU.
        """
        settings = {
            "device_id": str(device.index),
            "enable_cuda_graph": str(int(cuda_graphs)),
            **CUDA_SETTINGS,
        }
        if max_arena_bytes is not None:
            settings["gpu_mem_limit"] = str(min(max_arena_bytes, 2**63 - 1))
        try:
            session = self._start(
                self._bundle.folder / graph.name,
                self._options(RECORD),
                providers=[(device.provider, settings)],
                enable_fallback=0,  # which prints
            )
        except BundleError as error:
            if cuda_graphs and "graph capture" in str(error):
                # ONNX Runtime refuses operators on the CPU by itself, and does not say which.
                self.on_cuda(
                    graph,
                    device,
                    cuda_graphs=False,
                    allow_cpu_nodes=False,
                    max_arena_bytes=max_arena_bytes,
                )
            raise
        started = session.get_providers()[0]
        if started != device.provider:  # ONNX Runtime falls back to the CPU without an error
            raise RuntimeMissingError(
                f"ONNX Runtime could not start {device.provider} on {device.name} and fell back to "
                f"{started}; it prints the reason on standard error"
            )
        check_placement(
            session, device.provider, cuda_graphs=cuda_graphs, allow_cpu_nodes=allow_cpu_nodes
        )
        return session

    def _write_pack(self, graph_path: Path, folder: Path) -> None:
        options = self._options(WRITE_PACK)
        with native_path(folder / MODEL_FILE) as path:
            options.optimized_model_filepath = path
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
        with _environment(PLAIN_ATTENTION):
            return self._start(
                path, options, providers=[CPU.provider], disabled_optimizers=SLOW_FUSIONS
            )

    def _start(self, path: Path, options: Any, **choices: Any) -> Any:
        try:
            with native_path(path) as text:
                return ort.InferenceSession(text, options, **choices)
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            told = " ".join(str(error).split())
            raise BundleError(f"ONNX Runtime cannot load {path}: {told}") from error
