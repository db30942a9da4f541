"""The examples of keras-hub's documentation run here, with the import line and the preset name changed.

Some of its blocks contradict the documentation itself; `docs/keras_hub_cases.md` lists them. Those run
with the contradiction corrected, and the block as it stands is shown to raise.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("keras")
import keras

from exporter import OPTBackbone, OPTCausalLM, OPTCausalLMPreprocessor
from runtime import samplers
from tests.conformance.keras_examples import correct, example, examples, run_example

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

BACKBONE = ("models/opt/opt_backbone.py", "OPTBackbone")
TOKENIZER = ("models/opt/opt_tokenizer.py", "OPTTokenizer")
PREPROCESSOR = ("models/opt/opt_causal_lm_preprocessor.py", "OPTCausalLMPreprocessor")
CAUSAL_LM = ("models/opt/opt_causal_lm.py", "OPTCausalLM")
VOCABULARY_SIZE = 50_272
SEQUENCE_LENGTH = 64


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A random preset with as many tokens as OPT has, under the tokenizer that ships here."""
    keras.utils.set_random_seed(1)
    preprocessor = OPTCausalLMPreprocessor.from_preset("opt_tiny_en", sequence_length=SEQUENCE_LENGTH)
    backbone = OPTBackbone(
        vocabulary_size=VOCABULARY_SIZE,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=128,
    )
    # The tokenizer has no text for the ids beyond its own, so these are made improbable.
    table = np.random.default_rng(1).normal(0, 5, (VOCABULARY_SIZE, 8))
    table[preprocessor.tokenizer.vocabulary_size() :] = 0
    backbone.token_embedding.embeddings.assign(table)
    folder = tmp_path_factory.mktemp("preset")
    OPTCausalLM(backbone, preprocessor).save_to_preset(folder)
    return folder


def test_every_example_is_run():
    """A new version of keras-hub with other examples has to be looked at."""
    counts = [len(examples(*where)) for where in (BACKBONE, TOKENIZER, PREPROCESSOR, CAUSAL_LM)]
    assert counts == [1, 1, 1, 6]


# === The classes of the family ===


def test_the_backbone(preset):
    found = run_example(example(*BACKBONE), preset)
    assert [value.shape for value in found.values] == [(1, 12, 8), (1, 12, 256)]


def test_the_tokenizer(preset):
    ids, batch, text, custom = run_example(example(*TOKENIZER), preset).values
    assert text == "The quick brown fox jumped."
    assert ids.tolist() == batch[0]
    assert len(batch) == 2
    assert custom.tolist() == [4, 5]


def test_the_preprocessor(preset):
    found = run_example(example(*PREPROCESSOR), preset)
    for (one, other), shape in zip(
        (found.values[:2], found.values[2:]), [(SEQUENCE_LENGTH,), (2, SEQUENCE_LENGTH)], strict=True
    ):
        assert one[0]["token_ids"].shape == shape
        keras.tree.map_structure(np.testing.assert_array_equal, one, other)
    avatar = next(iter(found.ds))
    keras.tree.map_structure(
        np.testing.assert_array_equal, avatar, found.preprocessor("Avatar 2 is amazing!")
    )


def test_generate_on_strings(preset):
    text, texts = run_example(example(*CAUSAL_LM, 0), preset).values
    assert text.startswith("I want to say")
    assert len(text) > len("I want to say")
    assert len(texts) == 2
    assert texts[0].startswith("This is a")
    assert texts[1].startswith("Where are you")


def test_compile_with_a_sampler(preset):
    found = run_example(example(*CAUSAL_LM, 1), preset)
    _, greedy, _, beam = found.values
    assert greedy.startswith("I want to say")
    assert beam.startswith("I want to say")
    assert found.opt_lm.sampler.get_config() == samplers.BeamSampler(num_beams=2).get_config()


def test_generate_without_preprocessing(preset):
    code = example(*CAUSAL_LM, 2)
    with pytest.raises(ValueError, match="stop_token_ids"):
        run_example(code, preset)
    corrected = correct(code, {"generate(prompt)": "generate(prompt, stop_token_ids=None)"})
    (found,) = run_example(corrected, preset).values
    assert found["token_ids"].shape == (2, 5)
    assert found["token_ids"][:, :2].tolist() == [[5338, 318]] * 2
    assert found["padding_mask"].all()


def test_fit_on_strings(preset):
    found = run_example(example(*CAUSAL_LM, 3), preset)
    assert np.isfinite(found.values[0].history["loss"]).all()
    assert found.opt_lm.optimizer.iterations == 1


@pytest.mark.slow
def test_fit_without_preprocessing(preset):
    found = run_example(example(*CAUSAL_LM, 4), preset)
    assert np.isfinite(found.values[0].history["loss"]).all()
    assert found.opt_lm.optimizer.iterations == 1


VOCABULARY = {'"<|endoftext|>": 0': '"<pad>": 1, "</s>": 2'}
BACKBONE_NAME = {"model = keras_hub": "backbone = keras_hub"}


@pytest.mark.slow
def test_a_custom_backbone_and_vocabulary(preset):
    code = correct(example(*CAUSAL_LM, 5), VOCABULARY | BACKBONE_NAME)
    found = run_example(code, preset)
    assert found.preprocessor.tokenizer("a quick fox.").tolist() == [4, 5, 6]
    assert found.opt_lm.optimizer.iterations == 1
    assert np.isfinite(found.values[0].history["loss"]).all()


def test_the_custom_vocabulary_as_it_stands_is_refused_here_and_there(preset):
    code = example(*CAUSAL_LM, 5)
    with pytest.raises(ValueError, match=r"Cannot find special token '</s>' in the vocabulary of 4"):
        run_example(code, preset)

    import keras_hub

    # keras-hub names either of the two that are missing: it looks them up in the order of a set.
    with pytest.raises(ValueError, match=r"special token `'(</s>|<pad>)'`"):
        keras_hub.models.OPTTokenizer(vocabulary={"a": 0, "b": 1, "ab": 2}, merges=["a b"])


@pytest.mark.parametrize("vocabulary", [{"Ġquick": 4, "Ġfox": 5}, {"a": 4, "Ġquick": 5, "Ġfox": 6}])
def test_keras_hub_refuses_its_own_custom_vocabularies(vocabulary):
    """It asks for every part of the merges; here those that are missing give no token."""
    import keras_hub

    vocabulary = {"<pad>": 1, "</s>": 2, **vocabulary}
    merges = ["Ġ q", "u i", "c k", "ui ck", "Ġq uick", "Ġ f", "o x", "Ġf ox"]
    with pytest.raises(ValueError, match="Merge rule 'Ġ q' contains token 'Ġ' or 'q' that is not in"):
        keras_hub.models.OPTTokenizer(vocabulary=vocabulary, merges=merges)


def test_the_custom_backbone_s_name_as_it_stands_is_unknown(preset):
    with pytest.raises(NameError, match="'backbone' is not defined"):
        run_example(correct(example(*CAUSAL_LM, 5), VOCABULARY), preset)


def test_the_base_class(preset):
    found = run_example(example("models/causal_lm.py", "CausalLM"), preset)
    texts = [value for value in found.values if value is not None]
    assert [text[:10] for text in texts] == ["Keras is a"] * 2
    assert type(found.causal_lm) is OPTCausalLM
    assert found.causal_lm.backbone.dtype_policy.name == "bfloat16"


# === Samplers: their documentation shows GPT-2 ===

FAMILY = {"GPT2CausalLM": "OPTCausalLM"}
SAMPLERS = {
    "greedy": samplers.GreedySampler(),
    "random": samplers.RandomSampler(temperature=0.7),
    "top_k": samplers.TopKSampler(k=5, temperature=0.7),
    "top_p": samplers.TopPSampler(p=0.1, k=1_000),
    "beam": samplers.BeamSampler(num_beams=5),
    "contrastive": samplers.ContrastiveSampler(k=5),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler(preset, name):
    expected = SAMPLERS[name]
    (code,) = examples(f"samplers/{name}_sampler.py", type(expected).__name__)
    found = run_example(correct(code, FAMILY), preset)
    texts = [value[0] for value in found.values if value is not None]
    assert [text[:10] for text in texts] == ["Keras is a"] * 2
    assert type(found.causal_lm.sampler) is type(expected)
    assert found.causal_lm.sampler.get_config() == expected.get_config()


def test_a_sampler_of_one_s_own(preset, capsys):
    """Keras hands over probabilities alone; here the rows' random generators come with them."""
    code = correct(example("samplers/sampler.py", "Sampler"), FAMILY)
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        run_example(code, preset)
    corrected = correct(code, {"(self, probs)": "(self, probs, generators)"})
    found = run_example(corrected, preset)
    assert found.values[-1][0].startswith("That's strange")
    assert 'Preprocessor: "opt_causal_lm_preprocessor"' in capsys.readouterr().out
    first = run_example(correct(corrected, {"[257, 262]": "[]"}), preset).values[-1]
    prompt = len(found.causal_lm.preprocessor.tokenizer("That's strange"))
    taken = found.causal_lm.preprocessor.tokenizer(first)[0][prompt]
    other = run_example(correct(corrected, {"[257, 262]": f"[{taken}]"}), preset).values[-1]
    assert other != first
