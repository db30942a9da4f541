"""Operators that the CPU would run where a GPU was asked for, and how sessions on GPUs are opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graphs.contract import Phase
from runtime import BundleError, RuntimeMissingError, session_opener
from runtime.bundle import Bundle
from runtime.devices import Device
from runtime.errors import NodePlacementError
from runtime.gpu.node_placement import RECORD, check_placement, count_operators
from runtime.onnx_runtime import ort
from runtime.session_opener import SessionOpener

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class FakeSession:
    """What ONNX Runtime tells of a session."""

    def __init__(self, parts: Sequence[tuple[str, str]], started: Sequence[str] = (CUDA, CPU)) -> None:
        self._parts = parts
        self._started = list(started)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def part(provider: str, operators: str) -> Any:
            nodes = [SimpleNamespace(op_type=name) for name in operators.split()]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

        return [part(*each) for each in self._parts]

    def get_providers(self) -> list[str]:
        return self._started


ALL_CUDA = FakeSession([(CUDA, "MatMul Add"), (CUDA, "MatMul")])
MIXED = FakeSession(
    [(CUDA, "MatMul Gather"), (CPU, "Shape"), (CUDA, "MatMul"), (CPU, "Shape Range"), (CPU, "Shape")]
)


def check(session: FakeSession, *, cuda_graphs: bool = False, allow_cpu_nodes: bool = False) -> None:
    check_placement(session, CUDA, cuda_graphs=cuda_graphs, allow_cpu_nodes=allow_cpu_nodes)


def test_counts() -> None:
    assert count_operators(MIXED) == {
        CUDA: Counter(MatMul=2, Gather=1),
        CPU: Counter(Shape=3, Range=1),
    }


def test_a_real_session_is_counted(toy_bundle: Path) -> None:
    """All nodes that ONNX Runtime runs, where it joins none."""
    onnx = pytest.importorskip("onnx")
    path = toy_bundle / "decode.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in RECORD.items():
        options.add_session_config_entry(name, value)
    session = ort.InferenceSession(path, options, providers=[CPU])
    nodes = onnx.load(path, load_external_data=False).graph.node
    wanted = Counter(node.op_type for node in nodes)
    assert count_operators(session) == {CPU: wanted}
    with pytest.raises(NodePlacementError) as raised:
        check_placement(session, CUDA, cuda_graphs=False, allow_cpu_nodes=False)
    assert str(raised.value).startswith(
        f"{len(nodes)} of {len(nodes)} operators would run on the CPU: "
    )
    check_placement(session, CPU, cuda_graphs=True, allow_cpu_nodes=False)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("allow_cpu_nodes", [False, True])
def test_everything_on_the_gpu(cuda_graphs: bool, allow_cpu_nodes: bool) -> None:
    check(ALL_CUDA, cuda_graphs=cuda_graphs, allow_cpu_nodes=allow_cpu_nodes)


def test_operators_on_the_cpu() -> None:
    for cuda_graphs in (False, True):
        with pytest.raises(NodePlacementError) as raised:
            check(MIXED, cuda_graphs=cuda_graphs)
        assert str(raised.value) == (
            "4 of 7 operators would run on the CPU: Shape 3, Range 1; allow_cpu_nodes=True lets them, "
            "with copies between the two at each step"
        )
    assert isinstance(raised.value, BundleError)


def test_operators_on_the_cpu_that_are_allowed() -> None:
    check(MIXED, allow_cpu_nodes=True)
    with pytest.raises(NodePlacementError) as raised:
        check(MIXED, cuda_graphs=True, allow_cpu_nodes=True)
    assert str(raised.value) == (
        "4 of 7 operators would run on the CPU: Shape 3, Range 1; CUDA graphs, which can hold none of "
        "them, need cuda_graphs=False"
    )


# === Sessions on GPUs ===

CAPTURE = RuntimeError("This session cannot use the graph capture feature as requested by the user")


class Sessions:
    """Stands for `ort.InferenceSession`: gives what a test wants and keeps how it was asked."""

    def __init__(self, *answers: FakeSession | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Mapping[str, Any]] = []

    def __call__(self, path: str, options: Any, **choices: Any) -> FakeSession:
        entries = {name: options.get_session_config_entry(name) for name in RECORD}
        self.asked.append({"path": path, "entries": entries, **choices})
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def open_on(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, sessions: Sessions, **choices: Any
) -> FakeSession:
    monkeypatch.setattr(session_opener.ort, "InferenceSession", sessions)
    opener = SessionOpener(bundle, threads=1)
    graph = bundle.manifest.graphs[Phase.DECODE]
    chosen: dict[str, Any] = {"cuda_graphs": True, "allow_cpu_nodes": False, **choices}
    opened: FakeSession = opener.on_cuda(graph, Device("cuda", 3), **chosen)
    return opened


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_how_a_session_is_opened(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool
) -> None:
    sessions = Sessions(ALL_CUDA)
    assert open_on(bundle, monkeypatch, sessions, cuda_graphs=cuda_graphs) is ALL_CUDA
    settings = {
        "device_id": "3",
        "enable_cuda_graph": "1" if cuda_graphs else "0",
        "use_tf32": "0",
        "enable_skip_layer_norm_strict_mode": "1",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert sessions.asked == [
        {
            "path": str(bundle.folder / "decode.onnx"),
            "entries": RECORD,
            "providers": [(CUDA, settings)],
            "enable_fallback": 0,
        }
    ]


def test_a_limit_of_memory(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It also holds where a session is opened once more."""
    sessions = Sessions(CAPTURE, MIXED)
    with pytest.raises(NodePlacementError):
        open_on(bundle, monkeypatch, sessions, max_arena_bytes=5 * 10**9)
    found = [asked["providers"][0][1]["gpu_mem_limit"] for asked in sessions.asked]
    assert found == ["5000000000", "5000000000"]


def test_a_session_with_operators_on_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NodePlacementError, match="4 of 7 operators"):
        open_on(bundle, monkeypatch, Sessions(MIXED), cuda_graphs=False)
    found = open_on(bundle, monkeypatch, Sessions(MIXED), cuda_graphs=False, allow_cpu_nodes=True)
    assert found is MIXED


def test_operators_on_the_cpu_are_counted_where_onnx_runtime_refuses_them(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Sessions(CAPTURE, MIXED)
    with pytest.raises(NodePlacementError, match="4 of 7 operators would run on the CPU: Shape 3"):
        open_on(bundle, monkeypatch, sessions)
    graphs = [asked["providers"][0][1]["enable_cuda_graph"] for asked in sessions.asked]
    assert graphs == ["1", "0"]
    # Another reason is told in ONNX Runtime's words.
    with pytest.raises(BundleError, match=r"cannot load .*decode\.onnx: This session cannot use"):
        open_on(bundle, monkeypatch, Sessions(CAPTURE, ALL_CUDA))


def test_other_errors_are_not_tried_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(RuntimeError("CUDA failure 2: out of memory"))
    with pytest.raises(BundleError, match=r"decode\.onnx: CUDA failure 2: out of memory"):
        open_on(bundle, monkeypatch, sessions)
    assert sessions.answers == []


def test_a_silent_fall_back_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"could not start {CUDA} on cuda:3 and fell back to {CPU}"
    with pytest.raises(RuntimeMissingError, match=message):
        open_on(bundle, monkeypatch, Sessions(FakeSession([(CPU, "Add")], started=[CPU])))


@pytest.mark.gpu
def test_a_portable_bundle_on_a_gpu(bundle: Bundle) -> None:
    """Shapes are computed on the CPU, which has to be allowed."""
    opener = SessionOpener(bundle, threads=1)
    graph = bundle.manifest.graphs[Phase.DECODE]
    session = opener.on_cuda(graph, Device("cuda"), cuda_graphs=False, allow_cpu_nodes=True)
    assert session.get_providers()[0] == CUDA
    counts = count_operators(session)
    assert counts[CUDA]["MatMul"] >= 9
    for cuda_graphs in (False, True):
        with pytest.raises(NodePlacementError, match="operators would run on the CPU: "):
            opener.on_cuda(graph, Device("cuda"), cuda_graphs=cuda_graphs, allow_cpu_nodes=False)
