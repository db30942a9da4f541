"""The decoder of a bundle on the device that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.bundle import Bundle
from runtime.devices import choose_device
from runtime.numbers import whole_number
from runtime.session import SessionDecoder

if TYPE_CHECKING:
    from runtime.gpu.session import DeviceDecoder


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
    if max_arena_bytes is not None:
        max_arena_bytes = whole_number("max_arena_bytes", max_arena_bytes, none="no limit")
    chosen = choose_device(device, manifest.target, manifest.precision)
    if manifest.target != "cuda" and chosen.kind == "cpu":
        return SessionDecoder(
            bundle, threads, packed_weights=packed_weights, independent_rows=independent_rows
        )
    # Not at every start: CPUs need nothing of it.
    from runtime.gpu.open_device import open_on_device

    return open_on_device(
        bundle,
        chosen,
        threads,
        cuda_graphs=cuda_graphs,
        allow_cpu_nodes=allow_cpu_nodes,
        max_arena_bytes=max_arena_bytes,
    )
