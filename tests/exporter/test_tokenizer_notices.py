"""What an export says where the files of a tokenizer disagree, and which of them it used."""

from __future__ import annotations

import json
import shutil

import pytest

from exporter.errors import PresetError
from exporter.presets.folder import read_tokenizer
from exporter.presets.tokenizer_files import hugging_face_tokenizer_files
from exporter.presets.tokenizer_notices import disagreements, vocabulary_of
from tests.data import make_tokenizer_folders as maker
from tests.exporter.test_added_tokens import FOLDERS, edit


@pytest.fixture
def fast(tmp_path):
    """A copy of a folder that has all of the files, which agree."""
    return shutil.copytree(FOLDERS / "fast4-mixed", tmp_path / "fast")


def told(folder, config=maker.CONFIG):
    files = hugging_face_tokenizer_files(folder, config)
    return disagreements(folder, vocabulary_of(files), config)


def edit_own(folder, change):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("name", maker.FIXTURES)
def test_what_transformers_wrote_agrees(name):
    assert told(FOLDERS / name) == ()


def test_other_ids(fast):
    vocabulary = json.loads((fast / "vocab.json").read_text("utf-8"))
    edit(fast, "vocab.json", **{"import": 5, "new": 310})
    first, *others = told(fast)
    assert first == (
        f"vocab.json gives 'import' the id 5 and tokenizer.json the id {vocabulary['import']} (2 such "
        "tokens): tokenizer.json is used, as by transformers"
    )
    assert others == []
    assert vocabulary_of(hugging_face_tokenizer_files(fast, {}))["import"] == vocabulary["import"]


def test_a_vocabulary_that_lacks_tokens_and_other_merges(fast):
    vocabulary = json.loads((fast / "vocab.json").read_text("utf-8"))
    del vocabulary["import"]
    (fast / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = (fast / "merges.txt").read_text("utf-8").split("\n")
    (fast / "merges.txt").write_text("\n".join([*lines[:3], "x y", *lines[4:]]), encoding="utf-8")
    lacks, merges = told(fast)
    assert lacks == (
        "tokenizer.json has 'import', which vocab.json lacks: tokenizer.json is used, as by "
        "transformers"
    )
    assert merges == (
        f"merge rule 2 is 'x y' in merges.txt and {lines[3]!r} in tokenizer.json: tokenizer.json is "
        "used, as by transformers"
    )
    (fast / "merges.txt").write_text("\n".join(lines[:-3]), encoding="utf-8")
    assert "is 'nothing' in merges.txt" in told(fast)[1]


def test_added_tokens_with_other_ids_and_flags(fast):
    edit(fast, "added_tokens.json", newword=288)
    options = json.loads((fast / "tokenizer_config.json").read_text("utf-8"))
    options["added_tokens_decoder"]["292"]["rstrip"] = False
    edit(fast, "tokenizer_config.json", **options)
    ids, flags = told(fast)
    assert ids.startswith("added_tokens.json gives 'newword' the id 288 and tokenizer.json the id 287")
    assert flags == (
        "the added token '<r>' has rstrip true in tokenizer.json and false in tokenizer_config.json: "
        "tokenizer_config.json is used, as by transformers"
    )
    used = json.loads(hugging_face_tokenizer_files(fast, {})["tokenizer.json"])["added_tokens"]
    assert next(token for token in used if token["content"] == "<r>")["rstrip"] is False


def test_an_added_token_that_only_tokenizer_json_has(fast):
    token = {"id": 300, "content": "<only>", "special": False, "normalized": True}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    edit_own(fast, lambda values: values["added_tokens"].append(token))
    (line,) = told(fast)
    assert (
        "has the added token '<only>', which added_tokens_decoder of tokenizer_config.json lacks"
        in line
    )
    assert vocabulary_of(hugging_face_tokenizer_files(fast, {}))["<only>"] == 300


def test_names_of_special_tokens(fast):
    edit(fast, "special_tokens_map.json", pad_token="<pad>")
    (line,) = told(fast)
    assert line == (
        "pad_token is '[PAD]' in tokenizer_config.json and '<pad>' in special_tokens_map.json: "
        "tokenizer_config.json is used, as by transformers"
    )
    slow = shutil.copytree(FOLDERS / "slow4-mixed-legacy", fast / "slow")
    edit(slow, "special_tokens_map.json", pad_token="<pad>")
    (line,) = told(slow)
    assert line.endswith("special_tokens_map.json is used, as by transformers")


def test_a_special_token_without_a_row(fast):
    edit(fast, "tokenizer_config.json", sep_token="<sep>")
    assert told(fast) == ()
    (line,) = told(fast, {**maker.CONFIG, "vocab_size": 300})
    assert line == (
        "the special token '<sep>' has no id and the model no row for it: it is read as any text"
    )


def test_steps_that_transformers_5_leaves_out(fast):
    edit_own(fast, lambda values: values.update(normalizer={"type": "NFC"}))
    (line,) = told(fast)
    assert "is used as it is, as by transformers 4; transformers 5 leaves out its normalizer" in line
    edit(fast, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert told(fast) == ()


@pytest.mark.parametrize(
    "name", ["vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"]
)
def test_an_older_file_that_is_broken_and_not_needed_is_told(fast, tmp_path, name):
    used = hugging_face_tokenizer_files(fast, maker.CONFIG)
    (fast / name).write_bytes(b"\xff[")
    (line,) = told(fast)
    assert name in line
    assert line.endswith("it is not used")
    assert hugging_face_tokenizer_files(fast, maker.CONFIG) == used


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json"])
def test_a_link_out_of_the_folder_is_not_followed(fast, tmp_path, name):
    (fast / name).unlink()
    (tmp_path / "secret").write_text("[]\nsecret rule\n", encoding="utf-8")
    (fast / name).symlink_to(tmp_path / "secret")
    with pytest.raises(PresetError, match="is a link out of its folder"):
        raise PresetError(*told(fast))


def test_a_notice_is_short_whatever_the_files_hold(fast):
    edit(fast, "vocab.json", **{"x" * 100_000: 5, "y": 10**4000})
    edit(fast, "special_tokens_map.json", pad_token="z" * 100_000)
    assert all(len(line) < 400 for line in told(fast))
    assert len(told(fast)) == 2


def test_notices_of_a_folder_with_a_tokenizer_alone(fast):
    edit(fast, "special_tokens_map.json", pad_token="<pad>")
    (fast / "config.json").unlink()
    assert len(read_tokenizer(fast).notices) == 1
