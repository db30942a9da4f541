"""An export of weights that are no numbers says so: of a checkpoint, and of a live model."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporter import export_bundle
from exporter.errors import CheckpointError
from exporter.model_weights import LiveWeights
from exporter.presets.folder import read_preset
from exporter.weights import CheckpointWeights

NAME = "model.decoder.layers.1.fc1.weight"


def spoil(folder, *values):
    """Puts values among those of a tensor."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[NAME].ravel()[: len(values)] = values
    save_file(tensors, str(path))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_checkpoint_with_nan_is_not_exported(quick_tracing, plain_hf_folder, tmp_path, precision):
    spoil(plain_hf_folder, np.nan, np.inf)
    with pytest.raises(CheckpointError) as raised:
        export_bundle(plain_hf_folder, tmp_path / "bundle", precision=precision)
    assert f"{NAME} of {plain_hf_folder} has 2 values that are NaN or infinite" in str(raised.value)
    assert not (tmp_path / "bundle").exists()


def test_other_tensors_are_read(plain_hf_folder):
    spoil(plain_hf_folder, np.nan)
    source = CheckpointWeights(read_preset(plain_hf_folder))
    bad = []
    for name in source.shapes:
        try:
            list(source.blocks(name))
        except CheckpointError:
            bad.append(name)
    assert bad == ["transformer_layer_1/intermediate/kernel"]


def test_a_live_model_with_infinities_is_told_by_its_weight(build_model):
    model = build_model(preprocessor=False)
    kernel = model.backbone.weights[-1]
    values = np.array(kernel.value)
    values.ravel()[0] = -np.inf
    kernel.assign(values)
    with pytest.raises(CheckpointError, match=f"{kernel.path} of the model has 1 values"):
        list(LiveWeights(model.backbone).blocks(kernel.path))
