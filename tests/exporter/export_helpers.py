"""Running `opt-export` in this process, and looking at what it leaves."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from typing import NamedTuple
from unittest.mock import patch

import onnx

from exporter.cli import main
from runtime import Generator

PROMPTS = [" the quick brown fox", "import", "é 日", " fox fox fox fox fox fox"]
LENGTH = 24
TOKENIZER_FILES = {"merges.txt", "vocabulary.json"}
FILES = {"manifest.json", "model.onnx", "weights.bin"} | TOKENIZER_FILES  # one graph for both phases
FILES_OF_TWO_GRAPHS = FILES - {"model.onnx"} | {"prefill.onnx", "decode.onnx"}


class Stored(NamedTuple):
    """A tensor of the weights file."""

    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


STEPS = ("write_weights", "write_bound_graph", "verify_graphs", "verify_logits")


def run(*arguments):
    """The command's exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    # The environment as it was: --quiet tells the hubs' clients by it, for good.
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.dict(os.environ),
    ):
        code = main([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def fails(*arguments, code=2):
    """The one line that a failing command prints at the end."""
    found, out, err = run(*arguments)
    assert found == code
    assert out == ""
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith("opt-export: ")
    assert err.count("opt-export: ") == 1
    return line.removeprefix("opt-export: ")


def listing(folder):
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def load(bundle, sampler="greedy"):
    """A generator over a bundle; it leaves nothing in the bundle's folder."""
    generator = Generator.from_bundle(bundle, device="cpu", threads=1, packed_weights=False)
    generator.compile(sampler)
    return generator


def bundle_tokens(bundle, **options):
    """The greedy tokens of every prompt, and the prompt's own."""
    generator = load(bundle)
    results = generator.generate_results(PROMPTS, max_length=LENGTH, stop_token_ids=None, **options)
    return [[*r.prompt_token_ids, *r.token_ids] for r in results]


def stored_tensors(graph_path):
    """What a graph file reads from the weights file, by name."""
    found = {}
    for tensor in onnx.load(graph_path, load_external_data=False).graph.initializer:
        if tensor.external_data:
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry["location"] == "weights.bin"
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            offset, length = int(entry["offset"]), int(entry["length"])
            found[tensor.name] = Stored(offset, length, str(dtype), tuple(tensor.dims))
    return found


def fused_operators(graph_path):
    """How often each operator of ONNX Runtime's own is in a graph file."""
    nodes = onnx.load(graph_path, load_external_data=False).graph.node
    return dict(Counter(node.op_type for node in nodes if node.domain))


def greedy_of_transformers(model, prompts, length):
    """What transformers' own greedy `generate` makes of prompts, up to a length."""
    import torch

    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=length - len(prompt),
            eos_token_id=287,  # a row that no prompt comes to: nothing stops it
            pad_token_id=1,
        )
        assert 287 not in answer[0].tolist()
        found.append(answer[0].tolist())
    return found
