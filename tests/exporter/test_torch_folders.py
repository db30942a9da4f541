"""Hugging Face folders of `pytorch_model*.bin` say what transformers makes of the same folders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from exporter import OPTCausalLM
from exporter.errors import CheckpointError
from exporter.presets.folder import read_preset
from tests.exporter.export_helpers import greedy_of_transformers

LENGTH = 24
PROMPTS = [[2, 17, 9, 250], [2, 100, 31, 7, 44, 210, 5], [2]]

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def write_folder(hf_model, tmp_path_factory):
    """Writes a folder of the toy transformers model with its weights in `.bin` files."""
    import torch

    def write(dtype, shards, rename=lambda name: name):
        folder = tmp_path_factory.mktemp("torch")
        hf_model.config.save_pretrained(folder)
        state = {rename(name): value.to(getattr(torch, dtype)) for name, value in saved(hf_model)}
        if shards == 1:
            torch.save(state, folder / "pytorch_model.bin")
            return folder
        files = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
        weight_map = {name: files[i * shards // len(state)] for i, name in enumerate(state)}
        for file in files:
            torch.save({name: state[name] for name in state if weight_map[name] == file}, folder / file)
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
        return folder

    return write


def saved(model):
    """A state dict's items as published checkpoints hold them: the head beside the embedding."""
    state = model.state_dict()
    assert "lm_head.weight" in state
    return state.items()


def transformers_tokens(transformers, folder):
    import torch

    model = transformers.OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return greedy_of_transformers(model, PROMPTS, LENGTH)


def our_tokens(folder):
    model = OPTCausalLM.from_preset(str(folder), dtype="float32")
    model.compile(sampler="greedy")
    token_ids = np.ones((len(PROMPTS), LENGTH), "int32")
    mask = np.zeros((len(PROMPTS), LENGTH), "int32")
    for row, prompt in enumerate(PROMPTS):
        token_ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    tokens = {"token_ids": token_ids, "padding_mask": mask}
    return np.asarray(model.generate(tokens, stop_token_ids=None)["token_ids"]).tolist()


@pytest.mark.parametrize(
    ("dtype", "shards"),
    [("float16", 1), ("float16", 3), ("bfloat16", 1), ("bfloat16", 3), ("float32", 1)],
)
def test_greedy_tokens_are_those_of_transformers(transformers, write_folder, dtype, shards):
    folder = write_folder(dtype, shards)
    assert not list(folder.glob("*.safetensors"))
    found = our_tokens(folder)
    assert found == transformers_tokens(transformers, folder)
    assert len({tuple(row[-8:]) for row in found}) > 1


def test_the_values_are_those_of_the_state_dict(hf_model, write_folder):
    """In bfloat16, in shards, and with the names that older files have."""
    folder = write_folder("bfloat16", 4, lambda name: name.removeprefix("model."))
    reader, targets = read_preset(folder).open_weights()
    read = {source.name for target in targets for source in target.sources}
    state = {name.removeprefix("model."): value for name, value in saved(hf_model)}
    assert read == set(state) - {"lm_head.weight"}
    for name in read:
        found = reader.read(name)
        assert str(found.dtype) == "bfloat16"
        expected = state[name].bfloat16().float().numpy()
        np.testing.assert_array_equal(found.astype("float32"), expected, err_msg=name)
    reader.close()


def test_a_missing_shard_is_named(write_folder):
    folder = write_folder("float16", 3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError) as raised:
        OPTCausalLM.from_preset(str(folder))
    assert str(raised.value) == (
        f"{folder} lacks the shards pytorch_model-00002-of-00003.bin that "
        "pytorch_model.bin.index.json lists"
    )
