"""The toy model in the graphs of every target."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.runtime.gpu.stub_cuda import StubCuda, compile_stub
from tests.runtime.toy import approve, edit_manifest

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.gpu.session import DeviceDecoder
    from runtime.session import SessionDecoder


@pytest.fixture(scope="session")
def stub_cuda_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled libcudart without a GPU."""
    return compile_stub(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def stub_cuda(stub_cuda_path: Path) -> StubCuda:
    """One GPU of 1 MiB, nothing of it used."""
    gc.collect()  # what tests before this one have left would be freed in the middle of it
    stub = StubCuda(stub_cuda_path)
    stub.reset()
    return stub


@pytest.fixture(scope="session")
def cuda_bundle_folder() -> Path:
    """The toy model in fp16 for target cuda, by `data/make_toy_bundle.py`; not to be altered."""
    return Path(__file__).parents[1] / "data" / "toy_bundle_cuda"


@pytest.fixture(scope="session")
def cuda_bundle(cuda_bundle_folder: Path) -> Bundle:
    """That bundle, loaded."""
    from runtime.bundle import load_bundle

    return load_bundle(cuda_bundle_folder)


@pytest.fixture
def device_decoder(cuda_bundle: Bundle) -> DeviceDecoder:
    """The toy model of target cuda on the CPU, without any buffers yet."""
    from runtime.gpu.session import DeviceDecoder
    from runtime.open_decoder import open_decoder

    decoder = open_decoder(cuda_bundle, "cpu", threads=1)
    assert isinstance(decoder, DeviceDecoder)
    return decoder


@pytest.fixture(scope="session")
def cpu_bundle_folder(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle rewritten for target cpu: the same weights file, fused graphs."""
    ir = pytest.importorskip("onnx_ir")
    from graphs.contract import Phase
    from graphs.manifest import read_manifest
    from graphs.passes.attention import fuse_attention
    from graphs.passes.bias import fuse_bias
    from graphs.program import Program

    folder = Path(shutil.copytree(toy_bundle, tmp_path_factory.mktemp("bundles") / "toy_cpu"))
    config = read_manifest(folder).model
    for phase in Phase:
        path = folder / f"{phase}.onnx"
        model = ir.load(path)
        values = model.graph.initializers.items()
        weights = {n: v for n, v in values if isinstance(v.const_value, ir.ExternalTensor)}
        program = Program(model, weights, config)
        assert (fuse_attention(program), fuse_bias(program)) == (2, 8)
        path.write_bytes(ir.to_proto(model).SerializeToString())
        approve(folder, path.name)
    edit_manifest(folder, lambda values: values.update(target="cpu"))
    return folder


@pytest.fixture(scope="session")
def cpu_decoder(cpu_bundle_folder: Path) -> SessionDecoder:
    """The toy model on ONNX Runtime's fused operators."""
    from runtime.bundle import load_bundle
    from runtime.session import SessionDecoder

    return SessionDecoder(load_bundle(cpu_bundle_folder), threads=1)


@pytest.fixture(scope="session", params=["portable", "cpu", "cpu in chunks of 3"])
def any_decoder(request: pytest.FixtureRequest) -> Iterator[SessionDecoder]:
    """The toy model as each target has it, and with prompts in small chunks."""
    from runtime import session
    from runtime.bundle import load_bundle

    name = "toy_bundle" if request.param == "portable" else "cpu_bundle_folder"
    with pytest.MonkeyPatch.context() as patch:
        if "chunks" in request.param:
            patch.setattr(session, "CHUNK_TOKENS", 3)
        bundle = load_bundle(request.getfixturevalue(name))
        yield session.SessionDecoder(bundle, threads=1)
