"""Running `opt-export` in this process, and looking at what it leaves."""

from __future__ import annotations

import contextlib
import io

from exporter.cli import main
from runtime import Generator

PROMPTS = [" the quick brown fox", "import", "é 日", " fox fox fox fox fox fox"]
LENGTH = 24
FILES = {
    "decode.onnx",
    "manifest.json",
    "merges.txt",
    "prefill.onnx",
    "vocabulary.json",
    "weights.bin",
}
STEPS = ("write_weights", "write_bound_graph", "verify_graphs", "verify_logits")


def run(*arguments):
    """The command's exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
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


def bundle_tokens(bundle, **options):
    """The greedy tokens of every prompt, and the prompt's own."""
    generator = Generator.from_bundle(bundle, device="cpu", threads=1)
    generator.compile("greedy")
    results = generator.generate_results(PROMPTS, max_length=LENGTH, stop_token_ids=None, **options)
    return [[*r.prompt_token_ids, *r.token_ids] for r in results]


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
