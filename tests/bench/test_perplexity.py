"""Perplexity through the runtime: equal to Keras's, and right on models whose answer is known."""

from __future__ import annotations

import math
import platform

import numpy as np
import pytest

from bench import perplexity
from bench.perplexity import main, measure_perplexity
from exporter.presets.text_rows import pack_rows
from tests.bench.fixed_decoder import FixedDecoder
from tests.runtime.toy import edit_manifest

TEXT = "the king ate in the inn; the inn ate the king. Zoë, café: 😀\n" * 6


# === Rows ===


def test_rows_of_a_text(bundle):
    ids, end = bundle.tokenizer.encode("the king"), bundle.tokenizer.end_token_id
    stream = [*ids, end] * 2
    inputs, labels = pack_rows(bundle.tokenizer, ["the king", "", "the king"], 4)
    assert labels.ravel().tolist() == stream[: len(stream) // 4 * 4]
    assert inputs[0].tolist() == [end, *stream[:3]]  # OPT starts with its end token
    assert inputs[1].tolist() == [end, *stream[4:7]]


def test_a_short_text_is_one_row(bundle):
    ids = bundle.tokenizer.encode("the king")
    _, labels = pack_rows(bundle.tokenizer, ["the king"], 512)
    assert labels.tolist() == [[*ids, bundle.tokenizer.end_token_id]]


# === Perplexity ===


def test_a_model_that_knows_nothing():
    decoder = FixedDecoder(lambda tokens: np.zeros((len(tokens), 300)))
    tokens = np.arange(28).reshape(7, 4)
    found = measure_perplexity(decoder, tokens[:, :-1], tokens[:, 1:], batch=3)
    assert found.value == pytest.approx(300, rel=1e-12)
    assert (found.rows, found.row_tokens, found.tokens) == (7, 3, 21)
    assert decoder.fed == [(3, 3), (3, 3), (1, 3)]


def test_known_probabilities_of_extreme_logits():
    # Token t is followed by t + 1 with three times the probability of token 0, and by nothing else.
    def logits_of(tokens):
        logits = np.full((len(tokens), 300), -1e4)
        logits[:, 0] = 1e4
        logits[np.arange(len(tokens)), tokens + 1] = 1e4 + math.log(3)
        return logits

    inputs = np.array([[5, 6, 7, 8]])
    labels = np.array([[6, 7, 8, 0]])
    found = measure_perplexity(FixedDecoder(logits_of), inputs, labels)
    # float32 has steps of 0.001 at 10,000.
    expected = -(3 * math.log(0.75) + math.log(0.25)) / 4
    assert found.mean_loss == pytest.approx(expected, abs=1e-3)


def test_equals_keras_evaluate(decoder):
    pytest.importorskip("keras")
    from exporter.presets.train_tiny import perplexity as by_keras
    from tests.data.make_toy_bundle import make_model

    generator = np.random.default_rng(3)
    inputs = generator.integers(0, 300, (5, 40))
    labels = np.concatenate([inputs[:, 1:], generator.integers(0, 300, (5, 1))], axis=1)
    rows = (inputs, labels)
    expected = by_keras(make_model(), rows, batch_size=5)
    found = measure_perplexity(decoder, inputs, labels, batch=2)
    assert found.value == pytest.approx(expected, rel=2e-6)


def test_batches_change_nothing(decoder):
    tokens = np.random.default_rng(4).integers(0, 300, (5, 30))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    one = measure_perplexity(decoder, inputs, labels, batch=1)
    four = measure_perplexity(decoder, inputs, labels, batch=4)
    assert one.mean_loss == pytest.approx(four.mean_loss, rel=1e-6)


# === The command ===


def test_command_on_a_text(toy_bundle, bundle, decoder, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    assert main([str(toy_bundle), "--text", str(path), "--batch", "3", "--threads", "1"]) == 0
    inputs, labels = pack_rows(bundle.tokenizer, [TEXT], 64)  # the model's positions
    assert len(inputs) > 3
    value = measure_perplexity(decoder, inputs, labels, batch=3).value
    assert capsys.readouterr().out == (
        f"perplexity {value:.4f} of {inputs.size} tokens ({len(inputs)} rows of 64; text: {path})\n"
    )


def test_command_on_the_held_out_text(toy_bundle, bundle, decoder, monkeypatch, capsys):
    from exporter.presets import corpus

    held_out = ["first of the held out", "second of the held out"]
    monkeypatch.setattr(corpus, "split_documents", lambda: (["training"] * 9, held_out))
    assert main([str(toy_bundle), "--threads", "1"]) == 0
    inputs, labels = pack_rows(bundle.tokenizer, held_out, 64)
    value = measure_perplexity(decoder, inputs, labels).value
    origin = f"held-out documentation of Python {platform.python_version()}"
    assert capsys.readouterr().out == (
        f"perplexity {value:.4f} of {inputs.size} tokens (1 rows of {inputs.size}; text: {origin})\n"
    )


def test_rows_are_no_longer_than_the_training_rows(toy_bundle, tmp_path, monkeypatch, capsys):
    assert perplexity.ROW_TOKENS == 512
    monkeypatch.setattr(perplexity, "ROW_TOKENS", 8)
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    assert main([str(toy_bundle), "--text", str(path), "--threads", "1"]) == 0
    assert " rows of 8; text: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", [], "there is no text to pack"),
        ("x", ["--batch", "0"], "--batch must be at least 1, got 0"),
        ("x", ["--device", "tpu"], "device must be one of auto, cpu, cuda and"),
        (None, [], "No such file or directory"),
    ],
)
def test_bad_input(toy_bundle, tmp_path, capsys, content, options, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_text(content)
    assert main([str(toy_bundle), "--text", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("perplexity: ")
    assert message in error


def test_bundle_without_tokenizer(toy_bundle_copy, capsys):
    edit_manifest(toy_bundle_copy, lambda values: values.update(tokenizer=[]))
    assert main([str(toy_bundle_copy)]) == 2
    error = capsys.readouterr().err
    assert error == f"perplexity: {toy_bundle_copy} has no tokenizer, which text needs\n"
