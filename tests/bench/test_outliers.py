"""Outliers that change no result: where they are, that logits stay, the preset that is written."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from bench.outliers import choose_channels, main, scale_channels
from exporter import OPTBackbone, OPTCausalLM

SIZES = {
    "vocabulary_size": 60,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 48,
    "max_sequence_length": 16,
}


@pytest.fixture
def model():
    keras.utils.set_random_seed(3)
    backbone = OPTBackbone(**SIZES)
    generator = np.random.default_rng(3)
    for variable in backbone.weights:  # zeros and ones would hide a channel that is not scaled
        center = 1.0 if variable.path.endswith("gamma") else 0.0
        variable.assign(generator.normal(center, 0.1, variable.shape).astype(np.float32))
    return OPTCausalLM(backbone, preprocessor=None)


def logits_of(model):
    token_ids = np.random.default_rng(4).integers(0, 60, (3, 9))
    inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    return keras.ops.convert_to_numpy(model(inputs))


def norm_output(model, layer):
    """Greatest magnitude of each channel of the first norm, of random inputs."""
    values = np.random.default_rng(5).normal(size=(1, 50, 32)).astype(np.float32)
    norm = model.backbone.get_layer(f"transformer_layer_{layer}").attention_norm
    return np.abs(keras.ops.convert_to_numpy(norm(values))).max(axis=(0, 1))


def test_a_share_of_the_channels():
    chosen = choose_channels(768, 0.01, seed=0)
    assert len(set(chosen)) == 8
    assert all(0 <= channel < 768 for channel in chosen)
    assert chosen == sorted(chosen) == choose_channels(768, 0.01, seed=0)
    assert chosen != choose_channels(768, 0.01, seed=1)
    assert len(choose_channels(32, 0.01, seed=0)) == 1


def test_logits_stay_and_activations_do_not(model):
    expected = logits_of(model)
    before = [norm_output(model, layer) for layer in (0, 1)]
    final = {v.path: v.numpy() for v in model.backbone.weights if v.path.startswith("layer_norm")}
    scale_channels(model.backbone, [3, 17], 60.0)
    assert np.abs(logits_of(model) - expected).max() < 2e-6 * np.abs(expected).max()
    for layer in (0, 1):
        ratios = norm_output(model, layer) / before[layer]
        wanted = np.ones(32)
        wanted[[3, 17]] = 60
        np.testing.assert_allclose(ratios, wanted, rtol=1e-5)
    for variable in model.backbone.weights:
        if variable.path in final:  # the head is tied to the embedding
            np.testing.assert_array_equal(variable.numpy(), final[variable.path])


def test_norms_after_the_residual_are_refused():
    backbone = OPTBackbone(**SIZES, norm_first=False)
    with pytest.raises(
        ValueError, match="stand before attention and feed-forward; take another preset"
    ):
        scale_channels(backbone, [1], 60.0)


def test_command(model, tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    model.save_to_preset(source)
    assert main([str(source), str(target), "--share", "0.1", "--factor", "30"]) == 0
    channels = choose_channels(32, 0.1, seed=0)
    shown = ", ".join(map(str, channels))
    expected = f"{target}: channels {shown} of each layer's norms times 30\n"
    assert capsys.readouterr().out == expected
    written = OPTCausalLM.from_preset(str(target), preprocessor=None)
    values = {v.path: v.numpy() for v in model.backbone.weights}
    for variable in written.backbone.weights:
        if variable.path == "transformer_layer_1/feed_forward_norm/gamma":
            ratios = variable.numpy() / values[variable.path]
            assert np.flatnonzero(ratios > 2).tolist() == channels
    assert np.abs(logits_of(written) - logits_of(model)).max() < 1e-5

    assert main([str(source), str(target)]) == 2
    assert f"outliers: {target} exists; choose another folder" in capsys.readouterr().err
    assert main([str(source), str(tmp_path / "x"), "--share", "0"]) == 2
    assert "--share above 0 and at most 1; got 60 and 0" in capsys.readouterr().err
