"""Makes the embedded preset `opt_tiny_en`: `python -m exporter.presets.train_tiny OUTPUT`.

Trains a byte-level BPE and a small OPT with this project's own `fit()` on `corpus.documents()`, and
prints the perplexity on the held-out documents. The weights are stored in float16.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

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
from runtime.command import CommandParser

SEQUENCE_LENGTH = TINY.max_sequence_length
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's, in its order


@dataclass(frozen=True)
class TrainingPhase:
    """One run over the training rows: optimizer, passes, rows a step, highest learning rate."""

    optimizer: Literal["adamw", "muon"]
    epochs: int
    batch_size: int
    peak_rate: float


# Many small steps first; then Muon, which learns more from a token where the weights are no longer new.
PHASES = (TrainingPhase("adamw", 9, 2, 1e-3), TrainingPhase("muon", 3, 8, 2e-3))
DROPOUT = 0.1
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


def run_phase(
    model: OPTCausalLM,
    phase: TrainingPhase,
    rows: tuple[np.ndarray, np.ndarray],
    held_out_rows: tuple[np.ndarray, np.ndarray],
) -> None:
    """Trains a model without a preprocessor on packed rows."""
    steps = phase.epochs * math.ceil(len(rows[1]) / phase.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, alpha=0.02, warmup_target=phase.peak_rate, warmup_steps=min(100, steps // 10)
    )
    if phase.optimizer == "muon":
        optimizer = keras.optimizers.Muon(schedule, exclude_layers=["embedding"])
    else:
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)
    model.compile(optimizer=optimizer, jit_compile=False)  # XLA on CPU is the slower of the two here
    print(f"{phase}: {steps} steps", flush=True)
    model.fit(
        *as_examples(rows),
        batch_size=phase.batch_size,
        epochs=phase.epochs,
        validation_data=as_examples(held_out_rows),
        verbose=2,
    )


def train(output: Path, start: Path | None = None) -> None:
    """Trains, saves the preset and its facts (`TRAINING.json`) into a folder.

    Args:
        output: the folder.
        start: a preset that the earlier phases made; only the last one runs.
    """
    keras.utils.set_random_seed(1)
    training, held_out = split_documents()
    if start is None:
        tokenizer = train_tokenizer(training)
        backbone = OPTBackbone.from_sizes(TINY, dropout=DROPOUT)
    else:
        tokenizer = OPTTokenizer.from_preset(str(start))
        backbone = OPTBackbone.from_preset(str(start), dropout=DROPOUT)
    rows = pack_rows(tokenizer, training, SEQUENCE_LENGTH)
    held_out_rows = pack_rows(tokenizer, held_out, SEQUENCE_LENGTH)
    print(f"{rows[1].size} training tokens, {held_out_rows[1].size} held out", flush=True)

    preprocessor = OPTCausalLMPreprocessor(tokenizer, sequence_length=SEQUENCE_LENGTH)
    for phase in PHASES if start is None else PHASES[-1:]:
        model = OPTCausalLM(backbone)
        run_phase(model, phase, rows, held_out_rows)
        model.preprocessor = preprocessor
        save_causal_lm(model, output, weights_dtype="float16")

    # What is stored is what counts: read it back before measuring.
    saved = OPTCausalLM.from_preset(str(output))
    facts = {
        "parameters": saved.count_params(),
        "training_tokens": int(rows[1].size),
        "held_out_tokens": int(held_out_rows[1].size),
        "phases": [asdict(phase) for phase in PHASES],
        "python": platform.python_version(),
        "held_out_perplexity": round(perplexity(saved, held_out_rows), 4),
    }
    (output / "TRAINING.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts))
    for prompt in SAMPLE_PROMPTS:
        print(repr(saved.generate(prompt, max_length=60)))


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder to write the preset into")
    parser.add_argument("--start", type=Path, help="a preset to run only the last phase on")
    options = parser.parse_args()
    train(options.output, options.start)


if __name__ == "__main__":
    main()
