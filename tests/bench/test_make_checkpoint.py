"""Random checkpoints: the same model in both formats, as the libraries of both formats read it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from bench import make_checkpoint, random_weights
from bench.make_checkpoint import main, write_checkpoint
from bench.shapes import SHAPES
from exporter.presets.folder import read_preset
from graphs.contract import ModelConfig

TINY = ModelConfig(
    vocabulary_size=300,
    num_layers=2,
    num_heads=4,
    hidden_dim=32,
    intermediate_dim=48,
    max_sequence_length=40,
)
FORMATS = ("huggingface", "keras")
DEVIATION = 0.3
TOKEN_IDS = np.array([[2, 5, 299, 0, 17, 200, 3], [2, 9, 9, 1, 120, 8, 44]])


def read_weights(folder):
    reader, targets = read_preset(folder).open_weights()
    weights = {target.name: np.array(target.read(reader)) for target in targets}
    reader.close()
    return weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for format in FORMATS:
        write_checkpoint(TINY, folder / format, format=format, deviation=DEVIATION)
    return {format: folder / format for format in FORMATS}


@pytest.mark.parametrize("format", FORMATS)
def test_exporter_reads_it(folders, format):
    preset = read_preset(folders[format])
    assert (preset.format, preset.config, preset.tokenizer_files) == (format, TINY, None)
    shapes = {name: value.shape for name, value in read_weights(folders[format]).items()}
    assert len(shapes) == 4 + 12 * 2
    assert shapes["embeddings/position_embedding/embeddings"] == (40, 32)
    assert shapes["transformer_layer_1/attention/qkv/kernel"] == (32, 96)
    assert shapes["transformer_layer_1/output/kernel"] == (48, 32)


@pytest.mark.parametrize("format", FORMATS)
def test_shards_hold_the_same_model(folders, tmp_path, format):
    options = {"format": format, "deviation": DEVIATION, "max_shard_size": 40_000 / 2**30}
    write_checkpoint(TINY, tmp_path / "shards", **options)
    assert sum(path.stat().st_size > 10_000 for path in (tmp_path / "shards").iterdir()) > 2
    one, other = read_weights(folders[format]), read_weights(tmp_path / "shards")
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    with pytest.raises(ValueError, match="max_shard_size must be a positive number"):
        write_checkpoint(TINY, tmp_path / "none", max_shard_size=0.0)


def test_both_formats_hold_the_same_model(folders):
    one, other = (read_weights(folders[format]) for format in FORMATS)
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_values_are_initialised_as_opt_is(folders):
    weights = read_weights(folders["huggingface"])
    for name, values in weights.items():
        center = 1.0 if name.endswith("gamma") else 0.0
        deviation = DEVIATION if values.ndim == 2 else 0.02
        tolerance = 5 * deviation / values.size**0.5
        assert values.mean() == pytest.approx(center, abs=tolerance), name
        assert values.std() == pytest.approx(deviation, abs=tolerance), name
    flat = np.concatenate([values.ravel() for values in weights.values()])
    assert len(np.unique(flat)) > 0.98 * flat.size  # no two weights hold the same values


def test_default_deviation_is_opts_own(tmp_path):
    write_checkpoint(TINY, tmp_path / "opt")
    weights = read_weights(tmp_path / "opt")
    assert weights["transformer_layer_0/intermediate/kernel"].std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("format", FORMATS)
def test_same_seed_same_weights(folders, tmp_path, format):
    write_checkpoint(TINY, tmp_path / "same", format=format, deviation=DEVIATION, seed=0)
    write_checkpoint(TINY, tmp_path / "other", format=format, deviation=DEVIATION, seed=1)
    expected, same, other = map(read_weights, (folders[format], tmp_path / "same", tmp_path / "other"))
    for name in expected:
        np.testing.assert_array_equal(same[name], expected[name])
        assert np.abs(other[name] - expected[name]).max() > 0.02, name


@pytest.mark.parametrize("format", FORMATS)
def test_blocks_change_nothing(folders, tmp_path, monkeypatch, format):
    monkeypatch.setattr(random_weights, "BLOCK_BYTES", 7 * 32 * 4)
    write_checkpoint(TINY, tmp_path / "blocks", format=format, deviation=DEVIATION)
    expected, found = read_weights(folders[format]), read_weights(tmp_path / "blocks")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("format", FORMATS)
def test_float16(folders, tmp_path, format):
    write_checkpoint(TINY, tmp_path / "half", format=format, dtype="float16", deviation=DEVIATION)
    reader, targets = read_preset(tmp_path / "half").open_weights()
    assert {reader.read(s.name).dtype for t in targets for s in t.sources} == {np.dtype("float16")}
    reader.close()
    expected, found = read_weights(folders[format]), read_weights(tmp_path / "half")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name].astype("float16"))


def test_safetensors_library_reads_it(folders):
    from safetensors.numpy import load_file

    tensors = load_file(folders["huggingface"] / "model.safetensors")
    assert len(tensors) == 4 + 16 * 2
    positions = tensors["model.decoder.embed_positions.weight"]
    assert positions.shape == (42, 32)
    assert not positions[:2].any()  # the rows that stand for padding
    weights = read_weights(folders["huggingface"])
    np.testing.assert_array_equal(
        tensors["model.decoder.layers.1.fc1.weight"].T,
        weights["transformer_layer_1/intermediate/kernel"],
    )


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_and_keras_hub_load_the_same_model(tmp_path, dtype):
    for format in FORMATS:
        write_checkpoint(TINY, tmp_path / format, format=format, dtype=dtype, deviation=DEVIATION)
    import keras_hub
    import torch
    import transformers

    torch_model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "huggingface", dtype=torch.float32, output_loading_info=True
    )
    assert type(torch_model).__name__ == "OPTForCausalLM"
    assert not any(loading.values()), loading
    with torch.no_grad():
        by_transformers = torch_model(torch.tensor(TOKEN_IDS)).logits.numpy()
    keras_model = keras_hub.models.OPTCausalLM.from_preset(str(tmp_path / "keras"), preprocessor=None)
    inputs = {"token_ids": TOKEN_IDS, "padding_mask": np.ones_like(TOKEN_IDS)}
    by_keras = np.asarray(keras_model(inputs))
    assert by_transformers.std() > 1
    assert np.abs(by_transformers - by_keras).max() < 2e-5


# === The command ===


def test_command(tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    arguments = ["--shape", "opt_tiny", "--layers", "1", "--output", str(output), "--seed", "3"]
    assert main([*arguments, "--dtype", "float16", "--format", "keras"]) == 0
    printed = capsys.readouterr()
    parameters = read_preset(output).config.num_parameters
    size = sum(path.stat().st_size for path in output.iterdir())
    assert printed.out == f"{output}: {parameters:,} parameters, {size / 1e6:.1f} MB\n"
    assert "Writing weights" in printed.err
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "model.weights.h5"]
    assert read_preset(output).config.num_layers == 1
    assert os.listdir(output.parent) == ["folder"]


def test_shapes_are_the_published_ones():
    sizes = {
        name: (s.num_layers, s.num_heads, s.hidden_dim, s.intermediate_dim)
        for name, s in SHAPES.items()
        if name != "opt_tiny"
    }
    assert sizes == {
        "opt_125m": (12, 12, 768, 3072),
        "opt_1.3b": (24, 32, 2048, 8192),
        "opt_2.7b": (32, 32, 2560, 10240),
        "opt_6.7b": (32, 32, 4096, 16384),
    }
    for name in sizes:
        assert (SHAPES[name].vocabulary_size, SHAPES[name].max_sequence_length) == (50272, 2048)


def test_keeps_what_is_there(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--shape", "opt_tiny", "--output", str(tmp_path)]) == 2
    message = f"make_checkpoint: {tmp_path} exists and is not an empty folder; choose another --output"
    assert capsys.readouterr().err == f"{message}\n"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_bad_layers(tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["--shape", "opt_tiny", "--layers", "0", "--output", str(output)]) == 2
    assert capsys.readouterr().err == "make_checkpoint: --layers must be at least 1, got 0\n"
    assert not output.exists()


def test_unknown_shape_lists_the_known_ones(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--shape", "opt_350m", "--output", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "opt_125m" in capsys.readouterr().err


@pytest.mark.parametrize("format", FORMATS)
def test_interrupted_leaves_nothing(tmp_path, monkeypatch, capsys, format):
    pieces = make_checkpoint.file_pieces

    def interrupted(target, values):
        if target.name.startswith("transformer_layer_2"):
            raise KeyboardInterrupt
        return pieces(target, values)

    monkeypatch.setattr(make_checkpoint, "file_pieces", interrupted)
    arguments = ["--shape", "opt_tiny", "--output", str(tmp_path / "out"), "--format", format]
    assert main([*arguments, "--quiet"]) == 130
    assert capsys.readouterr().err == "\nmake_checkpoint: interrupted\n"
    assert os.listdir(tmp_path) == []


def test_configuration_has_what_transformers_needs(folders):
    config = json.loads((folders["huggingface"] / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "opt"
    assert config["word_embed_proj_dim"] == config["hidden_size"] == 32
    assert config["dtype"] == "float32"
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [2, 2, 1]
