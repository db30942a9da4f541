"""The Keras model's own `generate`: the runtime's loop over live weights, equal to the full pass."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tensorflow as tf

from exporter import OPTCausalLM
from exporter.opt.keras_decoder import KerasDecoder
from runtime import GenerationCancelledError, GenerationTimeoutError, samplers

PROMPTS = [" the quick brown fox", "import", "é 日", " fox fox fox fox fox fox"]
LENGTH = 24


@pytest.fixture(scope="module")
def model(build_model):
    """A model that generates greedily."""
    found = build_model(seed=20)
    found.compile(sampler="greedy")
    return found


@pytest.fixture(scope="module")
def expected(model, greedy):
    """The prompt's and the new tokens of every prompt."""
    tokenizer = model.preprocessor.tokenizer
    prompts = [[tokenizer.start_token_id, *tokenizer.encode(prompt)] for prompt in PROMPTS]
    rows = greedy(model, prompts, LENGTH)
    found = [(p, row[len(p) :]) for p, row in zip(prompts, rows, strict=True)]
    assert len({tuple(new[:4]) for _, new in found}) == len(PROMPTS)  # they differ from each other
    return found


def pack(rows, length=LENGTH):
    """A token dictionary of ragged rows."""
    token_ids = np.full((len(rows), length), 1, "int32")
    padding_mask = np.zeros((len(rows), length), "int32")
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
        padding_mask[i, : len(row)] = 1
    return {"token_ids": token_ids, "padding_mask": padding_mask}


def assert_tokens(found, expected):
    assert found["token_ids"].dtype == np.int32
    assert found["padding_mask"].dtype == bool
    assert found["token_ids"].tolist() == [[*prompt, *new] for prompt, new in expected]
    assert found["padding_mask"].all()


def test_limits_of_a_call(model):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(GenerationCancelledError):
        model.generate(PROMPTS[0], max_length=LENGTH, cancel=cancel)
    with pytest.raises(GenerationTimeoutError):
        model.generate(PROMPTS[0], max_length=LENGTH, timeout=1e-6)
    (result,) = model.generate_results([PROMPTS[0]], max_length=LENGTH, timeout=1e-6)
    assert result.finish_reason == "timeout"


# === Against the full pass ===


def test_each_prompt_alone_equals_the_full_pass(model, expected):
    for prompt, new in expected:
        found = model.generate(pack([prompt]), stop_token_ids=None)
        assert_tokens(found, [(prompt, new)])


def test_a_ragged_batch_equals_the_full_pass(model, expected):
    found = model.generate(pack([prompt for prompt, _ in expected]), stop_token_ids=None)
    assert_tokens(found, expected)


def test_strings_give_the_text_of_the_same_tokens(model, expected):
    tokenizer = model.preprocessor.tokenizer
    texts = [tokenizer.decode([*prompt, *new], skip_special_tokens=True) for prompt, new in expected]
    found = model.generate(PROMPTS, max_length=LENGTH, stop_token_ids=None)
    assert found == texts
    assert model.generate(PROMPTS[0], max_length=LENGTH, stop_token_ids=None) == texts[0]
    answers = model.generate(PROMPTS, max_length=LENGTH, stop_token_ids=None, strip_prompt=True)
    assert answers == [tokenizer.decode(new, skip_special_tokens=True) for _, new in expected]


def test_the_default_length_is_the_preprocessor_s(model, expected, greedy):
    (found,) = model._generator().generate_results([PROMPTS[1]], stop_token_ids=None)
    prompt = expected[1][0]
    assert model.preprocessor.sequence_length == 32
    assert found.prompt_token_ids == tuple(prompt)
    assert [[*found.prompt_token_ids, *found.token_ids]] == greedy(model, [prompt], 32)
    assert found.finish_reason == "length"


def test_up_to_the_last_position_of_the_model(model, greedy):
    prompt = np.random.default_rng(1).integers(0, 288, 52).tolist()
    found = model.generate(pack([prompt], 64), stop_token_ids=None)
    assert found["token_ids"].tolist() == greedy(model, [prompt], 64)


def test_an_empty_prompt_begins_at_the_start_token(model, greedy):
    (found,) = model._generator().generate_results([""], max_length=10, stop_token_ids=None)
    assert found.prompt_token_ids == (2,)
    assert [[2, *found.token_ids]] == greedy(model, [[2]], 10)


def test_a_stop_token_ends_a_row_and_no_other(model, expected):
    stop = expected[0][1][3]
    found = model.generate(pack([prompt for prompt, _ in expected]), stop_token_ids=[stop])
    for i, (prompt, new) in enumerate(expected):
        kept = new[: new.index(stop) + 1] if stop in new else new
        end = len(prompt) + len(kept)
        assert found["token_ids"][i, :end].tolist() == [*prompt, *kept]
        assert found["padding_mask"][i].tolist() == [True] * end + [False] * (LENGTH - end)
        assert (found["token_ids"][i, end:] == 1).all()  # as it was given
    assert not found["padding_mask"][0].all()


def test_streaming_gives_the_same_text_in_pieces(model):
    for prompt in PROMPTS:
        pieces = list(model.stream(prompt, max_length=LENGTH, stop_token_ids=None))
        assert len(pieces) > 1
        assert "".join(pieces) == model.generate(prompt, max_length=LENGTH, stop_token_ids=None)


def test_the_cache_gives_the_logits_of_the_full_pass(model):
    """Ragged rows, appended in pieces: prompts, several tokens after a past, single tokens."""
    decoder = KerasDecoder(model.backbone)
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 288, (3, 30))
    cache = decoder.new_cache(3, 40)
    for lengths in ([7, 1, 12], [4, 6, 2], [1, 1, 1], [1, 0, 1], [5, 9, 1]):
        lengths = np.array(lengths, np.int32)
        done = cache.lengths.copy()
        ids = np.zeros((3, lengths.max()), np.int64)
        for i, n in enumerate(lengths):
            ids[i, :n] = rows[i, done[i] : done[i] + n]
        output = decoder.append(cache, ids, lengths, hidden_states=True)
        np.testing.assert_array_equal(cache.lengths, done + lengths)
        assert output.logits.shape == (3, 288)
        assert output.hidden_states.shape == (3, lengths.max(), 32)
        for i in np.flatnonzero(lengths):
            ids = rows[i : i + 1, : cache.lengths[i]].astype("int32")
            expected = np.asarray(model({"token_ids": ids, "padding_mask": np.ones_like(ids)}))
            assert np.abs(output.logits[i] - expected[0, -1]).max() < 1e-4 * expected.std()


def test_some_rows_of_a_cache_take_tokens(model):
    decoder = KerasDecoder(model.backbone)
    rows = np.random.default_rng(1).integers(0, 288, (4, 9))
    cache = decoder.new_cache(4, 12)
    decoder.append(cache, rows[:, :3], np.array([3, 3, 3, 3]))
    output = decoder.append(cache, rows[1:3, 3:8], np.array([5, 4]), first_row=1, hidden_states=True)
    assert cache.lengths.tolist() == [3, 8, 7, 3]
    assert output.logits.shape == (4, 288)
    assert output.hidden_states.shape == (2, 5, 32)
    found = decoder.append(cache, rows[np.arange(4), cache.lengths][:, None], np.ones(4, np.int32))
    for i in range(4):
        ids = rows[i : i + 1, : cache.lengths[i]].astype("int32")
        expected = np.asarray(model({"token_ids": ids, "padding_mask": np.ones_like(ids)}))[0]
        assert np.abs(found.logits[i] - expected[-1]).max() < 1e-4 * expected.std()
        if i in (1, 2):
            assert np.abs(output.logits[i] - expected[-2]).max() < 1e-4 * expected.std()


def test_a_row_that_was_released_has_nothing(model):
    decoder = KerasDecoder(model.backbone)
    cache = decoder.new_cache(3, 8)
    rows = np.random.default_rng(2).integers(0, 288, (3, 4))
    decoder.append(cache, rows, np.array([4, 4, 4]))
    before = [[tensor.numpy() for tensor in pair] for pair in cache.layers]
    cache.release(0)
    cache.release(1, clean=True)
    assert cache.lengths.tolist() == [0, 0, 4]
    for pair, olds in zip(cache.layers, before, strict=True):
        for tensor, old in zip(pair, olds, strict=True):
            assert old[1].any()
            assert not tensor.numpy()[1].any()
            assert np.array_equal(tensor.numpy()[[0, 2]], old[[0, 2]])


@pytest.mark.parametrize("first_row", [0, 1])
def test_named_logits_are_those_of_the_full_pass(model, first_row):
    """Of every position, padding's left out, in any order; beside an idle row, and without one."""
    decoder = KerasDecoder(model.backbone)
    generator = np.random.default_rng(1)
    rows = generator.integers(0, 288, (2, 20)).astype("int32")
    cache = decoder.new_cache(2 + first_row, 24)
    past, new = np.array([6, 0], np.int32), np.array([9, 12], np.int32)
    decoder.append(cache, rows[:, :6], past, first_row=first_row)
    ids = np.zeros((2, 12), np.int64)
    for i, n in enumerate(new):
        ids[i, :n] = rows[i, past[i] : past[i] + n]
    outputs = generator.permutation([i * 12 + j for i, n in enumerate(new) for j in range(n)])
    output = decoder.append(cache, ids, new, first_row=first_row, outputs=outputs, hidden_states=True)
    np.testing.assert_array_equal(cache.lengths[first_row:], past + new)
    assert output.logits.shape == (21, 288)
    assert output.hidden_states.shape == (2, 12, 32)
    full = [
        np.asarray(model({"token_ids": row[None], "padding_mask": np.ones((1, 20), "int32")}))[0]
        for row in rows
    ]
    expected = np.stack([full[i // 12][past[i // 12] + i % 12] for i in outputs])
    assert np.abs(output.logits - expected).max() < 1e-4 * expected.std()
    none = np.zeros(0, np.int64)
    output = decoder.append(cache, ids[:, :1], np.ones(2, np.int32), first_row=first_row, outputs=none)
    assert output.logits.shape == (0, 288)
    with pytest.raises(ValueError, match="outputs must be from 0 to 1"):
        decoder.append(cache, ids[:, :1], np.ones(2, np.int32), first_row=first_row, outputs=[2])


def test_sampling_follows_the_compiled_sampler(model, build_model, expected):
    sampled = build_model(seed=20)
    assert type(sampled.sampler) is samplers.TopKSampler
    sampled.compile(sampler=samplers.TopKSampler(k=1))
    found = sampled.generate(pack([prompt for prompt, _ in expected]), stop_token_ids=None)
    assert_tokens(found, expected)
    sampled.compile(sampler=samplers.TopKSampler(k=40, seed=3))
    first, again = (sampled.generate(PROMPTS, max_length=LENGTH) for _ in range(2))
    assert first == again != model.generate(PROMPTS, max_length=LENGTH)


# === New weights ===


def test_after_training_generate_sees_the_new_weights(build_model, greedy):
    import keras

    model = build_model(seed=21)
    model.compile(optimizer=keras.optimizers.Adam(0.05), sampler="greedy", run_eagerly=True)
    prompt = [2, 5, 6, 7]

    def generate():
        return model.generate(pack([prompt]), stop_token_ids=None)["token_ids"].tolist()

    before = generate()
    model.fit([" the quick brown fox"] * 2, batch_size=2, verbose=0)
    after = generate()
    assert after != before
    assert after == greedy(model, [prompt], LENGTH)
    # And weights that are assigned, without an optimizer.
    table = model.backbone.token_embedding.embeddings
    table.assign(-table.value)
    assigned = generate()
    assert assigned != after
    assert assigned == greedy(model, [prompt], LENGTH)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_narrow_dtypes_generate(build_model, dtype):
    model = build_model(seed=20, dtype=dtype)
    model.compile(sampler="greedy")
    found = model.generate(pack([[2, 5, 6, 7], [2, 9]]), stop_token_ids=None)
    assert found["padding_mask"].all()
    assert found["token_ids"].max() < 288


# === Kinds of input ===


def test_tokens_as_tensors(model, expected):
    tokens = pack([prompt for prompt, _ in expected])
    as_tensors = {name: tf.constant(value) for name, value in tokens.items()}
    assert_tokens(model.generate(as_tensors, stop_token_ids=None), expected)
    as_flags = {**as_tensors, "padding_mask": tf.cast(as_tensors["padding_mask"], tf.bool)}
    assert_tokens(model.generate(as_flags, stop_token_ids=None), expected)


def test_one_row_of_tokens_has_no_batch_axis(model, expected):
    prompt, new = expected[0]
    row = {name: value[0] for name, value in pack([prompt]).items()}
    found = model.generate(row, stop_token_ids=None)
    assert found["token_ids"].tolist() == [*prompt, *new]
    assert found["padding_mask"].shape == (LENGTH,)


def test_what_the_preprocessor_makes_of_prompts(model, expected):
    tokens = model.preprocessor.generate_preprocess(PROMPTS, sequence_length=LENGTH)
    assert_tokens(model.generate(tokens, stop_token_ids=None), expected)
    texts = model.preprocessor.generate_postprocess(model.generate(tokens, stop_token_ids=None))
    assert texts == model.generate(PROMPTS, max_length=LENGTH, stop_token_ids=None)


def test_strings_as_arrays_tensors_and_datasets(model):
    options = {"max_length": LENGTH, "stop_token_ids": None}
    expected = model.generate(PROMPTS, **options)
    assert model.generate(np.array(PROMPTS), **options) == expected
    assert model.generate(tf.constant(PROMPTS), **options) == expected
    assert model.generate(tf.constant(PROMPTS[0]), **options) == expected[0]
    data = tf.data.Dataset.from_tensor_slices(PROMPTS)
    assert model.generate(data.batch(3), **options) == expected
    assert model.generate(data, **options) == expected
    assert model.generate(iter([PROMPTS[:1], PROMPTS[1:]]), **options) == expected


def test_datasets_of_tokens(model, expected):
    data = tf.data.Dataset.from_tensor_slices(pack([prompt for prompt, _ in expected])).batch(3)
    assert_tokens(model.generate(data, stop_token_ids=None), expected)


# === Without a preprocessor ===


def test_without_a_preprocessor_tokens_work(model, expected):
    bare = OPTCausalLM(model.backbone, preprocessor=None)
    bare.compile(sampler="greedy")
    tokens = pack([prompt for prompt, _ in expected])
    assert_tokens(bare.generate(tokens, stop_token_ids=None), expected)
    stop = expected[0][1][3]
    found = bare.generate(tokens, stop_token_ids=(stop,))
    assert found["padding_mask"][0].sum() == len(expected[0][0]) + expected[0][1].index(stop) + 1


def test_without_a_preprocessor_text_is_an_error(model):
    bare = OPTCausalLM(model.backbone)
    with pytest.raises(ValueError, match="text needs a tokenizer and this model has none"):
        bare.generate("import")
    with pytest.raises(ValueError, match="give stop_token_ids=None"):
        bare.generate(pack([[2, 5]]))


# === What cannot be generated from ===


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (" fox" * 30, {"max_length": 20}, r"a prompt has 31 tokens .* more than max_length=20"),
        ("x", {"max_length": 65}, "max_length is 65, more than the model's 64 positions"),
        ("x", {"max_length": 0}, "max_length must be a whole number of at least 1, got 0"),
        ("x", {"stop_token_ids": "never"}, "stop_token_ids must be 'auto', None or token ids"),
        ("x", {"stop_token_ids": [288]}, "stop_token_ids must be ids from 0 to 287"),
        (pack([[2, 288]]), {}, "token id 288 of prompt 0 is not in the model's vocabulary"),
        (pack([[2, -1]]), {}, "token id -1 of prompt 0"),
        (pack([[2]], length=65), {}, "the length of token_ids is 65"),
        ({"token_ids": [[2]]}, {}, r"\['padding_mask'\] is missing"),
        ([], {}, "a non-empty list of strings"),
        (5, {}, "generate\\(\\) takes a string"),
    ],
)
def test_bad_input(model, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(inputs, **options)
