"""Which device a bundle runs on, and the error for each thing that a GPU needs and that is missing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime import RuntimeMissingError
from runtime.devices import CPU, Device, choose_device
from runtime.gpu import requirements as cuda_requirements
from runtime.gpu.cuda_library import CudaLibrary
from runtime.gpu.requirements import open_cuda_library, require_cuda
from tests.runtime.gpu.stub_cuda import StubCuda

CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"
NEEDED = ["libcublasLt.so.13", "libcurand.so.10", "libcudart.so.13", "libcuda.so.1", "libc.so.6"]
FILE_ERROR = "cannot open shared object file: No such file or directory"


# === The rules ===


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """GPUs that can be used, and which were asked for."""
    asked: list[int] = []

    def require(index: int) -> str:
        asked.append(index)
        return f"GPU {index}"

    monkeypatch.setattr(cuda_requirements, "require_cuda", require)
    return asked


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: int) -> str:
        raise RuntimeMissingError("there is none")

    monkeypatch.setattr(cuda_requirements, "require_cuda", refuse)


@pytest.mark.parametrize(
    ("asked", "target", "precision", "wanted"),
    [
        ("cpu", "cpu", "int8", CPU),
        ("cpu", "portable", "fp32", CPU),
        ("cpu", "cuda", "fp16", CPU),
        ("auto", "cpu", "int4", CPU),
        ("auto", "portable", "fp32", CPU),
        ("auto", "cuda", "bf16", Device("cuda", 0)),
        ("cuda", "cuda", "bf16", Device("cuda", 0)),
        ("cuda:0", "cuda", "int4", Device("cuda", 0)),
        ("cuda:17", "portable", "fp32", Device("cuda", 17)),
    ],
)
def test_choices(gpus: list[int], asked: str, target: str, precision: str, wanted: Device) -> None:
    assert choose_device(asked, target, precision) == wanted
    assert gpus == ([wanted.index] if wanted.kind == "cuda" else [])


@pytest.mark.parametrize(
    ("device", "name", "provider"),
    [(CPU, "cpu", CPU_PROVIDER), (Device("cuda", 2), "cuda:2", CUDA_PROVIDER)],
)
def test_names(device: Device, name: str, provider: str) -> None:
    assert (device.name, device.provider) == (name, provider)


@pytest.mark.parametrize(
    "device",
    ["tpu", "", "CPU", "cuda:", "cuda:-1", "cuda:01", "cuda:1 ", "cuda:²", "cuda1", "cpu:0", 0, None],
)
def test_unknown_devices(gpus: list[int], device: Any) -> None:
    with pytest.raises(ValueError, match="device must be one of") as raised:
        choose_device(device, "cuda", "fp16")
    assert str(raised.value) == (
        f"device must be one of auto, cpu, cuda and cuda:N for GPU number N; got {device!r}"
    )
    assert gpus == []


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_bundle_for_cpus_on_a_gpu(gpus: list[int], device: str) -> None:
    message = f"device='{device}': the bundle was exported for CPUs; export it with --target cuda"
    with pytest.raises(ValueError, match=message):
        choose_device(device, "cpu", "int8")
    assert gpus == []


def test_bfloat16_on_a_cpu(gpus: list[int]) -> None:
    message = "no bfloat16 kernels for CPUs; export it with --precision fp16"
    with pytest.raises(ValueError, match=message):
        choose_device("cpu", "cuda", "bf16")


@pytest.mark.usefixtures("no_gpu")
def test_auto_without_a_gpu() -> None:
    with pytest.warns(RuntimeWarning) as told:
        assert choose_device("auto", "cuda", "fp16") == CPU
    (warning,) = told
    assert str(warning.message) == (
        "device='auto' takes the CPU, on which a bundle for GPUs is slow and good for checks only: "
        "there is none"
    )
    assert warning.filename == __file__
    with pytest.raises(RuntimeMissingError, match="there is none"):
        choose_device("auto", "cuda", "bf16")
    with pytest.raises(RuntimeMissingError, match="there is none"):
        choose_device("cuda", "cuda", "fp16")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_cpus_take_nothing_of_cuda(asked: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for target in ("cpu", "portable"):
            assert choose_device(asked, target, "fp32") == CPU


def test_auto_tells_which_gpu_it_takes(gpus: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "runtime"):
        choose_device("auto", "cuda", "fp16")
    assert caplog.messages == ["device='auto' takes cuda:0, GPU 0"]


def test_a_gpu_that_was_asked_for_is_named(gpus: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "runtime"):
        choose_device("cuda:1", "cuda", "fp16")
        choose_device("cpu", "cuda", "fp16")
    assert caplog.messages == ["device='cuda:1' is GPU 1"]


# === What is missing ===


class Machine:
    """A machine with everything, of which a test takes something away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stub: StubCuda) -> None:
        self.stub = stub
        self.missing: list[str] = []
        self.opened: list[str] = []
        self.providers = ["TensorrtExecutionProvider", CUDA_PROVIDER, CPU_PROVIDER]
        self.preload: Callable[[], None] = lambda: None
        self.ort = SimpleNamespace(
            get_available_providers=lambda: self.providers,
            preload_dlls=self.preload,
            __version__="1.31.1",
            __file__="/site-packages/onnxruntime/__init__.py",
        )
        monkeypatch.setattr(cuda_requirements, "ort", self.ort)
        monkeypatch.setattr(cuda_requirements, "sys", SimpleNamespace(platform="linux"))
        monkeypatch.setattr(cuda_requirements, "ctypes", SimpleNamespace(CDLL=self._load))
        monkeypatch.setattr(cuda_requirements, "needed_libraries", self._needed)
        monkeypatch.setattr(cuda_requirements, "CudaLibrary", self._open)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def _load(self, name: str) -> None:
        if name in self.missing:
            raise OSError(f"{name}: {FILE_ERROR}")

    def _needed(self, path: Path) -> list[str]:
        assert path == Path("/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so")
        return NEEDED

    def _open(self, name: str) -> CudaLibrary:
        self.opened.append(name)
        return CudaLibrary(self.stub.path)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, stub_cuda: StubCuda) -> Any:
    open_cuda_library.cache_clear()
    yield Machine(monkeypatch, stub_cuda)
    open_cuda_library.cache_clear()


def refusal(index: int = 0) -> str:
    with pytest.raises(RuntimeMissingError) as raised:
        require_cuda(index)
    return str(raised.value)


def test_nothing_is_missing(machine: Machine) -> None:
    machine.stub.reset(devices=2)
    assert [require_cuda(0), require_cuda(1)] == ["Stub GPU 0", "Stub GPU 1"]
    assert machine.opened == ["libcudart.so.13"]


def test_the_runtime_for_cpus(machine: Machine) -> None:
    machine.providers = [CPU_PROVIDER]
    assert refusal() == (
        "the installed ONNX Runtime, 1.31.1, is not the one for NVIDIA GPUs: it has "
        "CPUExecutionProvider, and no CUDAExecutionProvider. Both go to one folder, so replace it: "
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'opt-onnx[gpu]'"
    )


def test_libraries_of_cuda(machine: Machine) -> None:
    machine.missing = ["libcuda.so.1", "libcurand.so.10", "libcublasLt.so.13"]
    assert refusal() == (
        "ONNX Runtime needs CUDA's libcublasLt.so.13, libcurand.so.10 for NVIDIA GPUs, which cannot be "
        f"loaded (libcublasLt.so.13: {FILE_ERROR}); install what belongs to it: "
        "pip install 'opt-onnx[gpu]'"
    )


def test_what_was_missing_may_come(machine: Machine) -> None:
    machine.missing = ["libcudart.so.13"]
    assert "CUDA's libcudart.so.13 for" in refusal()
    machine.missing = []
    assert require_cuda(0) == "Stub GPU 0"


def test_the_driver(machine: Machine) -> None:
    machine.missing = ["libcuda.so.1"]
    assert refusal() == (
        f"NVIDIA's driver is missing (libcuda.so.1: {FILE_ERROR}); install it, until nvidia-smi lists "
        "the GPUs. A container takes it from the machine that runs it: docker run --gpus all"
    )


def test_an_old_driver(machine: Machine) -> None:
    machine.stub.reset(driver=12040, runtime=13050)
    assert refusal() == (
        "NVIDIA's driver is too old: it runs CUDA up to 12.4, and the installed ONNX Runtime uses CUDA "
        "13.5; install a driver for CUDA 13.0 or newer (nvidia-smi shows which one is there)"
    )


@pytest.mark.parametrize(
    ("visible", "told"), [(None, "is not set"), ("-1", "is '-1'"), ("", "is ''")], ids=str
)
def test_no_gpu_in_sight(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, visible: str | None, told: str
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine.stub.reset(devices=0)
    assert refusal() == (
        f"NVIDIA's driver shows no GPU to this process: CUDA_VISIBLE_DEVICES {told}; nvidia-smi lists "
        "what there is, and a container is given them with docker run --gpus all"
    )


@pytest.mark.parametrize(
    ("count", "listed"),
    [(1, "cuda:0 (Stub GPU 0)"), (2, "cuda:0 (Stub GPU 0), cuda:1 (Stub GPU 1)")],
)
def test_a_gpu_number_that_there_is_not(machine: Machine, count: int, listed: str) -> None:
    machine.stub.reset(devices=count)
    assert refusal(count) == (
        f"there is no cuda:{count}; this process may use {listed}, and CUDA_VISIBLE_DEVICES is not set"
    )


def test_other_errors_are_told_in_cudas_words(machine: Machine) -> None:
    machine.stub.fail("cudaGetDeviceCount", 3)
    assert refusal() == (
        "CUDA does not start, which nvidia-smi may tell more of: cudaGetDeviceCount failed with "
        "cudaErrorInitializationError (3): told by the stub"
    )


def test_other_systems(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_requirements, "sys", SimpleNamespace(platform="win32"))
    assert refusal() == "GPUs can be used on Linux, and this is win32; on Windows, that is WSL 2"


def test_the_search_for_libraries_prints_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(kept: list[str], directory: str = "") -> None:
        print(f"Failed to load {directory}")
        kept.append(directory)

    found: list[str] = []
    search.__defaults__ = (found, "folder")
    machine.ort.preload_dlls = search
    require_cuda(0)
    assert found == ["folder"]
    assert capsys.readouterr() == ("", "")
    search(found)
    assert capsys.readouterr().out == "Failed to load folder\n"


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    open_cuda_library.cache_clear()
    library = open_cuda_library()
    assert choose_device("cuda", "cuda", "fp16") == Device("cuda", 0)
    assert choose_device("auto", "cuda", "bf16") == Device("cuda", 0)
    assert require_cuda(0) == library.device_name(0)
    free, total = library.memory_info()
    assert 0 < free <= total <= library.total_memory(0)
    assert int(library.driver_version().partition(".")[0]) >= 12
    message = f"there is no cuda:{library.device_count()}; this process may use cuda:0"
    with pytest.raises(RuntimeMissingError, match=message):
        choose_device(f"cuda:{library.device_count()}", "cuda", "fp16")
