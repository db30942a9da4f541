"""Which decoder a bundle gets on a device, and what is checked before a GPU is used."""

from __future__ import annotations

import logging
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graphs.contract import Phase
from runtime import Generator, RuntimeMissingError, open_decoder
from runtime.bundle import Bundle, load_bundle
from runtime.devices import Device
from runtime.errors import DeviceMemoryError
from runtime.gpu import open_device, requirements
from runtime.gpu.captures import CAPTURES
from runtime.gpu.memory import HostMemory
from runtime.gpu.session import DeviceDecoder
from runtime.session import SessionDecoder
from runtime.session_opener import SessionOpener
from tests.runtime.test_session import assert_close, logits_alone
from tests.runtime.toy import CASES, edit_manifest

CPU = "CPUExecutionProvider"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An ONNX Runtime without a provider for GPUs."""
    requirements.open_cuda_library.cache_clear()
    monkeypatch.setattr(
        requirements,
        "ort",
        SimpleNamespace(get_available_providers=lambda: [CPU], __version__="1.31.1"),
    )
    yield
    requirements.open_cuda_library.cache_clear()


def test_unknown_device(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match=r"device must be one of auto, cpu, cuda and .*; got 'tpu'"):
        open_decoder.open_decoder(bundle, "tpu")


@pytest.mark.usefixtures("no_gpu")
def test_missing_device(bundle: Bundle, cuda_bundle: Bundle) -> None:
    for one in (bundle, cuda_bundle):
        with pytest.raises(RuntimeMissingError, match=r"no CUDAExecutionProvider.*opt-onnx\[gpu\]"):
            open_decoder.open_decoder(one, "cuda")
    assert open_decoder.open_decoder(bundle, "auto", threads=1).device == "cpu"


@pytest.mark.usefixtures("no_gpu")
def test_auto_warns_once_and_says_why(cuda_bundle_folder: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        generator = Generator.from_bundle(cuda_bundle_folder, threads=1)
        generator.generate("ab", max_length=8)
    assert [warning.category for warning in told] == [RuntimeWarning]
    message = str(told[0].message)
    assert message.startswith("device='auto' takes the CPU, on which a bundle for GPUs is slow and")
    assert "the installed ONNX Runtime, 1.31.1, is not the one for NVIDIA GPUs" in message
    assert generator.device == "cpu"


def test_which_decoder_runs_on_the_cpu(
    bundle: Bundle, cpu_bundle_folder: Path, cuda_bundle: Bundle
) -> None:
    decoders = [
        open_decoder.open_decoder(one, "cpu", 1, packed_weights=False)
        for one in (bundle, load_bundle(cpu_bundle_folder), cuda_bundle)
    ]
    assert [type(decoder) for decoder in decoders] == [SessionDecoder, SessionDecoder, DeviceDecoder]
    assert [decoder.device for decoder in decoders] == ["cpu"] * 3
    sessions = decoders[2]._sessions
    assert sessions[Phase.PREFILL] is sessions[Phase.DECODE]  # one file, one copy of the weights


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "2GB"])
def test_a_limit_is_a_whole_number(bundle: Bundle, limit: Any) -> None:
    message = (
        f"max_arena_bytes must be a whole number of at least 1, or None for no limit; got {limit!r}"
    )
    with pytest.raises(ValueError, match=message):
        open_decoder.open_decoder(bundle, "cpu", max_arena_bytes=limit)


@pytest.mark.parametrize("threads", [0, True, "2"])
def test_bad_thread_counts(cuda_bundle: Bundle, threads: Any) -> None:
    with pytest.raises(ValueError, match="threads must be a whole number of at least 1 or None, got"):
        open_decoder.open_decoder(cuda_bundle, "cpu", threads)


# === A GPU that is not there ===


class Gpu(HostMemory):
    """Buffers of the host's memory, called a GPU's."""

    name = "cuda:1"
    free_bytes = 1 << 30

    def available_bytes(self) -> int:
        return self.free_bytes


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A GPU number 1 whose sessions are the CPU's; how they were opened."""
    opened: list[dict[str, Any]] = []

    def on_cuda(opener: SessionOpener, graph: Any, device: Device, **options: Any) -> Any:
        assert CAPTURES._users == 1
        opened.append({"graph": graph.name, "device": device.name, **options})
        return opener.packed_in_memory(graph)

    monkeypatch.setattr(requirements, "require_cuda", lambda index: f"GPU {index}")
    monkeypatch.setattr(open_device, "_memory", lambda device: Gpu())
    monkeypatch.setattr(SessionOpener, "on_cuda", on_cuda)
    return opened


def test_how_sessions_are_opened_on_a_gpu(gpu: list[Any], bundle: Bundle, cuda_bundle: Bundle) -> None:
    decoder = open_decoder.open_decoder(cuda_bundle, "cuda:1", max_arena_bytes=1 << 20)
    options = {"device": "cuda:1", "cuda_graphs": True, "allow_cpu_nodes": False}
    assert gpu == [{"graph": "model.onnx", **options, "max_arena_bytes": 1 << 20}]
    assert isinstance(decoder, DeviceDecoder)
    assert (decoder.device, decoder._runs._cuda_graphs) == ("cuda:1", True)
    open_decoder.open_decoder(cuda_bundle, "cuda:1", cuda_graphs=False)
    assert (gpu[1]["cuda_graphs"], gpu[1]["max_arena_bytes"]) == (False, None)
    decoder = open_decoder.open_decoder(bundle, "cuda:1", allow_cpu_nodes=True)
    plain = {"device": "cuda:1", "cuda_graphs": False, "allow_cpu_nodes": True, "max_arena_bytes": None}
    assert gpu[2:] == [{"graph": f"{phase}.onnx", **plain} for phase in Phase]
    assert not decoder._runs._cuda_graphs  # the host's graphs have operators that run on the CPU


def test_recorded_steps_give_the_same_texts(
    gpu: list[Any], cuda_bundle_folder: Path, device_decoder: DeviceDecoder, cuda_bundle: Bundle
) -> None:
    generator = Generator.from_bundle(cuda_bundle_folder, "cuda:1", threads=1)
    plain = Generator(device_decoder, cuda_bundle.tokenizer, "greedy")
    generator.compile("greedy")
    recorded = []
    for prompts in (["ab"], ["The quick", "a", ""], ["ab"], ["The quick", "a", ""]):
        assert generator.generate(prompts, max_length=30) == plain.generate(prompts, max_length=30)
        recorded.append(len(generator._decoder._runs._recorded))
    assert recorded == [1, 4, 4, 4]  # of one row, and of three, two and one in a cache of three


def test_weights_that_do_not_fit(gpu: list[Any], cuda_bundle: Bundle, monkeypatch: Any) -> None:
    monkeypatch.setattr(Gpu, "free_bytes", 82_111)
    with pytest.raises(DeviceMemoryError) as raised:
        open_decoder.open_decoder(cuda_bundle, "cuda:1")
    assert str(raised.value) == (
        "the weights take 82.1 KB, and 82.1 KB of the memory of cuda:1 are free; end what else takes "
        "memory there, or export the model in a smaller precision (int8, int4)"
    )
    assert (raised.value.needed, raised.value.available) == (82_112, 82_111)
    assert gpu == []
    monkeypatch.setattr(Gpu, "free_bytes", 82_112)
    open_decoder.open_decoder(cuda_bundle, "cuda:1")
    copied = pickle.loads(pickle.dumps(raised.value))
    assert (str(copied), copied.needed, copied.available) == (str(raised.value), 82_112, 82_111)


def test_weights_beyond_the_limit(gpu: list[Any], cuda_bundle: Bundle) -> None:
    with pytest.raises(DeviceMemoryError) as raised:
        open_decoder.open_decoder(cuda_bundle, "cuda:1", max_arena_bytes=50_000)
    assert str(raised.value) == (
        "the weights take 82.1 KB, and max_arena_bytes is 50 KB; raise it, or export the model in a "
        "smaller precision (int8, int4)"
    )
    assert gpu == []


def test_a_bundle_for_cpus_is_refused(gpu: list[Any], toy_bundle_copy: Path) -> None:
    edit_manifest(toy_bundle_copy, lambda values: values.update(target="cpu"))
    with pytest.raises(
        ValueError, match="the bundle was exported for CPUs; export it with --target cuda"
    ):
        Generator.from_bundle(toy_bundle_copy, "cuda")
    assert gpu == []


def test_auto_takes_the_gpu(
    gpu: list[Any], cuda_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "runtime"):
        open_decoder.open_decoder(cuda_bundle)
    assert caplog.messages == ["device='auto' takes cuda:0, GPU 0"]
    assert [one["device"] for one in gpu] == ["cuda:0"]


# === Pickling ===


def test_a_generator_is_made_anew_with_its_arguments(gpu: list[Any], cuda_bundle_folder: Path) -> None:
    generator = Generator.from_bundle(
        cuda_bundle_folder,
        "cuda:1",
        threads=1,
        cuda_graphs=False,
        allow_cpu_nodes=True,
        max_arena_bytes=1 << 20,
        max_cache_bytes=1 << 22,
    )
    generator.compile("greedy")
    copied = pickle.loads(pickle.dumps(generator))
    assert gpu[1] == gpu[0]
    assert gpu[0]["max_arena_bytes"] == 1 << 20
    assert copied._source == generator._source
    assert copied.generate("ab", max_length=20) == generator.generate("ab", max_length=20)


# === With a GPU ===


@pytest.mark.gpu
def test_a_gpu_gives_the_logits_of_keras(bundle: Bundle) -> None:
    decoder: Any = open_decoder.open_decoder(bundle, "cuda", allow_cpu_nodes=True)
    for case in CASES:
        found = logits_alone(decoder, case["prompt"])
        assert_close(found, np.array(case["logits_after_prompt"]), tolerance=5e-3)
