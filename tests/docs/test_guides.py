"""The guides are true: their Python runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.docs.markdown import DOCS, anchors, blocks, links, pages

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WITH_PYTHON = ["coming_from_hugging_face.md", "coming_from_keras.md", "generation_options.md"]
SCRIPT = DOCS / "fine_tune_export_serve.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(name):
    """Runs a page's Python blocks one after the other; returns what they have assigned."""
    names: dict = {}
    for number, code in enumerate(blocks(DOCS / name, "python"), 1):
        exec(compile(code, f"{name}, block {number}", "exec"), names)
    return names


def write_checkpoint(folder):
    """A toy OPT and its tokenizer as transformers writes them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: token_id for token_id, token in enumerate([*special, *letters, "Ġd"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "d")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    names = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
    )
    OPTForCausalLM(config).save_pretrained(folder)


# === Python ===


def test_every_page_with_python_is_run():
    assert [page.name for page in pages() if blocks(page, "python")] == WITH_PYTHON


@pytest.mark.slow
def test_generation_options(folder, capsys):
    pytest.importorskip("llguidance")
    from exporter import export_bundle

    export_bundle("opt_tiny_en", folder / "opt_tiny_en")
    run_page("generation_options.md")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line in ("yes", "no") for line in lines) == 1


@pytest.mark.slow
def test_coming_from_keras(folder):
    pytest.importorskip("tensorflow")
    names = run_page("coming_from_keras.md")
    assert (folder / "my_bundle" / "manifest.json").is_file()
    assert names["model"].optimizer.iterations == 1
    text = names["generator"].generate("Return a", max_length=20)
    assert text.startswith("Return a")
    assert names["generator"].generate("Return a", max_length=20) == text  # its sampler has a seed


@pytest.mark.slow
@pytest.mark.reference
def test_coming_from_hugging_face(folder):
    write_checkpoint(folder / "checkpoint")
    names = run_page("coming_from_hugging_face.md")
    text = names["generator"].generate("Hello, my dog is", max_length=20)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint_again")
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint_again")
    prompt = tokenizer("Hello, my dog is", return_tensors="pt")
    found = model.generate(
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
        max_length=20,
        do_sample=False,
    )
    assert tokenizer.decode(found[0], skip_special_tokens=True) == text

    import keras_hub

    again = keras_hub.models.OPTCausalLM.from_preset(str(folder / "keras_preset"))
    assert again.backbone.vocabulary_size == names["model"].backbone.vocabulary_size


def test_the_samplers_of_the_tables_are_there():
    from runtime import samplers

    text = (DOCS / "coming_from_hugging_face.md").read_text("utf-8")
    calls = re.findall(r"(?:samplers\.)?(\w+Sampler\([^)]*\))", text)
    assert len(calls) >= 6
    for call in calls:
        eval(call, vars(samplers))
    for name in re.findall(r'compile\(sampler="(\w+)"\)', text):
        assert name in samplers.NAMES


# === Commands ===


def commands():
    lines = [line for page in pages() for code in blocks(page, "bash") for line in code.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_a_command_takes_its_options(words):
    pytest.importorskip("tensorflow")
    import exporter.cli
    import runtime.cli

    parsers = {"opt-export": exporter.cli.build_parser, "opt-generate": runtime.cli.build_parser}
    parsers[words[0]]().parse_args(words[1:])  # exits where an option is unknown


def test_the_script_s_help():
    """`.ci/run` runs it whole."""
    result = subprocess.run(
        [sys.executable, SCRIPT, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(DOCS.parent)},
    )
    for option in ("--preset", "--output", "--epochs", "--prompt"):
        assert option in result.stdout
    usage = SCRIPT.read_text("utf-8").split('"""')[1]
    for option in re.findall(r"\[(--\w+) ", usage):
        assert option in result.stdout


# === Links ===


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_between_the_pages(page):
    for link in links(page):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_first():
    names = {path.name for path in DOCS.iterdir() if path.is_file()} - {"README.md"}
    assert names <= set(links(DOCS / "README.md"))
