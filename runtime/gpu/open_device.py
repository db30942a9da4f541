"""Opening a bundle over a device's memory."""

from __future__ import annotations

from graphs.contract import Revision
from graphs.manifest import FileEntry
from runtime.bundle import Bundle
from runtime.devices import Device
from runtime.errors import DeviceMemoryError
from runtime.gpu.captures import CAPTURES
from runtime.gpu.memory import CudaMemory, DeviceMemory, HostMemory
from runtime.gpu.session import DeviceDecoder
from runtime.session_opener import SessionOpener, check_threads
from runtime.sizes import format_bytes


def open_on_device(
    bundle: Bundle,
    device: Device,
    threads: int | None = None,
    *,
    cuda_graphs: bool,
    allow_cpu_nodes: bool,
    max_arena_bytes: int | None,
) -> DeviceDecoder:
    """Opens a bundle on a GPU, or one that was exported for GPUs on the CPU.

    Args:
        bundle: what to run.
        device: from `runtime.devices.choose_device`.
        threads: of the CPU.
        cuda_graphs, allow_cpu_nodes, max_arena_bytes: see `runtime.open_decoder`.

    Raises:
        BundleError: if ONNX Runtime cannot load a graph, or the CPU would run parts of it.
        RuntimeMissingError: if ONNX Runtime cannot start on the device.
        DeviceMemoryError: if the weights do not fit in the GPU's memory.
    """
    manifest = bundle.manifest
    opener = SessionOpener(bundle, check_threads(threads))
    memory = _memory(device)
    on_gpu = device.kind == "cuda"
    cuda_graphs = cuda_graphs and on_gpu and manifest.contract_revision is Revision.DEVICE
    if on_gpu:
        _check_room(memory, manifest.weights, max_arena_bytes)
    sessions = {}
    for graph in dict.fromkeys(manifest.graphs.values()):
        if on_gpu:
            with CAPTURES:
                sessions[graph] = opener.on_cuda(
                    graph,
                    device,
                    cuda_graphs=cuda_graphs,
                    allow_cpu_nodes=allow_cpu_nodes,
                    max_arena_bytes=max_arena_bytes,
                )
        else:
            sessions[graph] = opener.packed_in_memory(graph)
    bundle.check_unchanged()
    phases = {phase: sessions[graph] for phase, graph in manifest.graphs.items()}
    return DeviceDecoder(manifest, phases, memory, cuda_graphs=cuda_graphs)


def _memory(device: Device) -> DeviceMemory:
    if device.kind == "cpu":
        return HostMemory()
    # Not for CPUs, which take nothing of CUDA.
    from runtime.gpu.requirements import open_cuda_library

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
