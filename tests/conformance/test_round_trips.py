"""Models go from keras-hub and transformers to here and back without a bit of difference."""

from __future__ import annotations

import contextlib
import json

import h5py
import ml_dtypes  # noqa: F401  (gives NumPy bfloat16)
import numpy as np
import pytest

from exporter import OPTBackbone, OPTCausalLM, OPTTokenizer
from exporter.checkpoints.readers import open_checkpoint
from tests.conformance import test_switches
from tests.exporter.conftest import (  # noqa: F401
    _save_hf,
    build_hub_model,
    greedy,
    greedy_rows,
    hf_folder,
    hf_logits,
    hf_model,
    hub_model,
    hub_preset,
    keras_hub,
    padded_tokens,
    toy_merges,
    toy_vocabulary,
    transformers,
)
from tests.exporter.galactica import galactica_tokenizer, write_galactica_tokenizer

pytestmark = pytest.mark.reference

DTYPES = ("float32", "float16", "bfloat16")
TEXTS = (
    "The quick brown fox",
    " import os\n\n\n    x = 1\t# 12345",
    "Ünïcödé 漢字 🙂🙂 \u200b\x07",
    "</s> in the text<pad> and <unk>",
    "     ",
    "",
)
PROMPTS = [[2, 40, 41, 42, 90], [2], [2, 260, 7]]
LENGTH = 12
TINY_SHARD = 0.00001  # GB; the token embedding alone is larger
STORED = [
    ("float32", 10),
    pytest.param("float16", TINY_SHARD, marks=pytest.mark.slow),
    pytest.param("bfloat16", TINY_SHARD, marks=pytest.mark.slow),
]


def bits(values):
    return np.ascontiguousarray(values).view(f"V{np.asarray(values).itemsize}")


def assert_same_tensors(found, expected):
    """Arrays by name: names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape), name
        assert np.array_equal(bits(found[name]), bits(values)), name


def keras_weights(backbone):
    return {v.path: np.asarray(v.numpy()) for v in backbone.weights}


def stored(folder, layout):
    """The tensors of a folder's weight files as they are stored."""
    with contextlib.closing(open_checkpoint(folder, layout)) as reader:
        return {name: reader.read(name) for name in reader.shapes}


def shards(folder):
    return sorted(
        path.name
        for path in folder.iterdir()
        if "model" in path.name and path.suffix in (".h5", ".safetensors")
    )


def without_names(config):
    """A configuration without the names of its objects, which Keras counts up."""
    if isinstance(config, dict):
        return {k: without_names(v) for k, v in config.items() if k != "name" or isinstance(v, dict)}
    return config


# === keras-hub ===


@pytest.mark.parametrize(("dtype", "shard"), STORED)
def test_keras_hub_to_here_to_keras_hub(keras_hub, build_hub_model, greedy, tmp_path, dtype, shard):  # noqa: F811
    before = build_hub_model(seed=1, dtype=dtype)
    before.save_to_preset(str(tmp_path / "theirs"))
    ours = OPTCausalLM.from_preset(tmp_path / "theirs", dtype=dtype)
    ours.save_to_preset(tmp_path / "ours", max_shard_size=shard)
    assert (len(shards(tmp_path / "ours")) > 3) == (shard == TINY_SHARD)
    after = keras_hub.models.CausalLM.from_preset(str(tmp_path / "ours"), dtype=dtype)
    assert type(after) is keras_hub.models.OPTCausalLM

    assert after.backbone.get_config() == before.backbone.get_config()
    assert_same_tensors(keras_weights(after.backbone), keras_weights(before.backbone))
    assert_same_tensors(stored(tmp_path / "ours", "keras"), stored(tmp_path / "theirs", "keras"))
    tokens = greedy(before, PROMPTS, LENGTH)
    assert greedy(after, PROMPTS, LENGTH) == tokens
    if dtype == "float32":  # computed alike to the last bits that count
        assert greedy(ours, PROMPTS, LENGTH) == tokens
    for text in TEXTS:
        ids = np.asarray(before.preprocessor.tokenizer(text)).tolist()
        assert np.asarray(after.preprocessor.tokenizer(text)).tolist() == ids
    configs = [without_names(m.preprocessor.get_config()) for m in (after, before)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("asked", ["as saved", None])
@pytest.mark.parametrize(
    "dtype", [pytest.param(d, marks=() if d == "float32" else pytest.mark.slow) for d in DTYPES]
)
def test_the_weights_file_is_keras_s_own(keras_hub, build_hub_model, tmp_path, dtype, asked):  # noqa: F811
    """Every dataset of Keras's file is in ours, under its path, with its type and attributes.

    Loaded without a dtype, both are in Keras's policy and so saved in it.
    """
    first, theirs, ours = (tmp_path / name for name in ("first", "theirs", "ours"))
    build_hub_model(seed=1, dtype=dtype).save_to_preset(str(first))
    wanted = dtype if asked else None
    OPTBackbone.from_preset(first, dtype=wanted).save_to_preset(ours)
    keras_hub.models.OPTBackbone.from_preset(str(first), dtype=wanted).save_to_preset(str(theirs))
    contents = []
    for folder in (first, theirs, ours):
        datasets = {}
        with h5py.File(folder / "model.weights.h5") as file:

            def visit(name, item, datasets=datasets):
                if isinstance(item, h5py.Dataset):
                    datasets[name] = (item.shape, item[()].tobytes(), dict(item.attrs))

            file.visititems(visit)
        contents.append(datasets)
    before, expected, found = contents
    assert len(expected) == 4 + 16 * 2
    assert found == expected
    assert (found == before) == (wanted == dtype or dtype == "float32")
    types = [values.dtype for values in stored(ours, "keras").values()]
    assert {str(t) for t in types} == {wanted or "float32"}
    policies = [
        json.loads((folder / "config.json").read_text())["config"]["dtype"] for folder in (ours, theirs)
    ]
    assert policies[0] == policies[1]


def test_the_index_of_shards_is_keras_s_own(hub_model, hub_preset, tmp_path):  # noqa: F811
    """The same limit cuts Keras's way, and the index says what Keras's says."""
    size = 0.00005
    hub_model.save_to_preset(str(tmp_path / "theirs"), max_shard_size=size)
    OPTCausalLM.from_preset(hub_preset).save_to_preset(tmp_path / "ours", max_shard_size=size)
    indices = [
        json.loads((tmp_path / name / "model.weights.json").read_text()) for name in ("ours", "theirs")
    ]
    assert indices[0]["metadata"] == indices[1]["metadata"]
    assert set(indices[0]["weight_map"]) == set(indices[1]["weight_map"])
    assert "model_00000.weights.h5" in shards(tmp_path / "ours")


# === transformers ===


def hf_checkpoint(hf_model, vocabulary, merges, folder, dtype, **options):  # noqa: F811
    import copy

    import torch

    model = copy.deepcopy(hf_model).to(getattr(torch, dtype))
    return model, _save_hf(model, folder, vocabulary, merges, **options)


def torch_greedy(model):
    return [test_switches.greedy_tokens(model, prompt) for prompt in PROMPTS[:2]]


def load_torch(transformers, folder, dtype="float32"):  # noqa: F811
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert not any(loading.values()), loading
    return model.eval()


@pytest.mark.parametrize(("dtype", "shard"), STORED)
def test_transformers_to_here_to_transformers(
    transformers,  # noqa: F811
    hf_model,  # noqa: F811
    toy_vocabulary,  # noqa: F811
    toy_merges,  # noqa: F811
    tmp_path,
    dtype,
    shard,
):
    before, folder = hf_checkpoint(hf_model, toy_vocabulary, toy_merges, tmp_path / "theirs", dtype)
    ours = OPTCausalLM.from_preset(folder, dtype=dtype)
    ours.export_to_transformers(tmp_path / "ours", max_shard_size=shard)
    assert (len(shards(tmp_path / "ours")) > 3) == (shard == TINY_SHARD)

    found = stored(tmp_path / "ours", "huggingface")
    assert_same_tensors(found, stored(folder, "huggingface"))
    positions = found["model.decoder.embed_positions.weight"]
    assert positions.shape == (66, 32)
    assert positions[:2].astype("float32").std() > 0.1  # what stands for padding is carried too
    after = load_torch(transformers, tmp_path / "ours", "auto")
    assert str(after.dtype) == f"torch.{dtype}"
    assert torch_greedy(after) == torch_greedy(before)


def test_the_tokenizer_goes_there_and_back(
    transformers,  # noqa: F811
    hf_folder,  # noqa: F811
    toy_vocabulary,  # noqa: F811
    toy_merges,  # noqa: F811
    tmp_path,
):
    ours = OPTCausalLM.from_preset(hf_folder, load_weights=False)
    ours.export_to_transformers(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = ours.preprocessor.tokenizer
    assert theirs.get_vocab() == tokenizer.vocabulary == toy_vocabulary
    assert tokenizer.merges == toy_merges
    for text in TEXTS:
        assert theirs(text)["input_ids"] == [2, *tokenizer.encode(text)], text
        assert theirs.decode(theirs(text)["input_ids"]) == "</s>" + text, text
    special = (theirs.bos_token, theirs.eos_token, theirs.pad_token, theirs.unk_token)
    assert special == ("</s>", "</s>", "<pad>", "</s>")
    again = OPTTokenizer.from_preset(tmp_path)
    assert (again.vocabulary, again.merges, again.is_plain) == (toy_vocabulary, toy_merges, True)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 2, 1)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (2, 2, 1)


# === Across ===


@pytest.mark.parametrize("shard", [pytest.param(10, marks=pytest.mark.slow), TINY_SHARD])
def test_keras_hub_to_here_to_transformers(
    transformers,  # noqa: F811
    hub_model,  # noqa: F811
    hub_preset,  # noqa: F811
    greedy,  # noqa: F811
    padded_tokens,  # noqa: F811
    tmp_path,
    shard,
):
    import torch

    ours = OPTCausalLM.from_preset(hub_preset)
    ours.export_to_transformers(tmp_path, max_shard_size=shard)
    theirs = load_torch(transformers, tmp_path)

    def logits(token_ids, padding_mask):
        with torch.no_grad():
            answer = theirs(
                input_ids=torch.from_numpy(np.asarray(token_ids, "int64")),
                attention_mask=torch.from_numpy(np.asarray(padding_mask, "int64")),
            )
        return answer.logits.numpy()

    mask = padded_tokens["padding_mask"].astype(bool)
    expected = np.asarray(hub_model(padded_tokens))
    assert expected[mask].std() > 1
    found = logits(padded_tokens["token_ids"], padded_tokens["padding_mask"])
    assert np.abs(found - expected)[mask].max() <= 1e-5 * expected[mask].std()
    assert greedy_rows(logits, PROMPTS, LENGTH) == greedy(hub_model, PROMPTS, LENGTH)
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert fast("the quick")["input_ids"] == [2, *ours.preprocessor.tokenizer.encode("the quick")]


def test_transformers_to_here_to_keras_hub(
    keras_hub,  # noqa: F811
    hf_folder,  # noqa: F811
    hf_logits,  # noqa: F811
    padded_tokens,  # noqa: F811
    greedy,  # noqa: F811
    tmp_path,
):
    OPTCausalLM.from_preset(hf_folder).save_to_preset(tmp_path)
    theirs = keras_hub.models.OPTCausalLM.from_preset(str(tmp_path))
    mask = padded_tokens["padding_mask"].astype(bool)
    expected = hf_logits(padded_tokens["token_ids"], padded_tokens["padding_mask"])
    assert np.abs(np.asarray(theirs(padded_tokens)) - expected)[mask].max() <= 1e-5 * expected.std()
    assert greedy(theirs, PROMPTS, LENGTH) == greedy_rows(hf_logits, PROMPTS, LENGTH)


# === What keras-hub does not have ===


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "opt-350m" else pytest.mark.slow) for n in test_switches.CASES],
)
def test_models_with_switches_go_through_a_preset_and_back(name, keras_hub, tmp_path):  # noqa: F811
    case = test_switches.CASES[name]
    test_switches.write_checkpoint(case, tmp_path / "theirs")
    first = OPTCausalLM.from_preset(tmp_path / "theirs", dtype=case.dtype)
    first.save_to_preset(tmp_path / "preset", max_shard_size=0.00001)
    second = OPTCausalLM.from_preset(tmp_path / "preset", dtype=case.dtype)
    assert second.backbone.model_config == first.backbone.model_config
    weights = keras_weights(first.backbone)
    assert {str(values.dtype) for values in weights.values()} == {case.dtype}
    assert_same_tensors(keras_weights(second.backbone), weights)
    wide = OPTCausalLM.from_preset(tmp_path / "preset")  # in Keras's policy, float32
    expected = {name: values.astype("float32") for name, values in weights.items()}
    assert_same_tensors(keras_weights(wide.backbone), expected)

    config = json.loads((tmp_path / "preset" / "config.json").read_text())
    assert config["registered_name"] == "opt_onnx>OPTBackbone"
    assert {n: config["config"][n] for n in first.backbone.model_config.switches} == (
        first.backbone.model_config.switches
    )
    with pytest.raises(ValueError, match="not a subclass of calling class"):
        keras_hub.models.OPTBackbone.from_preset(str(tmp_path / "preset"))

    first.export_to_transformers(tmp_path / "back")
    expected = stored(tmp_path / "theirs", "huggingface")
    assert_same_tensors(stored(tmp_path / "back", "huggingface"), expected)
    theirs = OPTBackbone.from_preset(tmp_path / "back", load_weights=False)
    assert theirs.model_config == first.backbone.model_config


def test_a_tokenizer_of_another_kind_goes_back_as_it_came(transformers, hf_model, tmp_path):  # noqa: F811
    texts = ["The quick brown fox jumps over the lazy dog.", "import os\n\nx = 12345 + 67"] * 5
    fast = galactica_tokenizer(texts, 288)
    hf_model.save_pretrained(tmp_path / "theirs")
    config_path = tmp_path / "theirs" / "config.json"
    special = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config_path.write_text(json.dumps(json.loads(config_path.read_text()) | special))
    write_galactica_tokenizer(tmp_path / "theirs", fast)
    before = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    ours = OPTCausalLM.from_preset(tmp_path / "theirs")
    ours.save_to_preset(tmp_path / "preset")
    OPTCausalLM.from_preset(tmp_path / "preset").export_to_transformers(tmp_path / "back")
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text in (*TEXTS, "See [START_REF] a1234 [END_REF] <work>"):
        ids = before(text)["input_ids"]
        assert after(text)["input_ids"] == ids, text
        assert ours.preprocessor.tokenizer.encode(text) == ids, text
        assert after.decode(ids) == before.decode(ids), text
    steps = [
        json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("theirs", "back")
    ]
    assert steps[1] == steps[0]
    assert (after.eos_token_id, after.pad_token_id) == (2, 1)
    assert json.loads((tmp_path / "preset" / "tokenizer.json").read_text())["registered_name"] == (
        "opt_onnx>OPTTokenizer"
    )
