"""Models from the hubs, through the real clients, write what their folders write."""

from __future__ import annotations

import json
import os

import pytest

from exporter import OPTCausalLM, OPTTokenizer, cli
from tests.exporter.conftest import TOY, write_hf_weights
from tests.exporter.export_helpers import PROMPTS, bundle_tokens, run
from tests.exporter.hub_servers import HuggingFaceServer, KaggleServer
from tests.exporter.test_hub_downloads import Client, contents

GENERATE = """
import json, sys
from exporter import OPTCausalLM
model = OPTCausalLM.from_preset(sys.argv[1])
model.compile(sampler="greedy")
print(json.dumps(model.generate(json.loads(sys.argv[2]), max_length=24, stop_token_ids=None)))
"""


@pytest.fixture
def hf_toy(tmp_path, toy_vocabulary, toy_merges):
    """A Hugging Face folder with a tokenizer, and what else a repository has."""
    folder = tmp_path / "repository"
    write_hf_weights(folder, TOY)
    (folder / "vocab.json").write_text(json.dumps(toy_vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *toy_merges, ""]), encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"not to be read")
    (folder / "tf_model.h5").write_bytes(b"nor this")
    return folder


@pytest.fixture
def kaggle(toy_preset, tmp_path, monkeypatch):
    """The toy preset on Kaggle, whose client looks at the environment when it is called."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    with KaggleServer({"me/opt/keras/toy/1": contents(toy_preset)}) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.slow
def test_a_model_from_hugging_face(repository, tmp_path, hf_toy):
    model = OPTCausalLM.from_preset(hf_toy)
    model.compile(sampler="greedy")
    expected = model.generate(PROMPTS, max_length=24, stop_token_ids=None)
    with HuggingFaceServer({"me/toy": {"main": contents(hf_toy)}}) as server:
        client = Client(repository, tmp_path, server)
        lines = client.run("-c", GENERATE, "hf://me/toy", json.dumps(PROMPTS))
    assert [json.loads(line) for line in lines] == [expected]
    assert server.requested() == {"config.json", "vocab.json", "merges.txt", "model.safetensors"}


@pytest.mark.slow
def test_an_export_from_kaggle(quick_tracing, kaggle, toy_bundle_of_ours, tmp_path):
    bundle = tmp_path / "bundle"
    code, out, err = run("--preset", "kaggle://me/opt/keras/toy", "--output", bundle)
    assert code == 0, err
    assert out.startswith("Bundle ")  # the client's notices are on standard error
    assert "Downloading to " in err
    assert bundle_tokens(bundle) == bundle_tokens(toy_bundle_of_ours.folder)


def test_a_tokenizer_needs_no_weights(kaggle, toy_preset):
    tokenizer = OPTTokenizer.from_preset("kaggle://me/opt/keras/toy/1")
    assert tokenizer.get_vocabulary() == OPTTokenizer.from_preset(toy_preset).get_vocabulary()
    assert "model.weights.h5" not in kaggle.requested()


@pytest.mark.parametrize("quiet", [True, False])
def test_a_quiet_export_silences_the_clients_before_they_are_imported(quiet, monkeypatch):
    others = {name: v for name, v in os.environ.items() if name not in cli.QUIET_CLIENTS}
    monkeypatch.setattr(os, "environ", others)  # what the command sets ends with the test
    seen = {}

    def resolve(preset):
        seen.update(os.environ)
        raise ValueError("far enough")

    monkeypatch.setattr(cli, "resolve_preset", resolve)
    assert cli.main(["--preset", "hf://me/toy", *(["--quiet"] if quiet else [])]) == 2
    assert {name: seen.get(name) for name in cli.QUIET_CLIENTS} == (
        cli.QUIET_CLIENTS if quiet else dict.fromkeys(cli.QUIET_CLIENTS)
    )
