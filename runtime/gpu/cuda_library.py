"""The functions of NVIDIA's CUDA runtime library that device memory takes."""

from __future__ import annotations

import ctypes
from typing import Any

# cudaError_t
MEMORY_ALLOCATION = 2
INITIALIZATION_ERROR = 3
UNLOADING = 4
INSUFFICIENT_DRIVER = 35
NO_DEVICE = 100
# cudaMemcpyKind
_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3
# cudaDeviceProp starts alike in all releases since 10.0 and grows at its end; about 1,000 bytes so far.
_PROPERTIES_BYTES = 8192
_NAME_BYTES = 256
_TOTAL_MEMORY_OFFSET = 288

_INT, _SIZE, _ADDRESS = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaRuntimeGetVersion": (ctypes.POINTER(_INT),),
    "cudaDriverGetVersion": (ctypes.POINTER(_INT),),
    "cudaGetDeviceCount": (ctypes.POINTER(_INT),),
    "cudaGetDeviceProperties": (_ADDRESS, _INT),
    "cudaSetDevice": (_INT,),
    "cudaMemGetInfo": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cudaMalloc": (ctypes.POINTER(_ADDRESS), _SIZE),
    "cudaFree": (_ADDRESS,),
    "cudaMallocHost": (ctypes.POINTER(_ADDRESS), _SIZE),
    "cudaFreeHost": (_ADDRESS,),
    "cudaMemset": (_ADDRESS, _INT, _SIZE),
    "cudaMemcpy": (_ADDRESS, _ADDRESS, _SIZE, _INT),
    "cudaMemcpy2D": (_ADDRESS, _SIZE, _ADDRESS, _SIZE, _SIZE, _SIZE, _INT),
    "cudaStreamSynchronize": (_ADDRESS,),
}


class CudaError(RuntimeError):
    """A CUDA function failed.

    Attributes:
        function: its name.
        code: the `cudaError_t` that it returned.
        name: CUDA's name of that, such as `cudaErrorNoDevice`.
        text: CUDA's description of it.
    """

    def __init__(self, function: str, code: int, name: str, text: str) -> None:
        super().__init__(f"{function} failed with {name} ({code}): {text}")
        self.function = function
        self.code = code
        self.name = name
        self.text = text

    def __reduce__(self) -> tuple[type[CudaError], tuple[str, int, str, str]]:
        return type(self), (self.function, self.code, self.name, self.text)


class CudaLibrary:
    """A loaded libcudart. Every method raises `CudaError` where CUDA reports an error.

    Args:
        path: the library's name or path, see `runtime.gpu.requirements`.

    Raises:
        OSError: if it does not load.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self.path = path
        self._error_name = library.cudaGetErrorName
        self._error_text = library.cudaGetErrorString
        for function in (self._error_name, self._error_text):
            function.argtypes = (_INT,)
            function.restype = ctypes.c_char_p
        self._forget_error = library.cudaGetLastError
        self._call: dict[str, Any] = {}
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = _INT
            function.errcheck = self._check
            self._call[name] = function
        # These run at every step.
        self._memcpy = self._call["cudaMemcpy"]
        self._synchronize = self._call["cudaStreamSynchronize"]
        self.set_device = self._call["cudaSetDevice"]

    def _check(self, code: int, function: Any, arguments: tuple[Any, ...]) -> None:
        if code:
            # Else who asks for the last error next, ONNX Runtime after a kernel, takes it for its own.
            self._forget_error()
            name, text = self._error_name(code), self._error_text(code)
            raise CudaError(function.__name__, code, name.decode(), text.decode())

    # === Versions and devices ===

    def runtime_version(self) -> str:
        """The CUDA release of this library, such as `13.0`."""
        return self._version("cudaRuntimeGetVersion")

    def driver_version(self) -> str:
        """The newest CUDA release that the installed driver runs; `0.0` without a driver."""
        return self._version("cudaDriverGetVersion")

    def _version(self, function: str) -> str:
        value = _INT()
        self._call[function](value)
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def device_count(self) -> int:
        """Devices that this process may use."""
        value = _INT()
        self._call["cudaGetDeviceCount"](value)
        return value.value

    def device_name(self, index: int) -> str:
        """What NVIDIA calls a device."""
        name = self._properties(index)[:_NAME_BYTES]
        return name.partition(b"\0")[0].decode(errors="replace")

    def total_memory(self, index: int) -> int:
        """All memory of a device, in bytes."""
        return _SIZE.from_buffer_copy(self._properties(index), _TOTAL_MEMORY_OFFSET).value

    def _properties(self, index: int) -> bytes:
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call["cudaGetDeviceProperties"](properties, index)
        return properties.raw

    # === Memory of the device that this thread has set ===

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = _SIZE(), _SIZE()
        self._call["cudaMemGetInfo"](free, total)
        return free.value, total.value

    def malloc(self, nbytes: int) -> int:
        """The address of new memory, which holds anything."""
        return self._allocate("cudaMalloc", nbytes)

    def free(self, pointer: int) -> None:
        """Gives memory of `malloc` back, when the device has done all work."""
        self._call["cudaFree"](pointer)

    def malloc_host(self, nbytes: int) -> int:
        """The address of new page-locked memory of the host, which holds anything."""
        return self._allocate("cudaMallocHost", nbytes)

    def free_host(self, pointer: int) -> None:
        """Gives memory of `malloc_host` back."""
        self._call["cudaFreeHost"](pointer)

    def _allocate(self, function: str, nbytes: int) -> int:
        address = _ADDRESS()
        self._call[function](address, nbytes)
        return address.value or 0

    def fill(self, pointer: int, value: int, nbytes: int) -> None:
        """Sets bytes of the device's memory; may return before it is done."""
        self._call["cudaMemset"](pointer, value, nbytes)

    def copy_to_device(self, target: int, source: int, nbytes: int) -> None:
        """Copies from the host; from memory that is not page-locked it may return before it is done."""
        self._memcpy(target, source, nbytes, _HOST_TO_DEVICE)

    def copy_to_host(self, target: int, source: int, nbytes: int) -> None:
        """Copies to the host; done when it returns."""
        self._memcpy(target, source, nbytes, _DEVICE_TO_HOST)

    def copy_blocks(
        self, target: int, target_stride: int, source: int, source_stride: int, width: int, count: int
    ) -> None:
        """Copies `count` blocks of `width` bytes within the device; may return before it is done."""
        copy = self._call["cudaMemcpy2D"]
        copy(target, target_stride, source, source_stride, width, count, _DEVICE_TO_DEVICE)

    def synchronize(self) -> None:
        """Waits for what the default stream, which all of these use, has to do."""
        self._synchronize(None)
