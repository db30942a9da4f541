"""Makes the toy bundles and `toy_expected.json`: `python -m tests.data.make_toy_bundle`.

The bundles are one random OPT of two layers: `toy_bundle/` in fp32 for target portable, and
`toy_bundle_cuda/` in fp16 for target cuda. The expected numbers are Keras's own, from the training
forward pass over the whole sequence, which knows no cache: what the runtime computes step by step over
a cache has to equal them. Weights come from NumPy with a fixed seed, so that a rerun gives the same
weights and numbers; the names of the graphs' nodes differ between runs of tf2onnx.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from exporter import OPTBackbone, OPTCausalLM, OPTCausalLMPreprocessor, OPTTokenizer, export_bundle
from runtime.tokenization.tokenizer import byte_alphabet

HERE = Path(__file__).parent
BUNDLE, CUDA_BUNDLE = HERE / "toy_bundle", HERE / "toy_bundle_cuda"
EXPECTED = HERE / "toy_expected.json"

SEED = 20
# OPT's own 0.02 makes greedy output repeat one token for ever, as large biases of the norms do.
STDDEV, VECTOR_STDDEV = 0.4, 0.05
POSITIONS = 64
SEQUENCE_LENGTH = 48  # the default of max_length; less than the positions, to tell them apart
NEW_TOKENS = 24
# The smallest gap between the two best logits of any expected step. Far above float32's rounding,
# so that another order of additions cannot change the expected tokens.
SMALLEST_GAP = 1e-3

SPECIAL_TOKENS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
MERGES = ["h e", "i n", "Ġ t", "Ġt he", "r e", "Ġ a", "in g", "Ã ©", "ð Ł", "ðŁ ĺ", "Ġ q", "u i"]
MERGES += ["c k", "ui ck", "Ġq uick"]
TEXTS = ["", "t", "The quick", "the king ate in the inn", "Zoë, café: 😀 " * 2]


def make_tokenizer() -> OPTTokenizer:
    """Special tokens, all 256 bytes in the order of their characters, then the merges."""
    vocabulary = dict(SPECIAL_TOKENS)
    for token in [*sorted(byte_alphabet()), *(rule.replace(" ", "") for rule in MERGES)]:
        vocabulary[token] = len(vocabulary)
    return OPTTokenizer(vocabulary, MERGES)


def make_model() -> OPTCausalLM:
    """The toy model; its vocabulary has some rows that no token uses, as OPT's own has."""
    backbone = OPTBackbone(
        vocabulary_size=300,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=64,
        dropout=0.0,
        max_sequence_length=POSITIONS,
    )
    generator = np.random.default_rng(SEED)
    for variable in backbone.variables:
        stddev = STDDEV if len(variable.shape) > 1 else VECTOR_STDDEV
        values = stddev * generator.standard_normal(variable.shape)
        variable.assign((values + variable.path.endswith("gamma")).astype(np.float32))
    preprocessor = OPTCausalLMPreprocessor(make_tokenizer(), sequence_length=SEQUENCE_LENGTH)
    return OPTCausalLM(backbone, preprocessor, name="opt_toy")


def full_logits(model: OPTCausalLM, token_ids: list[int]) -> np.ndarray:
    """Logits [length, vocabulary] of the training forward pass."""
    return np.asarray(model(_inputs(token_ids)))[0]


def greedy(model: OPTCausalLM, prompt: list[int]) -> list[int]:
    """The continuation by the largest logit, the whole sequence computed anew for each token."""
    token_ids = list(prompt)
    while len(token_ids) < min(POSITIONS, len(prompt) + NEW_TOKENS):
        last = full_logits(model, token_ids)[-1]
        second, first = np.sort(last)[-2:]
        if first - second < SMALLEST_GAP:
            raise ValueError(f"{token_ids} has two best tokens within {first - second}")
        token_ids.append(int(last.argmax()))
    return token_ids[len(prompt) :]


def expected(model: OPTCausalLM) -> dict[str, Any]:
    """What Keras says about several prompts: short, long, and as long as the model takes."""
    tokenizer = model.preprocessor.tokenizer
    prompts = [[tokenizer.start_token_id, *tokenizer.encode(text)] for text in TEXTS]
    generator = np.random.default_rng(SEED + 1)
    for length in (50, POSITIONS - 1):
        prompts.append(generator.integers(0, len(tokenizer.vocabulary), length).tolist())
    cases = []
    for i, prompt in enumerate(prompts):
        continuation = greedy(model, prompt)
        logits = full_logits(model, [*prompt, *continuation[:-1]])
        cases.append(
            {
                "text": TEXTS[i] if i < len(TEXTS) else None,
                "prompt": prompt,
                "continuation": continuation,
                "logits_after_prompt": _numbers(logits[len(prompt) - 1]),
                "logits_at_end": _numbers(logits[-1]),
            }
        )
    hidden = np.asarray(model.backbone(_inputs(prompts[2])))[0]
    return {"cases": cases, "hidden_states": {"case": 2, "values": [_numbers(row) for row in hidden]}}


def _inputs(token_ids: list[int]) -> dict[str, np.ndarray]:
    ids = np.array([token_ids], np.int32)
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}


def _numbers(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def main() -> None:
    """Writes all."""
    model = make_model()
    export_bundle(model, BUNDLE, target="portable", verify="full", force=True)
    export_bundle(model, CUDA_BUNDLE, target="cuda", precision="fp16", verify="full", force=True)
    text = json.dumps(expected(model), ensure_ascii=False).replace('{"text"', '\n{"text"')
    EXPECTED.write_text(text + "\n", encoding="utf-8")
    for path in [*sorted(BUNDLE.iterdir()), *sorted(CUDA_BUNDLE.iterdir()), EXPECTED]:
        print(f"{path.stat().st_size:8} {path.relative_to(HERE)}")


if __name__ == "__main__":
    main()
