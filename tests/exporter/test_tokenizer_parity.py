"""The tokenizer against Hugging Face's, on the same trained vocabulary and texts of all sorts."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pydoc_data import topics

import numpy as np
import pytest

from exporter import OPTTokenizer

VOCABULARY_SIZE = 800
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's order

HAND_PICKED = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "Hello\n\nHello",
    "Hello \n \n Hello",
    "Hello\r\nHello\r",
    "a\tb\t\tc",
    " " * 57 + "x" + " " * 33,
    "x" + "\n" * 40 + "y",
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u2003\u2028\u3000",
    "\x00\x01\x02\x7f\x80\x9f\xad",
    "I'm you're we've they'll he'd it's I'M YOU'RE WE'VE can't 'tis 'S 'll",
    "'s't're've'm'll'd",
    "don\u2019t \u2018quoted\u2019",
    "1234567890 3.14159 1,000,000 0x7f ½ ² ٣ Ⅳ ①",
    "snake_case CamelCase SCREAMING_CASE kebab-case __dunder__",
    "!!! ??? ... --- === *** ((())) [[]] {{}} <<>> ||| ~~~ ```",
    "https://example.org/a/b?c=d&e=f#g user@example.org C:\\path\\file",
    "    def f(x):\n        return x ** 2  # comment\n\n\nclass A: pass\n",
    '{"key": ["value", 1.5e-10, null, true]}',
    "<html><body class='a'>&nbsp;</body></html>",
    "naïve café Ærøskøbing straße Zażółć gęślą jaźń",
    "Привет мир Γειά σου שלום عالم नमस्ते ไทย ქართული",
    "你好，世界。日本語のテキスト 한국어 ｆｕｌｌｗｉｄｔｈ",
    "e\u0301 a\u0308 o\u0302\u0323 \u0301",
    "😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ☃️ 𝕏 𐍈 \U0010ffff \ufeff \ufffd \u200b\u200d\u202e",
    "</s>",
    "<pad>",
    "a</s>b",
    "a </s> b",
    "</s></s><pad></s>",
    "  </s>  <pad>  ",
    "\n</s>\n",
    "</s",
    "< /s>",
    "</S>",
    "<pad> <PAD> <pad",
    "x</s>" * 9,
]


def random_texts(count):
    """Texts of random words, symbols, scripts, white space and special tokens."""
    generator = random.Random(20)
    words = sorted(set(re.findall(r"\w+", topics.topics["import"])))
    scripts = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x5FF), (0x4E00, 0x4FFF), (0x1F300, 0x1F6FF)]
    pieces = [
        lambda: generator.choice(words),
        lambda: " " + generator.choice(words),
        lambda: " " * generator.randint(1, 12),
        lambda: "\n" * generator.randint(1, 4),
        lambda: generator.choice(["\t", "\r\n", "\x0b", "\x00", "\xa0", "\u2003", "\u3000"]),
        lambda: generator.choice(["'s", "'re", "'ll", "'x", "'", '"', "``", "...", "->", "==", "**"]),
        lambda: str(generator.randint(0, 10 ** generator.randint(1, 9))),
        lambda: "".join(
            chr(generator.randint(*generator.choice(scripts))) for _ in range(generator.randint(1, 5))
        ),
        lambda: chr(generator.choice([*range(0xD800), *range(0xE000, 0x110000, 97)])),
        lambda: generator.choice(["</s>", "<pad>"]),
    ]
    weights = [8, 8, 3, 3, 2, 3, 2, 4, 3, 1]
    return [
        "".join(piece() for piece in generator.choices(pieces, weights, k=generator.randint(1, 25)))
        for _ in range(count)
    ]


def real_texts():
    """Lines, paragraphs and whole pieces of Python's documentation."""
    whole = [topics.topics[name] for name in ("import", "formatstrings", "lambda", "exprlists")]
    return [*whole, *whole[0].split("\n")[:60], *whole[1].split("\n\n")[:40]]


@pytest.fixture(scope="module")
def texts():
    found = [*HAND_PICKED, *real_texts(), *random_texts(500)]
    assert len(set(found)) > 600
    assert {unicodedata.category(c)[0] for text in found for c in text} >= set("CLMNPSZ")
    return found


@pytest.fixture(scope="module")
def trained():
    """A byte-level BPE of about 800 tokens, trained on Python's documentation; `</s>` is special."""
    import tokenizers

    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator([topics.topics[name] for name in sorted(topics.topics)], trainer)
    model = json.loads(fast.to_str())["model"]
    return model["vocab"], [" ".join(rule) for rule in model["merges"]]


@pytest.fixture(scope="module")
def ours(trained):
    vocabulary, merges = trained
    return OPTTokenizer(vocabulary=vocabulary, merges=merges)


@pytest.fixture(scope="module")
def theirs(transformers, trained):
    """transformers' tokenizer of OPT on the same vocabulary, without the start token it adds."""
    vocabulary, merges = trained
    return transformers.GPT2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(rule.split(" ")) for rule in merges],
        unk_token="</s>",
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


@pytest.mark.reference
def test_ids_equal_those_of_transformers(ours, theirs, texts):
    assert theirs.is_fast
    assert len(ours.vocabulary) == VOCABULARY_SIZE
    for text in texts:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == expected, repr(text)


@pytest.mark.reference
def test_a_batch_equals_its_texts_one_by_one(ours, theirs, texts):
    assert ours.encode_batch(texts) == theirs(texts, add_special_tokens=False)["input_ids"]
    assert ours(texts) == [ours.encode(text) for text in texts]
    np.testing.assert_array_equal(ours(texts[5]), ours.encode(texts[5]))


@pytest.mark.reference
def test_text_comes_back_as_from_transformers(ours, theirs, texts):
    for text in texts:
        ids = ours.encode(text)
        assert ours.detokenize(ids) == text
        expected = theirs.decode(ids, clean_up_tokenization_spaces=False)
        assert ours.detokenize(ids) == expected, repr(text)
        skipped = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=True) == skipped, repr(text)


@pytest.mark.reference
def test_the_split_trap(ours, theirs):
    """keras-hub takes the whole string as one word here; OPT was trained with the split."""
    ids = ours.encode("Hello\n\nHello")
    assert ids == theirs("Hello\n\nHello", add_special_tokens=False)["input_ids"]
    newline = ours.token_to_id("Ċ")
    assert ids.count(newline) == 2 or ours.token_to_id("ĊĊ") in ids


def test_every_byte_comes_back(ours):
    """Text that is not in any vocabulary, without the reference implementation."""
    for text in (*HAND_PICKED, *random_texts(200)):
        assert ours.detokenize(ours.encode(text)) == text


def test_saved_and_read_again_the_ids_are_the_same(ours, tmp_path, texts):
    assert ours.save(tmp_path) == ["vocabulary.json", "merges.txt"]
    again = OPTTokenizer(
        vocabulary=str(tmp_path / "vocabulary.json"), merges=str(tmp_path / "merges.txt")
    )
    assert again.vocabulary == ours.vocabulary
    assert again.merges == ours.merges
    assert again.encode_batch(texts) == ours.encode_batch(texts)


def test_the_toy_vocabulary_of_keras_s_documentation():
    """Its merges pass through tokens that it has no ids for, which keras-hub itself now refuses."""
    vocabulary = {"<pad>": 1, "</s>": 2, "Ġquick": 4, "Ġfox": 5}
    merges = ["Ġ q", "u i", "c k", "ui ck", "Ġq uick", "Ġ f", "o x", "Ġf ox"]
    ours = OPTTokenizer(vocabulary=vocabulary, merges=merges)
    assert ours("The quick brown fox jumped.").tolist() == [4, 5]
    assert ours([" quick", " fox"]) == [[4], [5]]
    assert ours.detokenize([4, 5]) == " quick fox"
    assert ours.vocabulary_size() == 4
    assert ours.get_vocabulary() == ["<pad>", "</s>", "Ġquick", "Ġfox"]
    assert (ours.start_token_id, ours.end_token_id, ours.pad_token_id) == (2, 2, 1)


# === The rest of the interface ===


def test_a_sequence_length_makes_dense_arrays(trained):
    vocabulary, merges = trained
    dense = OPTTokenizer(vocabulary=vocabulary, merges=merges, sequence_length=4)
    plain = OPTTokenizer(vocabulary=vocabulary, merges=merges)
    texts = ["x", "the import statement of a module"]
    found = dense(texts)
    assert found.shape == (2, 4)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[0], [plain.token_to_id("x"), 1, 1, 1])
    np.testing.assert_array_equal(found[1], plain.encode(texts[1])[:4])
    np.testing.assert_array_equal(dense("x"), found[0])
    assert dense.get_config() == {"sequence_length": 4}


def test_detokenize_takes_batches_and_tensors(ours):
    import tensorflow as tf

    texts = ["the import", "statement"]
    rows = ours(texts)
    assert ours.detokenize(rows) == texts
    assert ours.detokenize(tf.ragged.constant(rows)) == texts
    assert ours.detokenize(tf.constant(rows[0])) == texts[0]
    assert ours.detokenize(np.array(rows[0])) == texts[0]


@pytest.mark.parametrize("options", [{}, {"vocabulary": {}}, {"merges": []}])
def test_vocabulary_and_merges_are_both_needed(options):
    with pytest.raises(ValueError, match="needs both `vocabulary` and `merges`"):
        OPTTokenizer(**options)
