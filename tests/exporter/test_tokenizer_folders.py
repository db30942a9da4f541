"""Which tokenizer a Hugging Face folder has, beside `AutoTokenizer` on the same folder; end to end."""

from __future__ import annotations

import json

import pytest
import tokenizers

from exporter import OPTCausalLM, OPTTokenizer, export_bundle
from exporter.errors import PresetError
from exporter.presets.tokenizer_files import hugging_face_tokenizer_files
from runtime import BundleError, Generator
from runtime.bundle import load_bundle
from runtime.tokenization.tokenizer import Tokenizer
from tests.exporter.galactica import galactica_tokenizer, write_galactica_tokenizer
from tests.exporter.varied_texts import HAND_PICKED, training_texts

CONFIG = {"model_type": "opt", "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
OPTIONS = {
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "</s>",
    "pad_token": "<pad>",
    "add_bos_token": True,
    "tokenizer_class": "GPT2Tokenizer",
}
PLAIN, OWN = {"vocabulary.json", "merges.txt"}, {"tokenizer.json", "special_tokens.json"}


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def slow(tmp_path, toy_vocabulary, toy_merges):
    """Writes a folder with `vocab.json`, `merges.txt` and `tokenizer_config.json`."""

    def folder(options, config=CONFIG):
        write(tmp_path, "vocab.json", toy_vocabulary)
        text = "\n".join(["#version: 0.2", *toy_merges, ""])
        (tmp_path / "merges.txt").write_text(text, encoding="utf-8")
        write(tmp_path, "config.json", config)
        if options is not None:
            write(tmp_path, "tokenizer_config.json", options)
        return tmp_path

    return folder


@pytest.fixture
def fast(tmp_path, toy_vocabulary, toy_merges):
    """Writes a folder with a `tokenizer.json` that `change` may alter first."""

    def folder(change=lambda tokenizer: None, start=True, added=("</s>", "<pad>"), config=CONFIG):
        pairs = [tuple(rule.split(" ")) for rule in toy_merges]
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=toy_vocabulary, merges=pairs))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.add_special_tokens(list(added))
        if start:
            tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single="</s> $A", special_tokens=[("</s>", 2)]
            )
        change(tokenizer)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        write(tmp_path, "config.json", config)
        write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        return tmp_path

    return folder


def read(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return hugging_face_tokenizer_files(folder, config)


def assert_as_transformers(transformers, folder, start):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_files(read(folder))
    assert ours.start_token_id == start
    prefix = [] if start is None else [start]
    for text, ids in zip(HAND_PICKED, theirs(HAND_PICKED)["input_ids"], strict=True):
        assert prefix + ours.encode(text) == ids, repr(text)
        expected = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=True) == expected


# === vocab.json and merges.txt ===


@pytest.mark.parametrize("options", [OPTIONS, None], ids=["options", "none"])
def test_opt_s_own_files_are_plain(slow, options, toy_tokenizer):
    files = read(slow(options))
    assert set(files) == PLAIN
    assert files == toy_tokenizer.files()


@pytest.mark.reference
@pytest.mark.parametrize(
    ("changes", "start", "kind"),
    [
        ({}, 2, PLAIN),
        ({"add_bos_token": False}, None, OWN),
        ({"add_prefix_space": True}, 2, OWN),
        ({"bos_token": "<s>"}, 0, OWN),
        ({"unk_token": "<unk>"}, 2, OWN),
        ({"pad_token": None}, 2, OWN),
    ],
    # The order of a set differs between the processes that the tests are spread over.
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_what_tokenizer_config_json_says(transformers, slow, changes, start, kind):
    folder = slow({**OPTIONS, **changes})
    assert set(read(folder)) == kind
    assert_as_transformers(transformers, folder, start)


# === tokenizer.json ===


def lower(tokenizer):
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()


def digits(tokenizer):
    pre = tokenizers.pre_tokenizers
    steps = [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre.Sequence(steps)


def prefix_space(tokenizer):
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)


def no_pattern(tokenizer):
    pre = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False, use_regex=False)


def stripping(tokenizer):
    tokenizer.add_special_tokens([tokenizers.AddedToken("<s>", lstrip=True, special=True)])


def cut_and_padded(tokenizer):
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=64)


def test_opt_s_own_pipeline_is_plain(fast, toy_tokenizer):
    assert read(fast()) == toy_tokenizer.files()
    assert read(fast(cut_and_padded)) == toy_tokenizer.files()


@pytest.mark.reference
@pytest.mark.parametrize("change", [lower, digits, prefix_space, no_pattern, stripping])
def test_another_pipeline_keeps_its_file(transformers, fast, change):
    folder = fast(change)
    assert set(read(folder)) == OWN
    assert_as_transformers(transformers, folder, 2)


@pytest.mark.reference
def test_other_special_tokens_keep_the_file(transformers, fast):
    folder = fast(start=False)
    assert set(read(folder)) == OWN
    assert_as_transformers(transformers, folder, None)
    folder = fast(added=("</s>", "<pad>", "<unk>"))
    assert set(read(folder)) == OWN
    assert_as_transformers(transformers, folder, 2)


def test_truncation_and_padding_of_a_file_do_not_count(fast):
    def change(tokenizer):
        digits(tokenizer)
        cut_and_padded(tokenizer)

    ours = Tokenizer.from_files(read(fast(change)))
    assert len(ours.encode(" the quick 123 brown fox")) == 8


def test_the_ends_are_those_of_the_model(fast):
    config = {"model_type": "opt", "eos_token_id": [0, 2], "pad_token_id": 3}
    ours = Tokenizer.from_files(read(fast(config=config)))
    assert (ours.end_token_id, ours.pad_token_id) == (0, 3)
    folder = fast(config={"model_type": "opt"})
    write(folder, "tokenizer_config.json", {"eos_token": {"content": "<unk>"}, "pad_token": "<s>"})
    ours = Tokenizer.from_files(read(folder))
    assert (ours.end_token_id, ours.pad_token_id) == (3, 0)


# === What cannot be used ===


def word_pieces(tokenizer):
    tokenizer.model = tokenizers.models.WordPiece({"a": 0}, unk_token="a")


def unigram(tokenizer):
    tokenizer.model = tokenizers.models.Unigram([("a", 0.0)])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()


def characters(tokenizer):
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (unigram, "its model is Unigram, its pre-tokenizer Metaspace, its decoder Metaspace"),
        (word_pieces, "its model is WordPiece, its pre-tokenizer ByteLevel, its decoder ByteLevel"),
        (characters, "its model is BPE, its pre-tokenizer Whitespace, its decoder ByteLevel"),
    ],
)
def test_what_is_not_byte_level_bpe_is_refused(fast, change, what):
    with pytest.raises(PresetError, match=r"tokenizer\.json is not byte-level BPE") as raised:
        read(fast(change))
    assert str(raised.value).endswith(what)


def test_two_tokens_before_a_text_are_refused(fast):
    def change(tokenizer):
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="</s> <s> $A", special_tokens=[("</s>", 2), ("<s>", 0)]
        )

    with pytest.raises(PresetError, match=r"puts 2 tokens before a text, \[2, 0\]; only one is"):
        read(fast(change))


def test_an_end_that_is_no_token_does_not_count(fast):
    ours = Tokenizer.from_files(read(fast(digits, config={**CONFIG, "eos_token_id": [5000, -1, True]})))
    assert ours.end_token_id == 2


def test_an_end_that_nobody_names_is_an_error(tmp_path):
    pipeline = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    pipeline.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"model_type": "opt"})
    with pytest.raises(PresetError, match="Cannot find special token '</s>' in the vocabulary of 1 "):
        read(tmp_path)


# === End to end ===


@pytest.fixture(scope="module")
def galactica(transformers, hf_model, tmp_path_factory):
    """A toy model's folder with a tokenizer of Galactica's kind."""
    folder = tmp_path_factory.mktemp("presets") / "galactica"
    hf_model.save_pretrained(folder)
    fast = galactica_tokenizer(training_texts(), hf_model.config.vocab_size)
    write_galactica_tokenizer(folder, fast)
    return folder


PROMPTS = ["The import ﬁle 12", " [START_REF] a (b)", "x\n\n=="]


def transformers_text(transformers, model, folder, prompt, length):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = theirs(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_length=length, do_sample=False)
    return theirs.decode(ids[0], skip_special_tokens=True)


@pytest.mark.reference
def test_a_bundle_with_its_own_pipeline(
    quick_tracing, transformers, hf_model, galactica, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("bundles") / "galactica"
    export_bundle(galactica, folder)
    bundle = load_bundle(folder)
    assert {entry.name for entry in bundle.manifest.tokenizer} == OWN
    assert bundle.tokenizer.start_token_id is None
    generator = Generator.from_bundle(folder, device="cpu", threads=1)
    generator.compile(sampler="greedy")
    expected = [transformers_text(transformers, hf_model, galactica, p, 30) for p in PROMPTS]
    assert generator.generate(PROMPTS, max_length=30) == expected
    assert "".join(generator.stream(PROMPTS[0], max_length=30)) == expected[0]
    with pytest.raises(ValueError, match="no start token"):
        generator.generate("")
    (folder / "special_tokens.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"special_tokens\.json was altered"):
        load_bundle(folder)


@pytest.mark.reference
def test_a_model_with_its_own_pipeline_generates_and_is_saved(galactica, tmp_path):
    model = OPTCausalLM.from_preset(str(galactica))
    model.compile(sampler="greedy")
    text = model.generate(PROMPTS[0], max_length=20)
    model.save_to_preset(tmp_path / "saved")
    again = OPTCausalLM.from_preset(str(tmp_path / "saved"))
    again.compile(sampler="greedy")
    assert again.generate(PROMPTS[0], max_length=20) == text
    assert again.preprocessor.tokenizer.files() == model.preprocessor.tokenizer.files()


@pytest.mark.reference
def test_options_come_back_from_a_keras_preset(keras_hub, build_model, tmp_path):
    model = build_model(preprocessor=True)
    old = model.preprocessor.tokenizer
    model.preprocessor.tokenizer = OPTTokenizer(
        old.vocabulary, old.merges, add_prefix_space=True, unsplittable_tokens=["</s>", "<unk>"]
    )
    model.save_to_preset(tmp_path)
    again = OPTTokenizer.from_preset(str(tmp_path))
    assert again.get_config() == model.preprocessor.tokenizer.get_config()
    theirs = keras_hub.models.OPTTokenizer.from_preset(str(tmp_path))
    assert theirs("quick<unk>").tolist() == again("quick<unk>").tolist()
