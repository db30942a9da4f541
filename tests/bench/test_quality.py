"""What precision costs: known differences, both graphs, the command."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict

import numpy as np
import pytest

from bench.logit_error import LogitErrorSum
from bench.perplexity import measure_perplexity
from bench.quality import check_comparable, main, measure_quality
from exporter.presets.text_rows import pack_rows
from graphs.manifest import FileEntry
from runtime.bundle import load_bundle
from tests.bench.fixed_decoder import FixedDecoder
from tests.runtime.toy import edit_manifest

TEXT = "the king ate in the inn; the inn ate the king. Zoë, café: 😀\n" * 6


# === Logit errors ===


def test_known_differences():
    found = LogitErrorSum()
    reference = np.array([[0.0, 2.0, 0.0, 2.0], [4.0, 0.0, 0.0, 4.0]], np.float32)
    found.add(reference[:1] + np.float32([0, 0, 0, 1]), reference[:1])  # another choice
    found.add(reference[1:] + np.float32([0, 0, -3, 0]), reference[1:])
    result = found.result()
    # The logits' mean is 1.5 and their mean square 5.
    deviation = math.sqrt(5 - 1.5**2)
    assert result.places == 2
    assert result.mean == pytest.approx(4 / 8 / deviation)
    assert result.maximum == pytest.approx(3 / deviation)
    assert result.same_choice == 0.5


def test_places_of_any_shape_add_up():
    generator = np.random.default_rng(0)
    reference = generator.normal(5, 2, (3, 4, 50)).astype(np.float32)
    logits = reference + generator.normal(0, 0.1, reference.shape).astype(np.float32)
    whole, parts = LogitErrorSum(), LogitErrorSum()
    whole.add(logits, reference)
    for part, expected in zip(logits, reference, strict=True):
        parts.add(part, expected)
    assert whole.result().places == 12
    assert parts.result().mean == pytest.approx(whole.result().mean, rel=1e-12)
    expected = np.abs(logits - reference).mean() / reference.std()
    assert whole.result().mean == pytest.approx(expected, rel=1e-5)


# === Several decoders on the same rows ===


class TableDecoder(FixedDecoder):
    """Looks the logits up by the last token fed."""

    def __init__(self, table):
        super().__init__(lambda tokens: table[tokens], len(table))


def test_bundles_are_set_against_the_reference():
    table = np.random.default_rng(1).normal(size=(20, 20)).astype(np.float32)
    shifted = table.copy()
    shifted[7] = -table[7]  # another choice after token 7, which is one of eight
    decoders = {"exact": TableDecoder(table), "same": TableDecoder(table), "off": TableDecoder(shifted)}
    inputs = np.array([[1, 2, 7, 4], [5, 6, 3, 8]])
    labels = np.array([[2, 7, 4, 9], [6, 3, 8, 9]])
    found = measure_quality(decoders, "exact", inputs, labels, batch=1)
    for name, decoder in decoders.items():
        assert decoder.fed == [(1, 1)] * 8
        alone = measure_perplexity(decoder, inputs, labels)
        assert found[name].perplexity.mean_loss == pytest.approx(alone.mean_loss, rel=1e-6)
    assert found["same"].logit_error.same_choice == 1.0
    assert found["same"].logit_error.maximum == 0
    assert found["off"].logit_error.same_choice == 7 / 8
    reference = table[inputs.ravel()]
    greatest = 2 * np.abs(table[7]).max() / reference.std()
    assert found["off"].logit_error.maximum == pytest.approx(greatest, rel=1e-5)


def test_chunks_predict_the_token_after_each():
    table = np.random.default_rng(2).normal(size=(20, 20)).astype(np.float32)
    decoder = TableDecoder(table)
    inputs = np.array([[1, 2, 3, 4, 5]])
    labels = np.array([[2, 3, 4, 5, 6]])
    found = measure_quality({"exact": decoder}, "exact", inputs, labels, chunk=2)["exact"]
    assert decoder.fed == [(1, 2), (1, 2)]
    after = table[[2, 4]].astype(np.float64)
    chosen = after[[0, 1], [3, 5]] - np.log(np.exp(after).sum(axis=1))
    assert found.perplexity.mean_loss == pytest.approx(-chosen.mean(), rel=1e-6)
    assert found.perplexity.tokens == found.logit_error.places == 2


def test_rows_shorter_than_a_chunk():
    decoder = TableDecoder(np.zeros((4, 4), np.float32))
    tokens = np.array([[1, 2, 3]])
    with pytest.raises(ValueError, match="--chunk 4 is more than the 3 tokens of a row"):
        measure_quality({"a": decoder}, "a", tokens, tokens, chunk=4)


def test_both_graphs_agree(decoder):
    tokens = np.random.default_rng(4).integers(0, 300, (2, 25))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    alone = measure_quality({"a": decoder}, "a", inputs, labels)["a"].perplexity
    chunked = measure_quality({"a": decoder}, "a", inputs, labels, chunk=24)["a"].perplexity
    cache = decoder.new_cache(2, 24)
    logits = decoder.append(cache, inputs, np.full(2, 24, np.int32)).logits.astype(np.float64)
    chosen = logits[[0, 1], labels[:, -1]] - np.log(np.exp(logits).sum(axis=1))
    assert chunked.mean_loss == pytest.approx(-chosen.mean(), rel=1e-6)
    assert (alone.tokens, chunked.tokens) == (48, 2)


# === The command ===


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_command(toy_bundle, toy_bundle_copy, bundle, decoder, text, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    arguments = ["--reference", str(toy_bundle), str(toy_bundle_copy), "--text", str(text)]
    assert main([*arguments, "--threads", "1", "--json", str(figures)]) == 0
    inputs, labels = pack_rows(bundle.tokenizer, [TEXT], 64)
    value = measure_perplexity(decoder, inputs, labels).value
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert rows[0] == [
        "bundle",
        "precision",
        "MB",
        "perplexity",
        "of reference",
        "same choice",
        "logit error",
        "greatest",
    ]
    assert rows[2][0] == str(toy_bundle)
    same = ["fp32", "0.2", f"{value:.4f}", "+0.00%", "100.00%", "0", "0"]
    assert rows[3] == [str(toy_bundle_copy), *same]
    assert lines[5].startswith(
        f"{inputs.size} tokens predicted ({len(inputs)} rows of 64; text: {text}"
    )
    assert "fed through the decode graph" in lines[5]

    values = json.loads(figures.read_text(encoding="utf-8"))
    assert [entry["bundle"] for entry in values["bundles"]] == [str(toy_bundle), str(toy_bundle_copy)]
    assert values["bundles"][1]["perplexity"] == pytest.approx(value, rel=1e-6)
    assert values["bundles"][1]["tokens"] == inputs.size
    assert values["bundles"][1]["logit_error"]["same_choice"] == 1.0


def test_fewer_rows_in_chunks_as_json(toy_bundle, text, capsys):
    arguments = ["--reference", str(toy_bundle), str(toy_bundle), "--text", str(text)]
    assert main([*arguments, "--rows", "2", "--chunk", "16", "--threads", "1", "--json", "-"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["chunk"], values["text"]) == (16, str(text))
    (only,) = values["bundles"]  # the reference, named twice
    assert only["tokens"] == 2 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunk", "0"], "--chunk must be at least 1, got 0"),
        (["--rows", "0"], "--rows must be at least 1, got 0"),
        (["--json", "no/folder/x.json"], "--json: there is no folder no/folder to write into"),
        (["no/bundle"], "no/bundle is no bundle: it does not exist"),
    ],
)
def test_bad_options(toy_bundle, text, capsys, options, message):
    arguments = ["--reference", str(toy_bundle), "--text", str(text), str(toy_bundle)]
    assert main([*arguments, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("quality: ")
    assert message in error


def altered(folder, **values):
    edit_manifest(folder, lambda manifest: manifest.update(values))
    return load_bundle(folder)


def test_bundles_that_cannot_be_compared(toy_bundle_copy, bundle, tmp_path):
    manifest = json.loads((toy_bundle_copy / "manifest.json").read_text(encoding="utf-8"))
    without = altered(shutil.copytree(toy_bundle_copy, tmp_path / "without"), tokenizer=[])
    with pytest.raises(ValueError, match="without has no tokenizer, which text needs"):
        check_comparable("without", without, bundle)
    model = {**manifest["model"], "max_sequence_length": 60}
    larger = altered(shutil.copytree(toy_bundle_copy, tmp_path / "larger"), model=model)
    with pytest.raises(ValueError, match="larger and the reference hold models of different sizes"):
        check_comparable("larger", larger, bundle)
    merges = toy_bundle_copy / "merges.txt"
    lines = merges.read_text(encoding="utf-8").splitlines(keepends=True)
    merges.write_text("".join(lines[:-1]), encoding="utf-8")
    files = [asdict(FileEntry.of(toy_bundle_copy / e["name"])) for e in manifest["tokenizer"]]
    other = altered(toy_bundle_copy, tokenizer=files)
    with pytest.raises(ValueError, match="other and the reference have different tokenizers"):
        check_comparable("other", other, bundle)
