"""The tokenizer in an export's summary, `--tokenizer`, and that a bundle's text is verified."""

from __future__ import annotations

import json
import shutil

import pytest

from exporter import OPTTokenizer, export, export_bundle
from exporter.errors import ExportError, PresetError
from exporter.text_check import describe_tokenizer, end_notices, verify_text
from runtime import Generator
from runtime.tokenization.tokenizer import Tokenizer
from tests.data import make_tokenizer_folders as maker
from tests.exporter.conftest import TOY, write_hf_weights
from tests.exporter.export_helpers import fails, run
from tests.exporter.test_added_tokens import FOLDERS, edit, read

PLAIN_LINE = (
    "OPT's own, 281 tokens; start '</s>' (2), end '</s>' (2), padding '<pad>' (1); 2 added tokens"
)


def test_a_line_for_each_kind(toy_tokenizer):
    size = toy_tokenizer.vocabulary_size()
    assert describe_tokenizer(toy_tokenizer, (2,)) == PLAIN_LINE.replace("281", str(size))
    assert describe_tokenizer(read(FOLDERS / "slow4-mixed"), (298, 2)) == (
        "a tokenizer.json, 300 tokens; start '</s>' (2), end '<|im_end|>' (298), padding '[PAD]' "
        "(297); 16 added tokens; texts end at 298, 2"
    )
    assert describe_tokenizer(None, None) == (
        "none: the bundle takes token ids only; --tokenizer FOLDER adds one"
    )


def test_an_end_token_that_ends_nothing_is_told(toy_tokenizer):
    assert end_notices(toy_tokenizer, (5, 2)) == end_notices(toy_tokenizer, None) == ()
    assert end_notices(None, (5,)) == ()
    (line,) = end_notices(toy_tokenizer, (5, 6))
    assert line == (
        "the tokenizer's end token '</s>' (2) does not end a text: the model's configuration gives "
        "5, 6, which counts, as in transformers"
    )


def test_the_command_tells_it(quick_tracing, tmp_path):
    """Notices too, and with `--tokenizer` those of that folder."""
    model, other = tmp_path / "model", tmp_path / "other"
    write_hf_weights(model, TOY)
    shutil.copytree(FOLDERS / "slow4-words", other)
    edit(other, "added_tokens.json", newword=5)
    (other / "config.json").unlink()
    code, out, err = run("--preset", model, "--output", tmp_path / "b", "--verify", "graph")
    assert code == 0, err
    assert "Tokenizer    none: the bundle takes token ids only; --tokenizer FOLDER adds one\n" in out
    command = ("--preset", model, "--output", tmp_path / "b", "--verify", "graph", "--force")
    # Its ids go up to 290, and the toy model has 288 rows.
    line = fails(*command, "--tokenizer", other)
    assert line.startswith(
        "the tokenizer of model has ids up to 290, ' spaced', and the model has rows"
    )
    write_hf_weights(model, TOY.__class__(**{**TOY.to_dict(), "vocabulary_size": 320}))
    code, out, err = run(*command, "--tokenizer", other)
    assert code == 0, err
    assert "Tokenizer    a tokenizer.json, 291 tokens; start '</s>' (2)" in out
    assert "Note         added_tokens.json gives 'newword' the id 5 and vocab.json the id 287" in out
    generator = Generator.from_bundle(tmp_path / "b", "cpu", 1)
    assert generator.tokenizer.encode("newword") == [287]
    assert generator.generate("newword", max_length=5).startswith("newword")


@pytest.mark.parametrize("kind", ["vocab.json", "tokenizer.json", "keras", "no files", "no folder"])
def test_which_folders_have_a_tokenizer(nothing_is_traced, toy_preset, plain_hf_folder, tmp_path, kind):
    folder = tmp_path / "tokenizer"
    if kind == "keras":
        shutil.copytree(toy_preset, folder)
        (folder / "config.json").unlink()
    elif kind != "no folder":
        folder.mkdir()
        source, names = {
            "vocab.json": ("slow4-words", ("vocab.json", "merges.txt")),
            "tokenizer.json": ("fast5-mixed", ("tokenizer.json",)),
            "no files": ("slow4-words", ("merges.txt", "tokenizer_config.json")),
        }[kind]
        for name in names:
            shutil.copy(FOLDERS / source / name, folder)
        if kind == "tokenizer.json":  # beside a model of another kind
            (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    if kind.startswith("no"):
        with pytest.raises(PresetError, match=r"has no tokenizer: expected tokenizer\.json, or vocab"):
            export_bundle(plain_hf_folder, tmp_path / "b", tokenizer=folder)
        return
    problem = AssertionError if kind != "tokenizer.json" else ExportError  # 300 tokens for 288 rows
    with pytest.raises(problem, match=r"nothing may be traced|has ids up to 299"):
        export_bundle(plain_hf_folder, tmp_path / "b", tokenizer=folder)


# === Verification of text ===


def test_what_was_written_reads_and_writes_as_what_was_exported(toy_tokenizer, tmp_path):
    options = {"add_prefix_space": True, "unsplittable_tokens": ["</s>", "<pad>", "import"]}
    with_options = OPTTokenizer(toy_tokenizer.vocabulary, toy_tokenizer.merges, **options)
    for i, tokenizer in enumerate((toy_tokenizer, with_options, *map(read, FOLDERS.iterdir()))):
        folder = tmp_path / str(i)
        folder.mkdir()
        tokenizer.save(folder)
        verify_text(folder, tokenizer)


def test_a_token_that_is_found_whole_is_a_word_of_the_text(toy_tokenizer, tmp_path):
    whole = ["</s>", "<pad>", "import"]
    tokenizer = OPTTokenizer(toy_tokenizer.vocabulary, toy_tokenizer.merges, unsplittable_tokens=whole)
    tokenizer.save(tmp_path)
    for found in (tokenizer, Tokenizer.from_folder(tmp_path)):
        assert found.special_token_ids == (1, 2)
        ids = found.encode("reimported</s>")
        assert found.token_to_id("import") in ids
        assert found.decode(ids, skip_special_tokens=True) == "reimported"


def change_flag(values):
    values["added_tokens"][-1]["lstrip"] = True


def change_content(values):
    values["added_tokens"][-1]["special"] = False


def lower(values):
    values["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize("change", [change_flag, change_content, lower])
def test_a_tokenizer_that_is_another_is_refused(tmp_path, change):
    tokenizer = read(FOLDERS / "slow4-mixed")
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(
        ExportError, match=r"failed verification: its (tokenizer reads|special_token_ids)"
    ):
        verify_text(tmp_path, tokenizer)
    path.unlink()
    with pytest.raises(ExportError, match="failed verification: its tokenizer: "):
        verify_text(tmp_path, tokenizer)


def test_an_export_whose_text_differs_leaves_nothing(
    quick_tracing, toy_preset, toy_vocabulary, toy_merges, tmp_path, monkeypatch
):
    """Whatever goes wrong between the tokenizer and its files."""
    save = Tokenizer.save

    def save_another(tokenizer, folder):
        return save(Tokenizer(toy_vocabulary, toy_merges[:-1]), folder)

    monkeypatch.setattr(export.Tokenizer, "save", save_another)
    monkeypatch.setattr("exporter.text_check.PROBES", ("x brown",))
    with pytest.raises(ExportError, match="its tokenizer reads 'x brown' as other tokens"):
        export_bundle(toy_preset, tmp_path / "b", verify="graph")
    assert list(tmp_path.iterdir()) == []
    export_bundle(toy_preset, tmp_path / "b", verify="none")


def test_the_folders_are_those_of_the_maker():
    assert sorted(path.name for path in FOLDERS.iterdir()) == sorted(maker.FIXTURES)
