"""Weight maps of models with switches: which tensors they have, and what is said of the others."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from exporter.checkpoints import weight_map as weight_map_module
from exporter.checkpoints.formats import HUGGING_FACE, KERAS_PRESET
from exporter.checkpoints.weight_map import bind_checkpoint, bind_names
from exporter.errors import CheckpointError
from exporter.tracing import build_weightless_backbone, weight_shapes
from graphs.contract import ModelConfig
from tests.exporter.weight_map_helpers import FORMATS, DictReader, random_reader, random_weights

SMALL = ModelConfig(11, 2, 2, 6, 10, 5)
FLAGS = ("norm_first", "final_norm", "use_bias", "norm_affine", "tied_head")
EVERY = [
    replace(SMALL, embedding_dim=width, **dict(zip(FLAGS, values, strict=True)))
    for width in (None, 4, 8)
    for values in itertools.product([True, False], repeat=len(FLAGS))
]
ONE_BY_ONE = [
    SMALL,
    *(replace(SMALL, **{flag: False}) for flag in FLAGS),
    replace(SMALL, embedding_dim=4),
    replace(SMALL, embedding_dim=8, **dict.fromkeys(FLAGS, False)),
]
DECODER = "model.decoder."


def sources(weight_map, config):
    """Name and shape of every tensor in a file."""
    return {s.name: s.shape for t in bind_names(weight_map, config) for s in t.sources}


def refusal(weight_map, config, reader):
    with pytest.raises(CheckpointError) as raised:
        bind_checkpoint(weight_map, config, reader, "here")
    return str(raised.value).removeprefix("the tensors of here do not fit its configuration; ")


# === The maps ===


@pytest.mark.parametrize("config", ONE_BY_ONE, ids=lambda config: str(config.switches))
def test_a_map_covers_exactly_the_variables_of_the_backbone(config):
    shapes = weight_shapes(build_weightless_backbone(config))
    for weight_map in FORMATS.values():
        targets = bind_names(weight_map, config)
        assert {t.name: t.shape for t in targets} == shapes
        assert len(targets) == len(shapes)  # none twice


@pytest.mark.parametrize("name", FORMATS)
def test_every_combination_splits_and_reads_back(name):
    assert len(EVERY) == 96
    for config in EVERY:
        targets = bind_names(FORMATS[name], config)
        weights = random_weights(targets)
        tensors = {k: v for target in targets for k, v in target.split(weights[target.name])}
        assert {k: v.shape for k, v in tensors.items()} == sources(FORMATS[name], config)
        assert sum(values.size for values in weights.values()) == config.num_parameters
        reader = DictReader(tensors)
        bound = bind_checkpoint(FORMATS[name], config, reader, "here")
        assert [target.name for target in bound] == [target.name for target in targets]
        for target in bound:
            np.testing.assert_array_equal(target.read(reader), weights[target.name])
            joined = np.concatenate(list(target.blocks(reader)))
            np.testing.assert_array_equal(joined, weights[target.name])


def test_names_and_shapes_in_hugging_face_files():
    narrow = sources(HUGGING_FACE, replace(SMALL, embedding_dim=4, tied_head=False))
    assert narrow[f"{DECODER}embed_tokens.weight"] == (11, 4)
    assert narrow[f"{DECODER}embed_positions.weight"] == (7, 6)
    assert narrow[f"{DECODER}project_in.weight"] == (6, 4)
    assert narrow[f"{DECODER}project_out.weight"] == (4, 6)
    assert narrow["lm_head.weight"] == (11, 4)


def test_names_and_shapes_in_keras_files():
    narrow = sources(KERAS_PRESET, replace(SMALL, embedding_dim=4, tied_head=False))
    embedding = "layers/token_and_position_embedding"
    assert narrow[f"{embedding}/token_embedding/vars/0"] == (11, 4)
    assert narrow[f"{embedding}/position_embedding/vars/0"] == (5, 6)
    assert narrow[f"{embedding}/project_in/vars/0"] == (4, 6)
    assert narrow["layers/project_out/vars/0"] == (6, 4)
    assert narrow["layers/head/vars/0"] == (11, 4)


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_switch_takes_away(name):
    """By number of tensors: two layers of six dense layers and two norms, and the final norm."""
    whole = sources(FORMATS[name], SMALL)
    for changes, missing in (
        ({"use_bias": False}, 2 * 6),
        ({"norm_affine": False}, 2 * (2 * 2 + 1)),
        ({"final_norm": False}, 2),
        ({"final_norm": False, "norm_affine": False}, 2 * (2 * 2 + 1)),
        ({"norm_first": False}, 0),
    ):
        found = sources(FORMATS[name], replace(SMALL, **changes))
        assert len(set(whole) - set(found)) == missing, changes
        assert set(found) <= set(whole)


def test_projections_are_transposed_and_a_head_is_not():
    config = replace(SMALL, embedding_dim=4, tied_head=False)
    reader = random_reader(HUGGING_FACE, config)
    read = {t.name: t.read(reader) for t in bind_names(HUGGING_FACE, config)}
    for ours, theirs in (
        ("embeddings/project_in/kernel", "project_in"),
        ("project_out/kernel", "project_out"),
    ):
        np.testing.assert_array_equal(read[ours], reader.tensors[f"{DECODER}{theirs}.weight"].T)
    np.testing.assert_array_equal(read["head/embeddings"], reader.tensors["lm_head.weight"])
    table = reader.tensors[f"{DECODER}embed_tokens.weight"]
    np.testing.assert_array_equal(read["embeddings/token_embedding/embeddings"], table)


# === Checkpoints that do not fit ===


def test_an_untied_head_must_be_there():
    config = replace(SMALL, tied_head=False)
    reader = random_reader(HUGGING_FACE, config)
    del reader.tensors["lm_head.weight"]
    assert refusal(HUGGING_FACE, config, reader) == "1 missing: lm_head.weight"


@pytest.mark.parametrize("prefix", ["model.decoder.", "decoder.", "model.", ""])
def test_a_head_stands_outside_the_prefix(prefix):
    config = replace(SMALL, tied_head=False)
    plain = random_reader(HUGGING_FACE, config).tensors
    reader = DictReader({name.replace(DECODER, prefix): values for name, values in plain.items()})
    if prefix not in HUGGING_FACE.prefixes:
        found = refusal(HUGGING_FACE, config, reader)
        assert found.startswith(f"{len(plain) - 1} missing: ")
        assert "lm_head" not in found
        return
    bound = {t.name: t for t in bind_checkpoint(HUGGING_FACE, config, reader, "here")}
    assert bound["head/embeddings"].sources[0].name == "lm_head.weight"
    np.testing.assert_array_equal(bound["head/embeddings"].read(reader), plain["lm_head.weight"])


@pytest.mark.parametrize("prefix", HUGGING_FACE.prefixes)
def test_a_head_inside_the_prefix_is_no_head(prefix):
    config = replace(SMALL, tied_head=False)
    reader = random_reader(HUGGING_FACE, config)
    reader.tensors[f"{prefix}lm_head.weight"] = reader.tensors.pop("lm_head.weight")
    assert "1 missing: lm_head.weight" in refusal(HUGGING_FACE, config, reader)


@pytest.mark.parametrize("width", [None, 4])
def test_a_tied_model_may_have_the_copy(width):
    config = replace(SMALL, embedding_dim=width)
    reader = random_reader(HUGGING_FACE, config)
    reader.tensors["lm_head.weight"] = reader.tensors[f"{DECODER}embed_tokens.weight"].copy()
    bound = bind_checkpoint(HUGGING_FACE, config, reader, "here")
    assert [t.name for t in bound] == [t.name for t in bind_names(HUGGING_FACE, config)]
    assert all(s.name != "lm_head.weight" for t in bound for s in t.sources)


@pytest.mark.parametrize("row", [0, 7, 10])
def test_a_tied_model_whose_head_is_another_table_is_refused(row, monkeypatch):
    monkeypatch.setattr(weight_map_module, "BLOCK_BYTES", 100)  # four rows of six
    reader = random_reader(HUGGING_FACE, SMALL)
    head = reader.tensors[f"{DECODER}embed_tokens.weight"].copy()
    head[row, 3] += 1
    reader.tensors["lm_head.weight"] = head
    expected = (
        "here: lm_head.weight is not model.decoder.embed_tokens.weight, which the configuration "
        "ties it to; set tie_word_embeddings to false"
    )
    with pytest.raises(CheckpointError, match=expected):
        bind_checkpoint(HUGGING_FACE, SMALL, reader, "here")
    reader.tensors["lm_head.weight"] = head[:5]
    with pytest.raises(CheckpointError, match=expected):
        bind_checkpoint(HUGGING_FACE, SMALL, reader, "here")


def test_biases_that_the_configuration_does_not_have_are_surplus():
    config = replace(SMALL, use_bias=False)
    found = refusal(HUGGING_FACE, config, random_reader(HUGGING_FACE, SMALL))
    dense = ("fc1", "fc2", *(f"self_attn.{role}_proj" for role in ("k", "out", "q", "v")))
    names = sorted(f"{DECODER}layers.{i}.{name}.bias" for i in (0, 1) for name in dense)
    assert found == f"12 surplus: {', '.join(names[:5])}, and 7 more"


def test_biases_that_the_configuration_has_are_missing():
    found = refusal(HUGGING_FACE, SMALL, random_reader(HUGGING_FACE, replace(SMALL, use_bias=False)))
    assert found.startswith("12 missing: ")
    assert f"{DECODER}layers.0.self_attn.out_proj.bias" in found
    assert "surplus" not in found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"final_norm": False}, "2 surplus: {0}final_layer_norm.bias, {0}final_layer_norm.weight"),
        (
            {"embedding_dim": 4},
            "2 missing: {0}project_in.weight, {0}project_out.weight; "
            "1 mis-shaped: {0}embed_tokens.weight is (11, 6), expected (11, 4)",
        ),
        ({"tied_head": False}, "1 missing: lm_head.weight"),
    ],
    ids=["final norm", "narrow embedding", "untied head"],
)
def test_opt_s_own_tensors_under_another_configuration(changes, expected):
    reader = random_reader(HUGGING_FACE, SMALL)
    assert refusal(HUGGING_FACE, replace(SMALL, **changes), reader) == expected.format(DECODER)


def test_tensors_of_another_configuration_under_opt_s_own():
    config = replace(SMALL, embedding_dim=4, tied_head=False, norm_affine=False)
    found = refusal(HUGGING_FACE, SMALL, random_reader(HUGGING_FACE, config))
    missing, misshaped, surplus = found.split("; ")
    assert missing.startswith("10 missing: ")
    names = missing.removeprefix("10 missing: ").removesuffix(", and 5 more").split(", ")
    assert len(names) == 5
    assert all("layer_norm" in name for name in names)
    assert misshaped == f"1 mis-shaped: {DECODER}embed_tokens.weight is (11, 4), expected (11, 6)"
    assert surplus == f"2 surplus: {DECODER}project_in.weight, {DECODER}project_out.weight"


def test_projections_and_heads_of_other_shapes():
    config = replace(SMALL, embedding_dim=4, tied_head=False)
    reader = random_reader(HUGGING_FACE, config)
    for name in (f"{DECODER}project_in.weight", "lm_head.weight"):
        reader.tensors[name] = np.ascontiguousarray(reader.tensors[name].T)
    assert refusal(HUGGING_FACE, config, reader) == (
        f"2 mis-shaped: {DECODER}project_in.weight is (4, 6), expected (6, 4), "
        "lm_head.weight is (4, 11), expected (11, 4)"
    )


def test_keras_files_that_do_not_fit():
    other = replace(SMALL, embedding_dim=4, tied_head=False)
    found = refusal(KERAS_PRESET, SMALL, random_reader(KERAS_PRESET, other))
    embedding = "layers/token_and_position_embedding"
    assert found == (
        f"1 mis-shaped: {embedding}/token_embedding/vars/0 is (11, 4), expected (11, 6); "
        f"3 surplus: layers/head/vars/0, layers/project_out/vars/0, {embedding}/project_in/vars/0"
    )
    plain = replace(SMALL, use_bias=False, final_norm=False)
    found = refusal(KERAS_PRESET, plain, random_reader(KERAS_PRESET, SMALL))
    assert found.startswith("14 surplus: layers/layer_normalization/vars/0, ")
