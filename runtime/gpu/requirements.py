"""What running on an NVIDIA GPU needs, and the error for each part that is missing."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path

from runtime.devices import PROVIDERS
from runtime.errors import RuntimeMissingError
from runtime.gpu.cuda_library import INSUFFICIENT_DRIVER, NO_DEVICE, CudaError, CudaLibrary
from runtime.gpu.elf_file import needed_libraries
from runtime.onnx_runtime import ort

PROVIDER_FILE = "libonnxruntime_providers_cuda.so"
DRIVER_FILE = "libcuda.so.1"
INSTALL = "pip install 'opt-onnx[gpu]'"


def require_cuda(index: int) -> str:
    """Makes sure that a GPU can be used; returns its name.

    Args:
        index: of the GPU among those that this process may use.

    Raises:
        RuntimeMissingError: if it cannot; says what is missing and how to get it.
    """
    library = open_cuda_library()
    try:
        names = [library.device_name(i) for i in range(library.device_count())]
    except CudaError as error:
        raise RuntimeMissingError(_refusal(error, library)) from None
    if index >= len(names):
        listed = ", ".join(f"cuda:{i} ({name})" for i, name in enumerate(names))
        raise RuntimeMissingError(
            f"there is no cuda:{index}; this process may use {listed}, and {_visible_devices()}"
        )
    return names[index]


@functools.cache
def open_cuda_library() -> CudaLibrary:
    """The libcudart that the installed ONNX Runtime runs on.

    Raises:
        RuntimeMissingError: if ONNX Runtime has no CUDA provider, or a library that it needs does not
            load, the driver's included.
    """
    if sys.platform != "linux":
        raise RuntimeMissingError(
            f"GPUs can be used on Linux, and this is {sys.platform}; on Windows, that is WSL 2"
        )
    available = ort.get_available_providers()
    provider = PROVIDERS["cuda"]
    if provider not in available:
        raise RuntimeMissingError(
            f"the installed ONNX Runtime, {ort.__version__}, is not the one for NVIDIA GPUs: it has "
            f"{', '.join(available)}, and no {provider}. Both go to one folder, so replace it: "
            f"pip uninstall -y onnxruntime onnxruntime-gpu && {INSTALL}"
        )
    _preload_quietly()
    # The provider itself is ONNX Runtime's to load: it takes its host's address while it is loaded.
    names = needed_libraries(Path(ort.__file__).parent / "capi" / PROVIDER_FILE)
    _check_libraries(names)
    return CudaLibrary(next(name for name in names if name.startswith("libcudart.so")))


def _preload_quietly() -> None:
    """ONNX Runtime's own search for the libraries, which pip puts where the system does not look.

    It prints what it does not find. To catch that would catch other threads' prints too, so it runs
    with a `print` of its own.
    """
    search = ort.preload_dlls
    names = {**search.__globals__, "print": lambda *_, **__: None}
    types.FunctionType(search.__code__, names, search.__name__, search.__defaults__)()


def _check_libraries(names: Iterable[str]) -> None:
    missing = {}
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            missing[name] = str(error)
    driver = missing.pop(DRIVER_FILE, None)
    if missing:
        raise RuntimeMissingError(
            f"ONNX Runtime needs CUDA's {', '.join(missing)} for NVIDIA GPUs, which cannot be loaded "
            f"({next(iter(missing.values()))}); install what belongs to it: {INSTALL}"
        )
    if driver is not None:
        raise RuntimeMissingError(
            f"NVIDIA's driver is missing ({driver}); install it, until nvidia-smi lists the GPUs. A "
            "container takes it from the machine that runs it: docker run --gpus all"
        )


def _refusal(error: CudaError, library: CudaLibrary) -> str:
    """What a failure to count the devices means."""
    if error.code == INSUFFICIENT_DRIVER:
        runtime = library.runtime_version()
        return (
            f"NVIDIA's driver is too old: it runs CUDA up to {library.driver_version()}, and the "
            f"installed ONNX Runtime uses CUDA {runtime}; install a driver for CUDA "
            f"{runtime.partition('.')[0]}.0 or newer (nvidia-smi shows which one is there)"
        )
    if error.code == NO_DEVICE:
        return (
            f"NVIDIA's driver shows no GPU to this process: {_visible_devices()}; nvidia-smi lists "
            "what there is, and a container is given them with docker run --gpus all"
        )
    return f"CUDA does not start, which nvidia-smi may tell more of: {error}"


def _visible_devices() -> str:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"CUDA_VISIBLE_DEVICES is {'not set' if value is None else repr(value)}"
