"""Compares an exported bundle with transformers and keras-hub on the same random weights.

`python -m tests.conformance.parity SHAPE [--target cpu]` prints what the test of that shape asserts.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter import OPTCausalLM, export_bundle
from exporter.presets.table import BUILTIN_PRESETS
from graphs.contract import ModelConfig
from graphs.manifest import TARGETS
from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.probe import teacher_forced_logits
from runtime.session import SessionDecoder

PROMPTS, STEPS, BATCH = 20, 64, 8
MAX_PROMPT = 40

SHAPES = {
    "toy": ModelConfig(
        vocabulary_size=320,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=128,
        max_sequence_length=128,
    ),
    "opt_125m": BUILTIN_PRESETS["opt_125m_en"].config,
    "opt_1.3b_two_layers": ModelConfig(
        **{**BUILTIN_PRESETS["opt_1.3b_en"].config.to_dict(), "num_layers": 2}
    ),
}


@dataclass(frozen=True)
class Parity:
    """What a comparison with one reference found.

    Attributes:
        reference: its name.
        logits_std: standard deviation of its logits.
        prefill_difference: maximum absolute logit difference after the prompts.
        decode_difference: the same over all decode steps.
        single_matches, batch_matches: prompts whose greedy tokens are all identical, generated one
            by one and in ragged batches.
    """

    reference: str
    logits_std: float
    prefill_difference: float
    decode_difference: float
    single_matches: int
    batch_matches: int


def make_transformers_model(config: ModelConfig, folder: Path) -> None:
    """A random OPT written by transformers, with biases and norms that are not at their start."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.hidden_dim,
            num_hidden_layers=config.num_layers,
            ffn_dim=config.intermediate_dim,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_sequence_length,
            word_embed_proj_dim=config.hidden_dim,
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
        elif "layer_norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    model.save_pretrained(folder)


def random_prompts(config: ModelConfig) -> list[np.ndarray]:
    """Prompts of different lengths."""
    generator = np.random.default_rng(7)
    lengths = generator.integers(1, MAX_PROMPT, PROMPTS)
    return [generator.integers(4, config.vocabulary_size, n) for n in lengths]


def padded(rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Prompts as token dictionary with room for the steps."""
    token_ids = np.full((len(rows), MAX_PROMPT + STEPS), 1, np.int64)
    mask = np.zeros(token_ids.shape, bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return {"token_ids": token_ids, "padding_mask": mask}


def continuation(token_ids: np.ndarray, prompt: np.ndarray) -> list[int]:
    """The tokens that follow a prompt in a row of generated ids."""
    return token_ids[len(prompt) : len(prompt) + STEPS].tolist()


def greedy_batches(model, prompts: list[np.ndarray], size: int) -> list[list[int]]:
    """Greedy tokens of anything with Keras's `generate` on token dictionaries."""
    tokens = []
    for start in range(0, len(prompts), size):
        rows = prompts[start : start + size]
        result = model.generate(padded(rows), stop_token_ids=None)["token_ids"]
        tokens += [continuation(row, prompt) for row, prompt in zip(result, rows, strict=True)]
    return tokens


class TransformersReference:
    """Hugging Face transformers on torch."""

    name = "transformers"

    def __init__(self, folder: Path) -> None:
        from transformers import OPTForCausalLM

        self._model = OPTForCausalLM.from_pretrained(folder).eval()

    def greedy(self, prompts: list[np.ndarray]) -> list[list[int]]:
        import torch

        tokens = []
        for prompt in prompts:
            ids = torch.tensor(prompt[None])
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=STEPS,
                min_new_tokens=STEPS,
                eos_token_id=None,
                pad_token_id=1,
            )
            tokens.append(continuation(output[0].numpy(), prompt))
        return tokens

    def logits(self, token_ids: np.ndarray) -> np.ndarray:
        """Logits [1, sequence, vocabulary] of [1, sequence]."""
        import torch

        with torch.no_grad():
            return self._model(torch.tensor(token_ids)).logits.numpy()


class KerasHubReference:
    """keras-hub on TensorFlow."""

    name = "keras-hub"

    def __init__(self, folder: Path) -> None:
        import keras_hub

        self._model = keras_hub.models.OPTCausalLM.from_preset(str(folder), preprocessor=None)
        self._model.compile(sampler="greedy")

    def greedy(self, prompts: list[np.ndarray]) -> list[list[int]]:
        return greedy_batches(self._model, prompts, 1)

    def logits(self, token_ids: np.ndarray) -> np.ndarray:
        """Logits [1, sequence, vocabulary] of [1, sequence]."""
        ids = token_ids.astype(np.int32)
        return np.asarray(self._model({"token_ids": ids, "padding_mask": np.ones_like(ids)}))


def compare(config: ModelConfig, workspace: Path, target: str = "portable") -> list[Parity]:
    """Exports one random checkpoint for a target and compares it with both references."""
    hub_folder, transformers_folder = workspace / "keras", workspace / "transformers"
    make_transformers_model(config, transformers_folder)
    OPTCausalLM.from_preset(str(transformers_folder)).save_to_preset(hub_folder)
    export_bundle(transformers_folder, workspace / "bundle", target=target)

    prompts = random_prompts(config)
    generator = Generator.from_bundle(workspace / "bundle")
    generator.compile(sampler="greedy")
    single, batched = greedy_batches(generator, prompts, 1), greedy_batches(generator, prompts, BATCH)
    decoder = SessionDecoder(load_bundle(workspace / "bundle"))
    references = (TransformersReference(transformers_folder), KerasHubReference(hub_folder))
    return [_compare_one(reference, decoder, prompts, single, batched) for reference in references]


def _compare_one(reference, decoder, prompts, single, batched) -> Parity:
    expected = reference.greedy(prompts)
    prefill_difference = decode_difference = 0.0
    deviations = []
    for prompt, tokens in zip(prompts[:4], expected[:4], strict=True):
        row = np.array([[*prompt, *tokens]])
        wanted = reference.logits(row)[0, len(prompt) - 1 :]
        found = teacher_forced_logits(decoder, row, np.array([len(prompt)], np.int32), STEPS)[0]
        differences = np.abs(wanted - found).max(axis=-1)
        prefill_difference = max(prefill_difference, float(differences[0]))
        decode_difference = max(decode_difference, float(differences[1:].max()))
        deviations.append(float(wanted.std()))
    return Parity(
        reference=reference.name,
        logits_std=min(deviations),
        prefill_difference=prefill_difference,
        decode_difference=decode_difference,
        single_matches=sum(a == b for a, b in zip(single, expected, strict=True)),
        batch_matches=sum(a == b for a, b in zip(batched, expected, strict=True)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--target", choices=TARGETS, default="portable")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as workspace:
        for parity in compare(SHAPES[options.shape], Path(workspace), options.target):
            print(parity)


if __name__ == "__main__":
    main()
