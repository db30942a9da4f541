"""Makes the embedded preset `opt_tiny_en`: `python -m exporter.presets.train_tiny OUTPUT`.

Trains a byte-level BPE and a small OPT with this project's own `fit()` on `corpus.documents()`, and
prints the perplexity on the held-out documents. The weights are stored in float16.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as TokenizersBackend
from tokenizers import models, pre_tokenizers, trainers

from exporter.opt.backbone import OPTBackbone
from exporter.opt.causal_lm import OPTCausalLM
from exporter.opt.keras_backend import keras
from exporter.opt.preprocessor import OPTCausalLMPreprocessor
from exporter.opt.tokenizer import OPTTokenizer
from exporter.presets.corpus import split_documents
from exporter.presets.saving import save_causal_lm
from exporter.presets.table import TINY
from exporter.presets.text_rows import pack_rows

SEQUENCE_LENGTH = TINY.max_sequence_length
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's, in its order
SAMPLE_PROMPTS = ("The import statement", "Return a list of", "If the argument is")


def train_tokenizer(texts: Iterable[str]) -> OPTTokenizer:
    """A byte-level BPE of its own, split into words as OPT's."""
    backend = TokenizersBackend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=TINY.vocabulary_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [rule if isinstance(rule, str) else " ".join(rule) for rule in model["merges"]]
    return OPTTokenizer(vocabulary=model["vocab"], merges=merges)


def as_examples(rows: tuple[np.ndarray, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Packed rows as the inputs and labels of a model without a preprocessor."""
    token_ids, labels = rows
    return {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}, labels


def perplexity(model: OPTCausalLM, rows: tuple[np.ndarray, np.ndarray], batch_size: int = 8) -> float:
    """`exp` of the mean loss a token, by Keras's `evaluate()`."""
    preprocessor, model.preprocessor = model.preprocessor, None
    try:
        loss = model.evaluate(*as_examples(rows), batch_size=batch_size, verbose=0, return_dict=True)[
            "loss"
        ]
    finally:
        model.preprocessor = preprocessor
    return math.exp(loss)


def train(output: Path, epochs: int, batch_size: int, peak_rate: float, dropout: float) -> None:
    """Trains, saves the preset and its facts (`TRAINING.json`) into a folder."""
    keras.utils.set_random_seed(1)
    training, held_out = split_documents()
    tokenizer = train_tokenizer(training)
    rows = pack_rows(tokenizer, training, SEQUENCE_LENGTH)
    held_out_rows = pack_rows(tokenizer, held_out, SEQUENCE_LENGTH)
    steps = epochs * math.ceil(len(rows[1]) / batch_size)
    print(f"{rows[1].size} training tokens, {held_out_rows[1].size} held out, {steps} steps")

    model = OPTCausalLM(OPTBackbone.from_sizes(TINY, dropout=dropout))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, alpha=0.02, warmup_target=peak_rate, warmup_steps=min(100, steps // 10)
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0),
        jit_compile=False,  # XLA on CPU is the slower of the two here
    )
    model.fit(
        *as_examples(rows),
        batch_size=batch_size,
        epochs=epochs,
        validation_data=as_examples(held_out_rows),
        verbose=2,
    )
    model.preprocessor = OPTCausalLMPreprocessor(tokenizer, sequence_length=SEQUENCE_LENGTH)
    save_causal_lm(model, output, weights_dtype="float16")

    # What is stored is what counts: read it back before measuring.
    saved = OPTCausalLM.from_preset(str(output))
    facts = {
        "parameters": saved.count_params(),
        "training_tokens": int(rows[1].size),
        "held_out_tokens": int(held_out_rows[1].size),
        "epochs": epochs,
        "python": platform.python_version(),
        "held_out_perplexity": round(perplexity(saved, held_out_rows), 4),
    }
    (output / "TRAINING.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts))
    for prompt in SAMPLE_PROMPTS:
        print(repr(saved.generate(prompt, max_length=60)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder to write the preset into")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--peak-rate", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    options = parser.parse_args()
    train(options.output, options.epochs, options.batch_size, options.peak_rate, options.dropout)


if __name__ == "__main__":
    main()
