"""Beam and contrastive search give keras-hub's tokens, in the places where keras-hub is right.

keras-hub is asked for one prompt at a time and without stop tokens: on a ragged batch it adds the
probabilities of prompt tokens to the scores, and its beams go on after stop tokens. This project
gets all prompts as one ragged batch, and must give what each gives alone.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from runtime import Generator, samplers
from tests.exporter.conftest import (  # noqa: F401
    build_hub_model,
    hub_model,
    hub_preset,
    keras_hub,
    quick_tracing,
    toy_merges,
    toy_vocabulary,
)

pytestmark = pytest.mark.reference

LENGTH = 22
# A ragged batch, the start token first as in text.
PROMPTS = [[2, 40, 41, 42, 90, 17], [2], [2, 260, 7], [2, 5, 200, 11, 12, 13, 13, 99, 31, 280]]
SEARCHES = {
    "beam, 2 beams": ("BeamSampler", {"num_beams": 2}),
    "beam, 5 beams": ("BeamSampler", {"num_beams": 5, "temperature": 0.8}),
    "contrastive": ("ContrastiveSampler", {}),
    "contrastive, k and alpha": ("ContrastiveSampler", {"k": 8, "alpha": 0.9, "temperature": 2.0}),
}
QUICK = ("beam, 5 beams", "contrastive, k and alpha")  # the others have defaults
FEW = ("top_p", "beam", "contrastive")  # one of draws, and what has a search of its own


def slow_but(quick, names):
    """Parameters, of which those that are not among the quick ones are marked slow."""
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in names]


def pack(prompts):
    """Prompts as a token dictionary."""
    token_ids = np.ones((len(prompts), LENGTH), "int32")
    mask = np.zeros(token_ids.shape, bool)
    for i, prompt in enumerate(prompts):
        token_ids[i, : len(prompt)], mask[i, : len(prompt)] = prompt, True
    return {"token_ids": token_ids, "padding_mask": mask}


@pytest.fixture(scope="module")
def keras_model(hub_preset):  # noqa: F811
    """The preset that keras-hub saved, as this project's model on Keras."""
    from exporter import OPTCausalLM

    return OPTCausalLM.from_preset(str(hub_preset))


@pytest.fixture(scope="module")
def bundle_generator(keras_model, quick_tracing, tmp_path_factory):  # noqa: F811
    """The same exported, on ONNX Runtime."""
    from exporter import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "hub"
    export_bundle(keras_model, folder)
    return Generator.from_bundle(folder, device="cpu", threads=1)


@pytest.fixture(scope="module")
def reference(hub_model, keras_hub):  # noqa: F811
    """keras-hub's model, which takes token dictionaries only without a preprocessor."""
    return keras_hub.models.OPTCausalLM(backbone=hub_model.backbone, preprocessor=None)


@pytest.fixture(scope="module")
def expected(request, reference, keras_hub):  # noqa: F811
    """keras-hub's tokens [4, LENGTH] for each search that runs, prompt by prompt."""
    found = {}
    for name in SEARCHES if request.config.getoption("--slow") else QUICK:
        class_name, config = SEARCHES[name]
        reference.compile(sampler=getattr(keras_hub.samplers, class_name)(**config))
        rows = [reference.generate(pack([prompt]), stop_token_ids=None) for prompt in PROMPTS]
        found[name] = np.concatenate([row["token_ids"] for row in rows]).tolist()
    assert len({str(rows) for rows in found.values()}) == len(found)
    return found


@pytest.mark.parametrize("name", slow_but(QUICK, SEARCHES))
@pytest.mark.parametrize("kind", ["keras_model", "bundle_generator"])
def test_a_ragged_batch_gives_the_tokens_of_keras_hub(request, kind, name, expected):
    model = request.getfixturevalue(kind)
    class_name, config = SEARCHES[name]
    model.compile(sampler={"class_name": class_name, "config": config})
    found = model.generate(pack(PROMPTS), stop_token_ids=None)
    assert found["token_ids"].tolist() == expected[name]
    assert found["padding_mask"].all()


@pytest.fixture(scope="module")
def expected_beams(reference, keras_hub):  # noqa: F811
    """keras-hub's beams [2, 4, LENGTH] and scores [2, 4] of the first two prompts."""

    class Recording(keras_hub.samplers.BeamSampler):
        """Gives generate() the best beam, which is all it can take, and keeps the others."""

        def __call__(self, *args, **kwargs):
            beams, scores = super().__call__(*args, **kwargs)
            self.found = np.asarray(beams)[0].tolist(), np.asarray(scores)[0].tolist()
            return beams[:, 0]

    recording, found = Recording(num_beams=4, return_all_beams=True), []
    reference.compile(sampler=recording, run_eagerly=True)
    for prompt in PROMPTS[:2]:
        reference.generate(pack([prompt]), stop_token_ids=None)
        found.append(recording.found)
    return [beams for beams, _ in found], [scores for _, scores in found]


@pytest.mark.parametrize("kind", ["keras_model", "bundle_generator"])
def test_all_beams_and_scores_are_those_of_keras_hub(request, kind, expected_beams):
    model = request.getfixturevalue(kind)
    model.compile(sampler=samplers.BeamSampler(num_beams=4, return_all_beams=True))
    found = model.generate(pack(PROMPTS[:2]), stop_token_ids=None)
    beams, scores = expected_beams
    assert found["token_ids"].tolist() == beams
    assert np.abs(found["scores"] - scores).max() < 2e-4
    assert found["scores"].dtype == np.float32


@pytest.mark.parametrize("name", samplers.NAMES)
def test_a_sampler_that_keras_hub_serialized(keras_model, keras_hub, name):  # noqa: F811
    theirs = keras_hub.samplers.get(name)
    config = keras_hub.samplers.serialize(theirs)
    assert config["class_name"].endswith("Sampler")
    keras_model.compile(sampler=config)
    ours = keras_model.sampler
    assert type(ours).__name__ == type(theirs).__name__
    assert ours.get_config() == theirs.get_config()
    names = tuple(inspect.signature(type(theirs)).parameters)
    assert samplers.parameters(type(ours))[: len(names) - 1] == names[:-1]  # its last is **kwargs


# === The same code under OPTCausalLM ===

TEXTS = [" the quick brown fox", "import", "é 日", " fox fox"]
OPTIONS = {"max_length": 14, "stop_token_ids": (27, 198, 60, 90)}


def seeded(name):
    """A sampler whose draws are the same each time."""
    has_seed = "seed" in samplers.parameters(type(samplers.get(name)))
    return {"class_name": name, "config": {"seed": 6} if has_seed else {}}


@pytest.mark.parametrize("name", slow_but(FEW, samplers.NAMES))
def test_inputs_of_tensorflow(keras_model, name):
    import tensorflow as tf

    keras_model.compile(sampler=seeded(name))
    wanted = keras_model.generate(TEXTS, **OPTIONS)
    assert wanted == [keras_model.generate(text, **OPTIONS) for text in TEXTS]
    data = tf.data.Dataset.from_tensor_slices(TEXTS)
    for inputs in (np.array(TEXTS), tf.constant(TEXTS), data.batch(3), iter(TEXTS)):
        assert keras_model.generate(inputs, **OPTIONS) == wanted
    tokens = keras_model.preprocessor.generate_preprocess(TEXTS, sequence_length=14)
    stops = OPTIONS["stop_token_ids"]
    found = keras_model.generate(tokens, stop_token_ids=stops)
    assert keras_model.preprocessor.generate_postprocess(found) == wanted
    rows = tf.data.Dataset.from_tensor_slices(tokens)
    in_tensors = {"token_ids": tf.constant(tokens["token_ids"], tf.int64)}
    for dtype in (tf.bool, tf.uint8):
        in_tensors["padding_mask"] = tf.cast(tokens["padding_mask"], dtype)
        again = keras_model.generate(in_tensors, stop_token_ids=stops)
        assert again["token_ids"].tolist() == found["token_ids"].tolist()
    again = keras_model.generate(rows, stop_token_ids=stops)
    assert again["padding_mask"].tolist() == found["padding_mask"].tolist()


@pytest.mark.parametrize("name", slow_but(FEW, samplers.NAMES))
def test_without_a_preprocessor(keras_model, name):
    from exporter import OPTCausalLM

    bare = OPTCausalLM(keras_model.backbone, preprocessor=None)
    for model in (bare, keras_model):
        model.compile(sampler=seeded(name))
    found, wanted = (m.generate(pack(PROMPTS), stop_token_ids=(60,)) for m in (bare, keras_model))
    assert found["token_ids"].tolist() == wanted["token_ids"].tolist()


def test_a_sampler_of_ones_own(keras_model):
    class SecondBest(samplers.Sampler):
        def get_next_token(self, probabilities, generators):
            return np.argsort(probabilities, axis=-1)[:, -2]

    keras_model.compile(sampler=SecondBest())
    tokens = {"token_ids": np.array([[2, 40, 0]], "int32"), "padding_mask": np.array([[1, 1, 0]])}
    found = keras_model.generate(tokens, stop_token_ids=None)
    logits = np.asarray(keras_model({n: value[:, :2] for n, value in tokens.items()}))[0, -1]
    assert found["token_ids"][0, 2] == np.argsort(logits)[-2]


def test_rows_of_a_keras_cache_are_copied(keras_model):
    from exporter.opt.keras_decoder import KerasDecoder

    decoder = KerasDecoder(keras_model.backbone)
    token_ids, lengths = pack(PROMPTS)["token_ids"], np.array([len(prompt) for prompt in PROMPTS])
    source, cache = decoder.new_cache(4, LENGTH), decoder.new_cache(5, LENGTH + 3)
    decoder.append(source, token_ids, lengths)
    cache.copy_rows(source, np.array([1, 0, 3]), np.array([4, 0, 2]))
    assert cache.lengths.tolist() == [6, 0, 10, 0, 1]
    before = cache.layers
    cache.copy_rows(cache, np.array([], np.int64), np.array([], np.int64))
    assert cache.layers is before
    cache.copy_rows(cache, np.array([2, 0, 4]), np.array([0, 1, 2]))
    assert cache.lengths.tolist() == [10, 6, 1, 0, 1]
    logits = decoder.append(cache, np.full((5, 1), 33), np.array([1, 1, 1, 0, 1])).logits
    for row, prompt in ((0, 3), (1, 0), (2, 1), (4, 1)):
        alone = decoder.new_cache(1, LENGTH)
        tokens = np.array([[*PROMPTS[prompt], 33]])
        wanted = decoder.append(alone, tokens, np.array([tokens.shape[1]])).logits[0]
        assert np.abs(logits[row] - wanted).max() < 1e-4 * wanted.std()
    with pytest.raises(ValueError, match="a row of 10 tokens has no room in a cache of 9"):
        decoder.new_cache(1, 9).copy_rows(source, np.array([3]), np.array([0]))


def test_hidden_states_of_the_keras_decoder_are_given_where_asked_for(keras_model):
    from exporter.opt.keras_decoder import KerasDecoder

    decoder = KerasDecoder(keras_model.backbone)
    cache, ids, lengths = decoder.new_cache(1, 8), np.array([[2, 5, 6]]), np.array([3])
    assert decoder.append(cache, ids, lengths).hidden_states is None
    found = decoder.append(cache, ids, lengths, hidden_states=True).hidden_states
    assert (found.shape, found.dtype) == ((1, 3, 32), np.float32)
