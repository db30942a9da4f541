"""Tokens that were added to a tokenizer: folders of transformers 4.41 and 5, and their ids and texts.

`tests/data/tokenizer_folders` and what is expected of them comes from `make_tokenizer_folders.py`.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from exporter import OPTCausalLM, export_bundle
from exporter.errors import PresetError
from exporter.presets.added_tokens import AddedToken, read_options
from exporter.presets.tokenizer_files import hugging_face_tokenizer_files
from runtime import Generator
from runtime.tokenization.tokenizer import Tokenizer
from tests.data import make_tokenizer_folders as maker
from tests.exporter.varied_texts import texts_with
from tests.runtime.tokenization.pieces import pieces

FOLDERS = Path(maker.__file__).with_name("tokenizer_folders")
COUNT = 2000
# The library's decoder takes letters of the byte alphabet for bytes, in whole added tokens too; its
# Python predecessor and we write such a token as it is spelled. The last two are tokens of the
# vocabulary as well, and so have one id for two meanings.
BROKEN_BY_THE_LIBRARY = {"tüde", "é", "Ġthe"}


def read(folder, config=maker.CONFIG):
    return Tokenizer.from_files(hugging_face_tokenizer_files(folder, config))


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def edit(folder, name, **values):
    path = folder / name
    write(folder, name, {**(json.loads(path.read_text("utf-8")) if path.exists() else {}), **values})


@pytest.fixture
def slow(tmp_path):
    """A copy of a folder that has `vocab.json` and `merges.txt` alone; the vocabulary ends at 286."""
    for name in ("vocab.json", "merges.txt", "config.json"):
        shutil.copy(FOLDERS / "slow4-words" / name, tmp_path)
    write(tmp_path, "tokenizer_config.json", maker.OPTIONS)
    return tmp_path


def differs(ours, ids, text, expected):
    """Whether a text is another one, and not by the library's own fault."""
    spelled = {ours.id_to_token(i) for i in ids} & BROKEN_BY_THE_LIBRARY
    return text != expected and not spelled


# === What transformers wrote ===


@pytest.mark.parametrize("name", maker.FIXTURES)
def test_ids_and_texts_are_those_of_the_transformers_that_wrote_the_folder(name):
    ours = read(FOLDERS / name)
    expected = json.loads((FOLDERS / name / "expected.json").read_text("utf-8"))
    texts = maker.texts()
    assert len(texts) == len(expected["ids"]) == 100
    broken = 0
    for text, ids, skipped in zip(texts, expected["ids"], expected["texts"], strict=True):
        assert ours.encode(text) == ids, repr(text)
        found = ours.decode(ids, skip_special_tokens=True)
        assert not differs(ours, ids, found, skipped), repr(text)
        broken += found != skipped
        assert "".join(pieces(ours, ids)) == found
    assert broken < 40
    assert ours.decode(ours.encode("a tüde é"), skip_special_tokens=True) == "a tüde é"


@pytest.mark.parametrize("name", [name for name in maker.FIXTURES if "mixed" in name])
def test_new_end_and_padding_tokens(name):
    ours = read(FOLDERS / name)
    assert (ours.start_token_id, ours.end_token_id, ours.pad_token_id) == (2, 298, 297)
    assert ours.id_to_token(298) == "<|im_end|>"
    assert {297, 298, 299} <= set(ours.special_token_ids)
    assert ours.decode([*ours.encode("a"), 297, 298, 299], skip_special_tokens=True) == "a"
    assert ours.vocabulary_size() == 300
    # What was read is what a bundle stores.
    again = Tokenizer.from_files(ours.files())
    assert again.encode_batch(maker.texts()) == ours.encode_batch(maker.texts())


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize(
    "name", ["slow4-mixed", "fast5-mixed", "fast4-mixed", "slow4-words", "known", "begins"]
)
def test_2000_strings_beside_the_installed_transformers(transformers, tmp_path, name):
    """Folders of before 4.34 crash in transformers 5, which keeps objects where it expects tokens."""
    folder = FOLDERS / name
    if not folder.is_dir():
        base = shutil.copytree(FOLDERS / "slow4-words", tmp_path / "base")
        (base / "added_tokens.json").unlink()
        write(base, "tokenizer_config.json", maker.OPTIONS)
        theirs = transformers.AutoTokenizer.from_pretrained(base)
        maker.CHANGES[name](theirs)
        folder = tmp_path / name
        theirs.save_pretrained(folder)
        write(folder, "config.json", maker.CONFIG)
    ours, theirs = read(folder), transformers.AutoTokenizer.from_pretrained(folder)
    texts = texts_with([*maker.TOKENS, "<|begin|>", "<unk>", "Ġthe", "ing"], COUNT)
    assert len(set(texts)) == COUNT
    rows = theirs(texts, add_special_tokens=False)["input_ids"]
    other = {"ids": 0, "texts": 0, "texts without special tokens": 0, "by the library's fault": 0}
    for ids, found in zip(rows, ours.encode_batch(texts), strict=True):
        other["ids"] += found != ids
        for kind, skip in (("texts", False), ("texts without special tokens", True)):
            written = ours.decode(ids, skip_special_tokens=skip)
            expected = theirs.decode(ids, skip_special_tokens=skip)
            other[kind] += differs(ours, ids, written, expected)
            other["by the library's fault"] += written != expected and skip
    print(f"\n{name:20} {COUNT} strings, differences: {other}")
    del other["by the library's fault"]
    assert not any(other.values()), other
    prefix = [] if ours.start_token_id is None else [ours.start_token_id]
    assert theirs("").input_ids == prefix


@pytest.mark.reference
def test_resized_embeddings(quick_tracing, transformers, hf_model, tmp_path):
    """New tokens, and a table of a multiple of 64 rows: greedy texts are transformers' own."""
    folder = tmp_path / "model"
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDERS / "slow4-mixed")
    model = transformers.OPTForCausalLM(copy.deepcopy(hf_model.config))  # other tests have the first
    model.load_state_dict(hf_model.state_dict())
    model.resize_token_embeddings(len(theirs), pad_to_multiple_of=64)
    assert model.config.vocab_size == 320 > len(theirs)
    model.generation_config.eos_token_id = [theirs.eos_token_id, 2]
    model.generation_config.pad_token_id = theirs.pad_token_id
    model.eval().save_pretrained(folder)
    theirs.save_pretrained(folder)
    summary = export_bundle(folder, tmp_path / "bundle")
    assert "300 tokens" in summary.tokenizer
    generator = Generator.from_bundle(tmp_path / "bundle", device="cpu", threads=1)
    assert generator.end_token_ids == (298, 2)
    generator.compile(sampler="greedy")
    for prompt in (" the quick newword", "tüde<l> x", "import <|im_start|> a [PAD]"):
        inputs = theirs(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_length=30, do_sample=False)[0].tolist()
        found = generator.generate_results(prompt, max_length=30)[0]
        prompt_ids = inputs["input_ids"][0].tolist()
        assert [*prompt_ids, *found.token_ids] == ids
        assert generator.generate(prompt, max_length=30) == generator.tokenizer.decode(
            ids, skip_special_tokens=True
        )


# === Other folders ===


def test_a_special_token_that_has_no_id_yet_is_given_the_next(slow):
    edit(slow, "tokenizer_config.json", pad_token="[PAD]", eos_token="<end>")
    ours = read(slow)
    assert (ours.id_to_token(287), ours.id_to_token(288)) == ("<end>", "[PAD]")
    assert (ours.end_token_id, ours.pad_token_id) == (287, 288)
    assert ours.encode("a[PAD]<end>") == [*ours.encode("a"), 288, 287]


def test_where_the_model_has_no_row_for_it_the_token_is_text(slow):
    edit(slow, "tokenizer_config.json", pad_token="[PAD]", eos_token="<end>")
    ours = read(slow, {**maker.CONFIG, "vocab_size": 288})
    assert (ours.end_token_id, ours.pad_token_id) == (287, 1)
    assert ours.decode(ours.encode("a[PAD]"), skip_special_tokens=True) == "a[PAD]"


def test_ids_are_those_of_the_files_where_the_library_would_count_otherwise(slow):
    edit(slow, "added_tokens.json", **{"<a>": 310, "<b>": 300, "<c>": 287})
    ours = read(slow)
    assert [ours.token_to_id(token) for token in ("<a>", "<b>", "<c>")] == [310, 300, 287]
    assert ours.encode(" the<b><a>x") == [*ours.encode(" the"), 300, 310, *ours.encode("x")]
    assert ours.decode([300, 310, 287]) == "<b><a><c>"


def test_before_4_34_flags_come_from_special_tokens_map_json(slow):
    token = {"content": "<u>", "lstrip": True, "rstrip": True, "normalized": False}
    token["single_word"] = False
    edit(slow, "added_tokens.json", **{"<u>": 288, "<v>": 287})
    edit(slow, "special_tokens_map.json", additional_special_tokens=[token], eos_token="<v>")
    ours = read(slow)
    assert ours.encode("a  <u>  b") == [*ours.encode("a"), 288, *ours.encode("b")]
    assert ours.end_token_id == 287
    assert ours.decode([287, 288], skip_special_tokens=True) == ""
    # Since then `added_tokens_decoder` says all there is to say.
    edit(slow, "tokenizer_config.json", added_tokens_decoder={"287": {"content": "<v>"}})
    ours = read(slow)
    assert "<u>" not in ours.vocabulary
    assert (ours.end_token_id, ours.decode([287], skip_special_tokens=True)) == (2, "<v>")


def test_a_special_token_of_several_words_goes_before_a_text(slow):
    edit(slow, "tokenizer_config.json", bos_token="<begin of: $A>")
    assert read(slow).start_token_id == 287


def test_gpt2_s_own_defaults(slow):
    """Where nobody names a token, transformers takes GPT-2's, here if the vocabulary has it."""
    vocabulary = json.loads((slow / "vocab.json").read_text("utf-8"))
    del vocabulary["</s>"], vocabulary["<pad>"]
    write(slow, "vocab.json", {**vocabulary, "<|endoftext|>": 2})
    write(slow, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    ours = read(slow, {"model_type": "opt", "pad_token_id": 1})
    assert (ours.start_token_id, ours.end_token_id, ours.pad_token_id) == (None, 2, 2)
    assert ours.decode(ours.encode("a<|endoftext|>"), skip_special_tokens=True) == "a"


@pytest.mark.parametrize("spaced", [True, False])
def test_add_prefix_space_of_a_gpt2_tokenizer_counts_beside_a_tokenizer_json(tmp_path, spaced):
    folder = shutil.copytree(FOLDERS / "fast4-mixed", tmp_path / "fast")
    edit(folder, "tokenizer_config.json", add_prefix_space=spaced)
    assert (read(folder).encode("the") == read(folder).encode(" the")) is spaced


TOKEN = {"content": "<a>"}


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "must be an object, got list"),
        ("tokenizer_config.json", {"added_tokens_decoder": None}, "must be an object, got NoneType"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": TOKEN}}, "must have ids of 0 to"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": TOKEN}}, "must have ids of 0 to"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 4000: TOKEN}}, "must have ids of 0"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"300": "<a>", "301": "<a>"}}, "two ids to"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"300": "<a>", "030": "<b>"}},
            "ids of 0 to",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"300": {}}}, "is no token"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"300": {**TOKEN, "lstrip": 1}}},
            "no token",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"5": TOKEN}},
            "has the id 5, which is that",
        ),
        ("tokenizer_config.json", {"eos_token": 7}, "eos_token is no token"),
        ("tokenizer_config.json", {"additional_special_tokens": "<a>"}, "must be a list of tokens"),
        ("tokenizer_config.json", {"extra_special_tokens": [["<a>"]]}, "is no token"),
        ("special_tokens_map.json", {"pad_token": ["<a>"]}, "pad_token is no token"),
        ("added_tokens.json", {"<a>": "300"}, None),
        ("added_tokens.json", {"<a>": 1.0}, "must have ids of 0 to"),
        ("added_tokens.json", {"<a>": True}, "must have ids of 0 to"),
        ("added_tokens.json", {"<a>": 2**24}, "must have ids of 0 to"),
        ("added_tokens.json", {"<a>": 300, "<b>": 300}, "one id to two tokens"),
        ("added_tokens.json", {"<a>": 3}, "has the id 3, which is that of '<unk>'"),
    ],
)
def test_what_is_not_valid_is_refused_in_a_sentence(slow, name, values, what):
    edit(slow, name, **values)
    if what is None:
        assert read(slow).token_to_id("<a>") == 300
        return
    with pytest.raises(PresetError, match=what) as raised:
        read(slow)
    assert len(str(raised.value)) < 600


def test_options_of_no_files(tmp_path):
    options = read_options(tmp_path)
    assert (options.is_given, options.added, options.special()) == (False, {}, {})
    write(
        tmp_path,
        "special_tokens_map.json",
        {"image_token": "<i>", "extra_special_tokens": {"a": "<e>"}},
    )
    assert read_options(tmp_path).special() == {"<i>": AddedToken("<i>"), "<e>": AddedToken("<e>")}


# === Ordinary words ===


@pytest.fixture
def own_words(tmp_path):
    """A tokenizer of one's own in which the ids of `config.json` are words: 1 is `!`, 2 is `"`."""
    import tokenizers

    from tests.exporter.conftest import TOY, write_hf_weights

    folder = tmp_path / "own_words"
    write_hf_weights(folder, TOY)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *letters])}
    write(folder, "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    write(folder, "tokenizer_config.json", {**names, "tokenizer_class": "GPT2Tokenizer"})
    edit(folder, "config.json", bos_token_id=2, eos_token_id=2, pad_token_id=1)
    edit(folder, "config.json", decoder_start_token_id=3, unk_token_id=4)
    return folder


def test_words_that_config_json_pads_or_ends_with_stay_in_texts(quick_tracing, own_words, tmp_path):
    text = '!"#$ Wait! "Yes"'
    model = OPTCausalLM.from_preset(str(own_words))
    tokenizer = model.preprocessor.tokenizer
    assert tokenizer.special_token_ids == (0,)
    assert (tokenizer.end_token, tokenizer.pad_token_id) == ("<|endoftext|>", 1)
    model.save_to_preset(tmp_path / "keras")
    export_bundle(tmp_path / "keras", tmp_path / "bundle")
    for found in (model, Generator.from_bundle(tmp_path / "bundle", "cpu", 1)):
        found.compile(sampler="greedy")
        assert found.generate(text, max_length=len(text) + 1).startswith(text)
        assert "".join(found.stream(text, max_length=len(text) + 1)).startswith(text)
    # And where transformers reads what is written of it.
    model.export_to_transformers(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text("utf-8"))
    assert "pad_token" not in again
    assert read(tmp_path / "again", {}).special_token_ids == (0,)
