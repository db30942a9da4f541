"""Twenty steps of Adam here and in keras-hub, from the same weights on the same batches."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.reference

PASSES, BATCHES, ROWS, LENGTH, VOCABULARY = 4, 5, 4, 16, 96
SIZES = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 32,
    "intermediate_dim": 64,
    "max_sequence_length": LENGTH,
    "dropout": 0.0,
}


def batches(padded):
    """Token dictionary, labels and weights of all batches; half of the tokens padding, or none."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, VOCABULARY, (BATCHES * ROWS, LENGTH + 1)).astype("int32")
    ids[:, 1::2] = ids[:, :1]  # something to learn
    lengths = generator.integers(1, LENGTH, (len(ids), 1)) if padded else LENGTH
    mask = np.broadcast_to(np.arange(LENGTH) < lengths, (len(ids), LENGTH)).astype("int32")
    return {"token_ids": ids[:, :-1], "padding_mask": mask}, ids[:, 1:], mask.astype("float32")


def losses(model, data):
    """The loss of each step, before its update."""
    import keras

    model.compile(optimizer=keras.optimizers.Adam(3e-3), run_eagerly=True)
    found = []
    for first in [*range(0, BATCHES * ROWS, ROWS)] * PASSES:
        x, y, weight = keras.tree.map_structure(lambda a, first=first: a[first : first + ROWS], data)
        found.append(float(model.train_on_batch(x, y, sample_weight=weight)[0]))
        model.reset_metrics()
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_losses_of_twenty_steps(padded, tmp_path):
    import keras
    import keras_hub

    from exporter import OPTCausalLM

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.OPTBackbone(**SIZES)
    theirs = keras_hub.models.OPTCausalLM(backbone, preprocessor=None)
    theirs.backbone.save_to_preset(str(tmp_path))
    ours = OPTCausalLM.from_preset(str(tmp_path), preprocessor=None)
    data = batches(padded)
    found, expected = losses(ours, data), losses(theirs, data)
    assert len(expected) == 20
    assert expected[-BATCHES:].mean() < expected[:BATCHES].mean() - 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
