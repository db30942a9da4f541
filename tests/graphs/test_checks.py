"""The contract check tells everything that a graph has wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from graphs.checks import ContractError, check_graph  # noqa: E402
from graphs.contract import ModelConfig, Phase  # noqa: E402

CONFIG = ModelConfig(300, 2, 4, 32, 64, 64)


def check(path: Path, phase: Phase | None = None, **changes: Any) -> None:
    arguments = {"config": CONFIG, "weights_name": "weights.bin", "cache_dtype": "float32", **changes}
    check_graph(path, phase=phase or Phase(path.stem), **arguments)


def problems(path: Path, phase: Phase | None = None, **changes: Any) -> list[str]:
    """What the check lists."""
    with pytest.raises(ContractError) as caught:
        check(path, phase, **changes)
    head, _, rest = str(caught.value).partition(": ")
    assert head == f"{path.name} breaks the graph contract"
    return rest.split("; ")


def load(path: Path) -> Any:
    return onnx.load(str(path), load_external_data=False)


@pytest.mark.parametrize("phase", Phase)
def test_the_graphs_of_a_bundle_follow_the_contract(toy_bundle: Path, phase: Phase) -> None:
    check(toy_bundle / f"{phase}.onnx")


def test_one_phase_is_not_the_other(toy_bundle: Path) -> None:
    assert problems(toy_bundle / "decode.onnx", Phase.PREFILL) == [
        "input 0 is ('input_ids', 'int64', ('batch', 1)), "
        "not ('input_ids', 'int64', ('batch', 'sequence'))",
        "output 1 is ('hidden_states', 'float32', ('batch', 1, 32)), "
        "not ('hidden_states', 'float32', ('batch', 'sequence', 32))",
    ]


def test_another_model(toy_bundle: Path) -> None:
    larger = ModelConfig(301, 3, 4, 32, 64, 64)
    assert problems(toy_bundle / "prefill.onnx", config=larger) == [
        "8 inputs, not 10",
        "output 0 is ('logits', 'float32', ('outputs', 300)), "
        "not ('logits', 'float32', ('outputs', 301))",
        "6 outputs, not 8",
    ]


def test_another_cache_dtype(toy_bundle: Path) -> None:
    found = problems(toy_bundle / "prefill.onnx", cache_dtype="float16")
    assert len(found) == 8
    assert found[0].startswith(
        "input 4 is ('past_key_values.0.key', 'float32', ('batch', 4, 'capacity'"
    )
    assert found[0].endswith("not ('past_key_values.0.key', 'float16', ('batch', 4, 'capacity', 8))")


def test_weights_in_another_file(toy_bundle: Path) -> None:
    found = problems(toy_bundle / "decode.onnx", weights_name="model.bin")
    assert found.pop() == "model.bin is missing"
    assert len(found) == 28
    assert {line.partition(" points to ")[2] for line in found} == {"weights.bin, not to model.bin"}
    assert "weight embeddings/token_embedding/embeddings points to" in found[0]


def test_everything_wrong_is_told_at_once(toy_bundle_copy: Path) -> None:
    path = toy_bundle_copy / "decode.onnx"
    model = load(path)
    graph = model.graph
    graph.input[1].name = "past_length"
    for node in graph.node:
        node.input[:] = ["past_length" if name == "past_lengths" else name for name in node.input]
    graph.input[2].type.tensor_type.shape.dim[0].dim_param = "rows"
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 299
    graph.output.append(onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [1]))
    graph.node.append(onnx.helper.make_node("Constant", [], ["extra"], value_floats=[1.0]))
    onnx.save(model, str(path))
    assert problems(path) == [
        "input 1 is ('past_length', 'int32', ('batch',)), not ('past_lengths', 'int32', ('batch',))",
        "input 2 is ('new_lengths', 'int32', ('rows',)), not ('new_lengths', 'int32', ('batch',))",
        "output 0 is ('logits', 'float32', ('outputs', 299)), "
        "not ('logits', 'float32', ('outputs', 300))",
        "7 outputs, not 6",
    ]


def test_the_order_counts(toy_bundle_copy: Path) -> None:
    path = toy_bundle_copy / "prefill.onnx"
    model = load(path)
    first, second = model.graph.output[2], model.graph.output[3]
    first.name, second.name = second.name, first.name
    onnx.save(model, str(path))
    assert [line.partition(",")[0] for line in problems(path)] == [
        "output 2 is ('present.0.value'",
        "output 3 is ('present.0.key'",
    ]


def test_a_dimension_without_a_name(toy_bundle_copy: Path) -> None:
    path = toy_bundle_copy / "prefill.onnx"
    model = load(path)
    model.graph.input[1].type.tensor_type.shape.dim[0].ClearField("dim_param")
    onnx.save(model, str(path))
    (found,) = problems(path)
    assert found.startswith("input 1 is ('past_lengths', 'int32', ('None',))")


def test_a_graph_that_is_not_valid(toy_bundle_copy: Path) -> None:
    path = toy_bundle_copy / "prefill.onnx"
    model = load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, str(path))
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        check(path)


def test_weights_that_are_not_there(toy_bundle_copy: Path) -> None:
    (toy_bundle_copy / "weights.bin").unlink()
    assert problems(toy_bundle_copy / "prefill.onnx") == ["weights.bin is missing"]


def test_weights_that_a_copy_shares(toy_bundle_copy: Path, tmp_path: Path) -> None:
    """Hard links, as `cp --link` and caches of packages make them."""
    os.link(toy_bundle_copy / "weights.bin", tmp_path / "shared")
    check(toy_bundle_copy / "prefill.onnx")
