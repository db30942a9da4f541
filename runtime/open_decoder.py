"""The decoder of a bundle on the device that was asked for."""

from __future__ import annotations

from graphs.contract import Phase, Revision
from graphs.manifest import FileEntry
from runtime.bundle import Bundle
from runtime.cuda_captures import CAPTURES
from runtime.device_memory import CudaMemory, DeviceMemory, HostMemory
from runtime.device_session import DeviceDecoder
from runtime.devices import Device, choose_device
from runtime.errors import DeviceMemoryError
from runtime.session import SessionDecoder
from runtime.session_opener import SessionOpener, check_threads
from runtime.sizes import format_bytes


def open_decoder(
    bundle: Bundle,
    device: str = "auto",
    threads: int | None = None,
    *,
    packed_weights: bool | None = True,
    independent_rows: bool = True,
    cuda_graphs: bool = True,
    allow_cpu_nodes: bool = False,
    max_arena_bytes: int | None = None,
) -> SessionDecoder | DeviceDecoder:
    """Opens a bundle.

    Args:
        bundle: what to run.
        device: see `runtime.devices.choose_device`.
        threads, packed_weights, independent_rows: of CPUs, see `runtime.session.SessionDecoder`.
        cuda_graphs: whether decode steps on a GPU are recorded as CUDA graphs and replayed. Those of
            portable bundles never are: they have operators that run on the CPU.
        allow_cpu_nodes: whether the CPU may run operators that ONNX Runtime has no CUDA kernel for.
        max_arena_bytes: of a GPU's memory, the most that ONNX Runtime may take for weights and for what
            lies between layers; caches are limited by `Generator`'s `max_cache_bytes`.

    Warns:
        RuntimeWarning: if weights cannot be kept packed, or `"auto"` takes the CPU for a bundle that
            was exported for GPUs.

    Raises:
        ValueError: if an argument is not valid, or the bundle does not run on the device.
        RuntimeMissingError: if the device cannot be used; says what is missing.
        BundleError: if ONNX Runtime cannot load a graph.
        DeviceMemoryError: if the weights do not fit in the GPU's memory.
    """
    manifest = bundle.manifest
    if max_arena_bytes is not None and (type(max_arena_bytes) is not int or max_arena_bytes < 1):
        raise ValueError(
            "max_arena_bytes must be a whole number of at least 1, or None for no limit; got "
            f"{max_arena_bytes!r}"
        )
    chosen = choose_device(device, manifest.target, manifest.precision)
    if manifest.target != "cuda" and chosen.kind == "cpu":
        return SessionDecoder(
            bundle, threads, packed_weights=packed_weights, independent_rows=independent_rows
        )
    opener = SessionOpener(bundle, check_threads(threads))
    memory = _memory(chosen)
    on_gpu = chosen.kind == "cuda"
    cuda_graphs = cuda_graphs and on_gpu and manifest.contract_revision is Revision.DEVICE
    if on_gpu:
        _check_room(memory, manifest.weights, max_arena_bytes)
    sessions = {}
    for graph in dict.fromkeys(manifest.graphs.values()):
        if on_gpu:
            with CAPTURES:
                sessions[graph] = opener.on_cuda(
                    graph,
                    chosen,
                    cuda_graphs=cuda_graphs,
                    allow_cpu_nodes=allow_cpu_nodes,
                    max_arena_bytes=max_arena_bytes,
                )
        else:
            sessions[graph] = opener.packed_in_memory(graph)
    bundle.check_unchanged()
    phases = {phase: sessions[graph] for phase, graph in manifest.graphs.items()}
    assert set(phases) == set(Phase)
    return DeviceDecoder(manifest, phases, memory, cuda_graphs=cuda_graphs)


def _memory(device: Device) -> DeviceMemory:
    if device.kind == "cpu":
        return HostMemory()
    # Not for CPUs, which take nothing of CUDA.
    from runtime.cuda_requirements import open_cuda_library

    return CudaMemory(open_cuda_library(), device.index)


def _check_room(memory: DeviceMemory, weights: FileEntry, limit: int | None) -> None:
    """ONNX Runtime would find out by failing halfway."""
    if limit is not None and weights.size > limit:
        raise DeviceMemoryError(
            f"the weights take {format_bytes(weights.size)}, and max_arena_bytes is "
            f"{format_bytes(limit)}; raise it, or export the model in a smaller precision (int8, int4)",
            weights.size,
            limit,
        )
    available = memory.available_bytes()
    if available is not None and weights.size > available:
        raise DeviceMemoryError(
            f"the weights take {format_bytes(weights.size)}, and {format_bytes(available)} of the "
            f"memory of {memory.name} are free; end what else takes memory there, or export the model "
            "in a smaller precision (int8, int4)",
            weights.size,
            available,
        )
