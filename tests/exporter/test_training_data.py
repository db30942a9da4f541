"""Every form of training data, what sample weights do, and which loss is computed."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from exporter import OPTCausalLM

TEXTS = ["import the quick brown fox", " the fox is quick", "import fox", " quick quick quick the"]
OTHERS = [" brown brown", " the quick fox is brown"]
IGNORED = np.arange(4)  # labels: with a preprocessor they come from the text
WEIGHTS = np.array([1.0, 0.5, 0.0, 2.0], "float32")


class Batches(keras.utils.PyDataset):
    """Two batches of two examples."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = parts

    def __len__(self):
        return 2

    def __getitem__(self, index):
        cut = [part[2 * index : 2 * index + 2] for part in self.parts]
        return tuple(cut) if len(cut) > 1 else cut[0]


def generate(*parts):
    source = Batches(*parts)
    while True:
        yield from (source[i] for i in range(2))


def slices(*parts):
    parts = parts if len(parts) > 1 else parts[0]
    return tf.data.Dataset.from_tensor_slices(parts).batch(2)


@pytest.fixture(scope="module")
def model(build_model):
    """A model whose weights stay as they are: a learning rate of zero."""
    model = build_model(seed=30)
    model.compile(
        optimizer=keras.optimizers.SGD(0.0),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
        run_eagerly=True,
    )
    return model


@pytest.fixture(scope="module")
def bare(model):
    """The same model without a preprocessor."""
    bare = OPTCausalLM(model.backbone)
    bare.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    return bare


@pytest.fixture(scope="module")
def token_losses(model):
    """The loss of every token of some texts and their mask, float64 [texts, sequence]."""

    def compute(texts):
        x, y, mask = model.preprocessor(texts)
        logits = np.asarray(model(x), "float64")
        top = logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, np.asarray(y)[..., None], axis=-1)
        losses = np.log(np.exp(logits - top).sum(axis=-1)) + (top - chosen)[..., 0]
        return losses, np.asarray(mask, "float64")

    return compute


def expected(token_losses, texts, weights=None):
    losses, mask = token_losses(texts)
    weights = mask if weights is None else mask * np.asarray(weights)[:, None]
    return float((losses * weights).sum() / losses.size)


# === Forms ===


FORMS = {
    "list": lambda: ({"x": TEXTS}, None),
    "array": lambda: ({"x": np.array(TEXTS)}, None),
    "tensor": lambda: ({"x": tf.constant(TEXTS)}, None),
    "pair": lambda: ({"x": TEXTS, "y": IGNORED}, None),
    "weighted": lambda: ({"x": TEXTS, "sample_weight": WEIGHTS}, WEIGHTS),
    "weighted list": lambda: ({"x": TEXTS, "y": IGNORED, "sample_weight": WEIGHTS.tolist()}, WEIGHTS),
    "dataset": lambda: ({"x": slices(TEXTS)}, None),
    "dataset of pairs": lambda: ({"x": slices(TEXTS, IGNORED)}, None),
    "dataset of triples": lambda: ({"x": slices(TEXTS, IGNORED, WEIGHTS)}, WEIGHTS),
    "py dataset": lambda: ({"x": Batches(TEXTS)}, None),
    "py dataset of triples": lambda: ({"x": Batches(TEXTS, IGNORED, WEIGHTS)}, WEIGHTS),
}


@pytest.mark.parametrize("form", FORMS)
def test_strings(model, token_losses, form):
    arguments, weights = FORMS[form]()
    wanted = expected(token_losses, TEXTS, weights)
    size = {} if isinstance(arguments["x"], (tf.data.Dataset, Batches)) else {"batch_size": 2}
    assert model.evaluate(**arguments, **size, verbose=0)[0] == pytest.approx(wanted, abs=1e-5)
    history = model.fit(**arguments, **size, verbose=0).history
    assert history["loss"][0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("parts", [(TEXTS,), (TEXTS, IGNORED), (TEXTS, IGNORED, WEIGHTS)])
def test_generators_of_strings(model, token_losses, parts):
    weights = parts[2] if len(parts) == 3 else None
    wanted = expected(token_losses, TEXTS, weights)
    history = model.fit(generate(*parts), steps_per_epoch=2, epochs=2, verbose=0).history
    assert history["loss"] == pytest.approx([wanted, wanted], abs=1e-5)
    assert model.evaluate(generate(*parts), steps=2, verbose=0)[0] == pytest.approx(wanted, abs=1e-5)


def iter_batches(*parts):
    for rows in (slice(0, 2), slice(2, 4)):
        yield keras.tree.map_structure(lambda a, rows=rows: a[rows], parts)


TOKEN_FORMS = {
    "arrays": lambda x, y, w: {"x": x, "y": y, "sample_weight": w, "batch_size": 2},
    "lists": lambda x, y, w: {
        "x": {name: value.tolist() for name, value in x.items()},
        "y": y.tolist(),
        "sample_weight": w.tolist(),
        "batch_size": 2,
    },
    "dataset": lambda x, y, w: {"x": slices(x, y, w)},
    "generator": lambda x, y, w: {"x": iter_batches(x, y, w)},
}


@pytest.mark.parametrize("form", TOKEN_FORMS)
def test_tokens_without_a_preprocessor(model, bare, token_losses, form):
    x, y, mask = model.preprocessor(TEXTS)
    weights = mask * WEIGHTS[:, None]
    history = bare.fit(**TOKEN_FORMS[form](x, y, weights), verbose=0).history
    assert history["loss"][0] == pytest.approx(expected(token_losses, TEXTS, WEIGHTS), abs=1e-5)


def test_a_preprocessor_can_be_any_callable(bare, model, token_losses):
    """As in Keras: it is given `x`, and labels and weights go past it."""
    x, y, mask = model.preprocessor(TEXTS)
    bare.preprocessor = lambda ids: {"token_ids": ids, "padding_mask": tf.ones_like(ids)}
    try:
        found = bare.evaluate(x["token_ids"], y, sample_weight=mask, batch_size=4, verbose=0)[0]
    finally:
        bare.preprocessor = None
    assert found == pytest.approx(expected(token_losses, TEXTS), abs=1e-5)


@pytest.mark.parametrize("form", ["list", "pair", "triple", "dataset", "generator", "py dataset"])
def test_validation_data(model, token_losses, form):
    weights = np.array([2.0, 0.5], "float32")
    labels = np.zeros(2)
    data = {
        "list": OTHERS,
        "pair": (OTHERS, labels),
        "triple": (OTHERS, labels, weights),
        "dataset": slices(OTHERS, labels, weights),
        "generator": (batch for batch in [(OTHERS, labels, weights)]),
        "py dataset": Batches([*TEXTS[:2], *OTHERS]),
    }[form]
    history = model.fit(TEXTS, batch_size=4, validation_data=data, verbose=0).history
    if form == "py dataset":
        wanted = expected(token_losses, [*TEXTS[:2], *OTHERS])
    else:
        wanted = expected(token_losses, OTHERS, None if form in ("list", "pair") else weights)
    assert history["val_loss"][0] == pytest.approx(wanted, abs=1e-5)


def test_validation_batches_and_data_before_a_split(model, token_losses, monkeypatch):
    sizes = []
    step = model.test_step
    monkeypatch.setattr(model, "test_step", lambda data: (sizes.append(len(data[1])), step(data))[1])
    monkeypatch.setattr(model, "test_function", None)
    history = model.fit(
        TEXTS,
        batch_size=4,
        validation_data=OTHERS,
        validation_split=0.5,
        validation_batch_size=1,
        verbose=0,
    ).history
    assert sizes == [1, 1]
    assert history["val_loss"][0] == pytest.approx(expected(token_losses, OTHERS), abs=1e-5)


def test_steps_per_epoch_go_on_where_the_last_epoch_ended(model, token_losses):
    data = slices(TEXTS).repeat()
    history = model.fit(data, steps_per_epoch=1, epochs=3, verbose=0).history
    halves = [expected(token_losses, TEXTS[:2]), expected(token_losses, TEXTS[2:])]
    assert history["loss"] == pytest.approx([halves[0], halves[1], halves[0]], abs=1e-5)


def test_fit_takes_what_keras_s_takes():
    ours, keras_s = (inspect.signature(cls.fit).parameters for cls in (OPTCausalLM, keras.Model))
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in keras_s.values()
    ]


# === The loss ===


def test_padding_is_no_part_of_the_loss(model, bare, token_losses):
    """Keras's default divides the text's losses by all places; the mean over the text is an option."""
    losses, mask = token_losses(TEXTS)
    assert 0 < mask.mean() < 0.5
    x, y, weights = model.preprocessor(TEXTS)
    y = np.where(weights, y, 7)  # what stands at padding is nobody's business
    found = bare.evaluate(x, y, sample_weight=weights, batch_size=4, verbose=0)[0]
    assert found == pytest.approx((losses * mask).sum() / mask.size, abs=1e-6)

    mean = OPTCausalLM(model.backbone, preprocessor=model.preprocessor)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    mean.compile(loss=loss, run_eagerly=True)
    found = mean.evaluate(TEXTS, batch_size=4, verbose=0)[0]
    assert found == pytest.approx((losses * mask).sum() / mask.sum(), abs=1e-6)


def test_weights_of_labels(model, token_losses):
    losses, mask = token_losses(TEXTS)
    weights = np.random.default_rng(0).random(mask.shape).astype("float32")
    found = model.evaluate(TEXTS, sample_weight=weights, batch_size=4, verbose=0)[0]
    assert found == pytest.approx((losses * mask * weights).sum() / mask.size, abs=1e-5)
    on_batch = model.test_on_batch(TEXTS, sample_weight=weights)[0]
    assert on_batch == pytest.approx(found, abs=1e-5)
    assert model.train_on_batch(TEXTS, IGNORED, WEIGHTS)[0] == pytest.approx(
        expected(token_losses, TEXTS, WEIGHTS), abs=1e-5
    )


# === What is refused ===


def test_sample_weights_of_other_shapes(model):
    with pytest.raises(ValueError, match=r"shape \[batch\] or \[batch, sequence\], got rank 3"):
        model.fit(TEXTS, sample_weight=np.ones((4, 32, 1)), verbose=0)


def test_tokens_and_a_preprocessor(model):
    x, y, _ = model.preprocessor(TEXTS)
    for call in (lambda: model.fit(x, y, verbose=0), lambda: model.predict_on_batch(x)):
        with pytest.raises(ValueError, match=r"set `model\.preprocessor = None` to train on tokens"):
            call()


def test_weights_of_no_labels(bare, model):
    x, _, mask = model.preprocessor(TEXTS)
    with pytest.raises(ValueError, match="sample_weight weighs labels, and there are none; give y"):
        bare.fit(x, sample_weight=mask, verbose=0)


def test_strings_and_no_preprocessor(bare):
    for call in (
        lambda: bare.fit(TEXTS, verbose=0),
        lambda: bare.evaluate(slices(TEXTS), verbose=0),
        lambda: bare.train_on_batch(TEXTS),
    ):
        with pytest.raises(ValueError, match="strings need a preprocessor and this model has none"):
            call()


def test_single_examples(model):
    with pytest.raises(ValueError, match=r"yields single examples; call its \.batch\(size\) first"):
        model.fit(tf.data.Dataset.from_tensor_slices(TEXTS), verbose=0)


@pytest.mark.parametrize("form", ["generator", "keras.utils.PyDataset"])
def test_batches_have_their_own_labels(model, form):
    data = Batches(TEXTS) if form.startswith("keras") else generate(TEXTS)
    with pytest.raises(ValueError, match=f"a {form} yields its own labels, weights and batches"):
        model.fit(data, batch_size=2, verbose=0)


def test_data_of_another_kind(model):
    with pytest.raises(ValueError, match=r"PyDataset or a generator, got set"):
        model.fit(set(TEXTS), verbose=0)
