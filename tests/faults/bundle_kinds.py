"""Bundles from a stranger who means harm, or that something has damaged, as data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.faults.watched_bundle import OUTSIDE
from tests.runtime.packs.packing import make_cpu_bundle
from tests.runtime.toy import approve, edit_manifest, flip_byte

GRAPH = "prefill.onnx"
HUGE = 2**40
BEAMS = {"class_name": "BeamSampler", "config": {"num_beams": 10**9}}

Maker = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """A hostile or damaged bundle.

    Attributes:
        name: what is wrong with it.
        make: does the harm to a whole bundle's folder.
        error: part of the error that loading it ends in; `None` if it is harmless: what is wrong is
            then not used, and the output is that of the whole bundle.
    """

    name: str
    make: Maker
    error: str | None


def _manifest(*place: str, value: Any) -> Maker:
    """Puts a value at a place of the manifest."""

    def edit(values: dict[str, Any]) -> None:
        node: Any = values
        for name in place[:-1]:
            node = node[name]
        node[place[-1]] = value

    return lambda folder: edit_manifest(folder, edit)


def _raw_manifest(data: bytes, size: int = 0) -> Maker:
    def make(folder: Path) -> None:
        (folder / "manifest.json").write_bytes(data)
        os.truncate(folder / "manifest.json", max(size, len(data)))

    return make


def _link(name: str, target: str | None = None) -> Maker:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target or folder.parent / OUTSIDE / name)

    return make


def _pipe(name: str) -> Maker:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


def _file(name: str, data: bytes) -> Maker:
    """A file of other content, of which the manifest has the hash."""

    def make(folder: Path) -> None:
        (folder / name).write_bytes(data)
        approve(folder, name)

    return make


def _graph(edit: Callable[[Any], object]) -> Maker:
    """A graph file with a change, of which the manifest has the hash."""

    def make(folder: Path) -> None:
        model = onnx.load(folder / GRAPH, load_external_data=False)
        edit(model)
        (folder / GRAPH).write_bytes(model.SerializeToString())
        approve(folder, GRAPH)

    return make


def _external(**values: str) -> Maker:
    def edit(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        for entry in tensor.external_data:
            entry.value = values.get(entry.key, entry.value)

    return _graph(edit)


def _node(kind: str, inputs: list[str], tensors: dict[str, Any] | None = None, **more: Any) -> Maker:
    """One more operator, before all others, with constants of its own."""

    def edit(model: Any) -> None:
        for name, values in (tensors or {}).items():
            size = [len(values)] if isinstance(values, list) else []
            flat = values if isinstance(values, list) else [values]
            model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, size, flat))
        model.graph.node.insert(0, helper.make_node(kind, inputs, ["evil"], **more))

    return _graph(edit)


def _attribute(model: Any) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Concat")
    node.attribute[0].i = HUGE


def _function(model: Any) -> None:
    node = helper.make_node("Add", ["a", "a"], ["b"])
    model.functions.append(
        helper.make_function("evil", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 18)])
    )


def _subgraph() -> Any:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node("Identity", ["logits"], ["x"])], "g", [], [value])


def _sparse(model: Any) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [HUGE]))


def _dims(*dims: int) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        tensor.dims[:] = dims

    return edit


def _inline_dims(model: Any) -> None:
    tensor = next(t for t in model.graph.initializer if not t.external_data)
    tensor.dims[:] = [HUGE]


def _strings(model: Any) -> None:
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"x"]))


def _twice(model: Any) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _wide_input(model: Any) -> None:
    model.graph.input[4].type.tensor_type.shape.dim[2].dim_value = HUGE


def _wide_value(model: Any) -> None:
    for value in model.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = HUGE


def _many(model: Any) -> None:
    model.graph.node.extend([model.graph.node[0]] * 2000)


def _constant(model: Any, name: str, values: Any, dtype: str = "int64") -> str:
    array = np.asarray(values, dtype)
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def _add(model: Any, kind: str, inputs: list[str], output: str, **more: Any) -> str:
    model.graph.node.append(helper.make_node(kind, inputs, [output], **more))
    return output


def _expanded(model: Any) -> None:
    shape, one = _constant(model, "n", [1000, 1000, 200]), _constant(model, "one", 1.0, "float32")
    for i in range(12):
        _add(model, "Expand", [one, shape], f"e{i}")


def _products(model: Any, count: int = 1300) -> None:
    last = matrix = _constant(model, "square", np.eye(100), "float32")
    for i in range(count):
        last = _add(model, "MatMul", [last, matrix], f"e{i}")


def _packed(model: Any) -> None:
    head = model.graph.node[-1]
    assert head.op_type == "Gemm"
    for i in range(100):
        _add(model, "Gemm", list(head.input), f"e{i}", transB=1)


def _outputs_of(model: Any, indices: str) -> None:
    """Has the logits be of other hidden states than those that the runtime asks for."""
    lookup = next(node for node in model.graph.node if "output_positions" in node.input)
    lookup.input[1] = indices


def _outputs_behind(model: Any) -> None:
    _outputs_of(model, "behind")
    behind = helper.make_node("Add", ["output_positions", _constant(model, "one", [1])], ["behind"])
    model.graph.node.insert(0, behind)


def _float_range(model: Any) -> None:
    zero, one = _constant(model, "zero", 0), _constant(model, "one", 1)
    limit = _add(
        model, "Cast", [_constant(model, "far", 1e9, "float32")], "limit", to=TensorProto.INT64
    )
    _add(model, "Range", [zero, limit, one], "e")


def _size_of_products(model: Any) -> None:
    thousand = _constant(model, "k", [1000])
    million = _add(model, "Mul", [thousand, thousand], "k2")
    milliard = _add(model, "Mul", [million, thousand], "k3")
    _add(model, "Expand", [_constant(model, "one", 1.0, "float32"), milliard], "e")


def _two_scales(model: Any) -> None:
    given = {
        "codes": np.ones((4, 32), np.uint8), "column": np.ones((32, 1), np.int8),
        "scale": np.float32(1), "scales": np.ones(2, np.float32), "point": np.uint8(0),
    }  # fmt: skip
    names = [_constant(model, name, value, value.dtype.name) for name, value in given.items()]
    _add(model, "MatMulIntegerToFloat", names, "e", domain="com.microsoft")
    model.opset_import.add(domain="com.microsoft", version=1)


def _other_version(model: Any) -> None:
    model.opset_import[0].version = 13


def _packs(make: Callable[[Path, Path], object]) -> Maker:
    """A bundle whose weights are packed, with something in the place of the packs."""

    def harm(folder: Path) -> None:
        make_cpu_bundle(folder)
        make(folder / "packed", folder.parent / OUTSIDE)

    return harm


def _linked_lock(packed: Path, outside: Path) -> None:
    packed.mkdir()
    (packed / ".lock").symlink_to(outside / "new")


def _forged(packed: Path, outside: Path) -> None:
    """Folders that look like packs, of every name that might be asked for."""
    for name in ("0" * 16, "f" * 16, ".building-" + "0" * 16):
        pack = Path(shutil.copytree(outside, packed / name, ignore=shutil.ignore_patterns("pipe")))
        (pack / "model.onnx").write_bytes(b"forged")
        (pack / "info.json").write_text(json.dumps({"key": {}, "files": {}}), "utf-8")


def _altered_weights(folder: Path) -> None:
    make_cpu_bundle(folder)
    flip_byte(folder / "weights.bin", 100_000)


MANIFESTS = (
    Kind("the weights are named above the folder",
         _manifest("weights", "name", value="../outside/weights.bin"),
         "files have plain names"),
    Kind("the weights have an absolute name", _manifest("weights", "name", value="/etc/passwd"),
         "files have plain names"),
    Kind("a graph is named by a device of Windows", _manifest("graphs", "decode", "name", value="C:x"),
         "files have plain names"),
    Kind("the manifest is a link", _link("manifest.json"), "has no manifest.json"),
    Kind("the manifest is a pipe", _pipe("manifest.json"), "has no manifest.json"),
    Kind("the manifest has 8 GB", _raw_manifest(b"{", 8 * 1024**3), "is larger than 1048576 bytes"),
    Kind("the manifest nests 200,000 deep", _raw_manifest(b"[" * 200_000), "is not JSON"),
    Kind("the manifest is not text", _raw_manifest(b"\xff\xfe\x00"), "is not JSON"),
    Kind("the manifest has a number of 100,000 digits",
         _raw_manifest(b'{"a": ' + b"9" * 100_000 + b"}"),
         "is not JSON"),
    Kind("the manifest has no hash of its own",
         _raw_manifest(b'{"format": "opt-onnx-bundle", "contract_revision": 3}'),
         "has no SHA-256 of its own"),
    Kind("the contract before outputs were named", _manifest("contract_revision", value=1),
         "follows revision 1 of the graph contract and this runtime knows 3 and 4: export the model"),
    Kind("a later contract", _manifest("contract_revision", value=99),
         "follows revision 99 of the graph contract"),
    Kind("a vocabulary of 10^12", _manifest("model", "vocabulary_size", value=10**12),
         "vocabulary_size must be at most"),
    Kind("a million layers", _manifest("model", "num_layers", value=10**6),
         "num_layers must be at most"),
    Kind("more layers than the weights hold", _manifest("model", "num_layers", value=1000),
         "cannot be in the 147840 bytes"),
    Kind("more positions than the weights hold",
         _manifest("model", "max_sequence_length", value=60_000),
         "cannot be in the 147840 bytes"),
    Kind("a sampler that names a class",
         _manifest("generation", "sampler", value={"class_name": "os.system", "config": {}}),
         "unknown sampler configuration"),
    Kind("a sampler of 10^9 beams",
         _manifest("generation", "sampler", value=BEAMS),
         "asks for 1000000000 rows"),
    Kind("a tokenizer of 1 TB", _manifest("tokenizer", 0, "size", value=HUGE),
         "and such a file may have"),
)  # fmt: skip
FILES = (
    Kind("the weights are a link", _link("weights.bin"), "weights.bin is missing or no regular file"),
    Kind("the weights are a device", _link("weights.bin", "/dev/zero"),
         "weights.bin is missing or no regular file"),
    Kind("the weights are a pipe", _pipe("weights.bin"), "weights.bin is missing or no regular file"),
    Kind("a graph is a link", _link(GRAPH), "prefill.onnx is missing or no regular file"),
    Kind("a graph is a pipe", _pipe(GRAPH), "prefill.onnx is missing or no regular file"),
    Kind("the vocabulary is a link", _link("vocabulary.json"),
         "vocabulary.json is missing or no regular file"),
    Kind("truncated weights", lambda f: os.truncate(f / "weights.bin", 1000),
         "weights.bin was altered: it has 1000 bytes"),
    Kind("weights of 1 TB", lambda f: os.truncate(f / "weights.bin", HUGE),
         "weights.bin was altered: it has"),
    Kind("a flipped byte of a graph", lambda f: flip_byte(f / GRAPH, 9),
         "prefill.onnx was altered: its SHA-256 is another"),
    Kind("a flipped byte of the weights", lambda f: flip_byte(f / "weights.bin", 9),
         "weights.bin was altered: its SHA-256 is another"),
    Kind("a vocabulary that nests 200,000 deep", _file("vocabulary.json", b"[" * 200_000),
         "vocabulary.json"),
    Kind("merges that are not text", _file("merges.txt", b"\xff\xfe"), "toy_bundle"),
)  # fmt: skip
GRAPHS = (
    Kind("a weight at an absolute path", _external(location="/etc/passwd"),
         "in '/etc/passwd', and only 'weights.bin'"),
    Kind("a weight above the folder", _external(location="../outside/pipe"),
         "in '../outside/pipe', and only 'weights.bin'"),
    Kind("a weight in the manifest", _external(location="manifest.json"),
         "in 'manifest.json', and only 'weights.bin'"),
    Kind("a weight beyond the file", _external(offset="147840"), "of weights.bin, which has 147840"),
    Kind("a weight before the file", _external(offset="-4096"), "which are no numbers"),
    Kind("a weight of another length", _external(length=str(HUGE)), "bytes of the weight"),
    Kind("a weight of absurd shape", _graph(_dims(HUGE, HUGE)), "bytes of the weight"),
    Kind("a weight of negative shape", _graph(_dims(-1, 32)), "of shape [-1, 32]"),
    Kind("a constant larger than its data", _graph(_inline_dims), "bytes of the tensor"),
    Kind("a constant of strings", _graph(_strings), "holds what no exported graph does: field 6"),
    Kind("a sparse constant", _graph(_sparse), "holds what no exported graph does: field 15"),
    Kind("two constants of one name", _graph(_twice), "has several values of one name"),
    Kind("a custom operator", _node("Evil", ["input_ids"], domain="com.example"),
         "wants the operator 'com.example.Evil'"),
    Kind("an operator that runs Python", _node("PythonOp", ["input_ids"], domain="com.microsoft"),
         "wants the operator 'com.microsoft.PythonOp'"),
    Kind("a branch", _node("If", ["input_ids"], then_branch=_subgraph(), else_branch=_subgraph()),
         "wants the operator 'If'"),
    Kind("a subgraph in a known operator", _node("Cast", ["input_ids"], to=_subgraph()),
         "holds what no exported graph does: field 6"),
    Kind("a function", _graph(_function), "holds what no exported graph does: field 25"),
    Kind("metadata that configures ONNX Runtime",
         _graph(lambda m: m.metadata_props.add(key="ort_config", value="{}")),
         "holds what no exported graph does: field 14"),
    Kind("operators of an unknown domain",
         _graph(lambda m: m.opset_import.add(domain="com.example", version=1)),
         "wants operators of 'com.example'"),
    Kind("ConstantOfShape of 10^12", _node("ConstantOfShape", ["n"], {"n": [HUGE]}),
         "wants the operator 'ConstantOfShape'"),
    Kind("Tile of 10^12", _node("Tile", ["input_ids", "n"], {"n": [1, HUGE]}),
         "wants the operator 'Tile'"),
    Kind("Expand to 10^12", _node("Expand", ["input_ids", "n"], {"n": [1, HUGE]}),
         "the shape cannot be told"),
    Kind("a dozen Expand of constants to [1000, 1000, 200]", _graph(_expanded),
         "more is computed of constants alone than any bundle does"),
    Kind("1,300 products of constants", _graph(_products), "operators, at most 280 are allowed"),
    Kind("100 products of constants", _graph(lambda m: _products(m, 100)),
         "more is computed of constants alone than any bundle does"),
    Kind("one matrix packed 100 times", _graph(_packed),
         "more weights are multiplied with than the weights file has"),
    Kind("logits of the tokens behind the wanted ones", _graph(_outputs_behind),
         "may lie beyond batch*sequence places"),
    Kind("logits of tokens that the past counts", _graph(lambda m: _outputs_of(m, "past_lengths")),
         "may lie beyond batch*sequence places"),
    Kind("Range to 10^12", _node("Range", ["a", "n", "b"], {"a": 0, "n": HUGE, "b": 1}),
         "it must count whole numbers from 0 by 1 to a size"),
    Kind("Range to a float of 10^9", _graph(_float_range),
         "more is computed of constants alone than any bundle does"),
    Kind("a size that is a product of products", _graph(_size_of_products),
         "more is computed of constants alone than any bundle does"),
    Kind("an attribute of 10^12", _graph(_attribute), "there is no axis 1099511627776"),
    Kind("two scales for one column", _graph(_two_scales), "input 3 must be float32 [1]"),
    Kind("another version of the operators", _graph(_other_version),
         "wants version 13 of the operators of '', not 18"),
    Kind("an input of absurd shape", _graph(_wide_input), "breaks the graph contract"),
    Kind("absurd shapes of values in between", _graph(_wide_value),
         "tells another dtype or shape of"),
    Kind("2,000 more operators", _graph(_many), "operators, at most 280 are allowed"),
    Kind("a graph in ONNX Runtime's own format", _file(GRAPH, b"\x18\x00\x00\x00ORTM" + bytes(64)),
         "prefill.onnx "),
    Kind("a graph of noise", _file(GRAPH, bytes(range(7, 256)) * 9), "prefill.onnx "),
    Kind("a graph that ends within a field", _file(GRAPH, b"\x3a\xff\xff\x03abc"),
         "it ends within a field"),
    Kind("a number without an end", _file(GRAPH, b"\x08" + b"\xff" * 99),
         "a number has more than 64 bits"),
)  # fmt: skip
PACKS = (
    Kind("packed is a link out of the folder",
         _packs(lambda packed, outside: packed.symlink_to(outside)),
         None),
    Kind("packed is a pipe", _packs(lambda packed, outside: os.mkfifo(packed)), None),
    Kind("the lock is a link out of the folder",
         _packs(_linked_lock), None),
    Kind("forged packs", _packs(_forged), None),
    Kind("altered weights that are to be packed", _altered_weights,
         "weights.bin was altered: its SHA-256 is another"),
)  # fmt: skip
KINDS = {"manifest": MANIFESTS, "files": FILES, "graphs": GRAPHS, "packs": PACKS}
