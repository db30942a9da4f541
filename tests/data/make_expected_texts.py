"""Makes `expected_texts.json`: `python -m tests.data.make_expected_texts`.

What the built-in preset writes, in each precision and by each sampler: new tokens of 200 prompts, made
by the code as it was before one engine served all calls (commit 6ffabc4). A change of the loop around
the model must not change one of them on the kind of CPU that they were made on; `tests/exporter/
test_expected_texts.py` compares. Made anew only where the graphs or the preset change, and then from a
commit whose loop is known to be right.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from runtime import Generator, samplers
from runtime.system.cpu_features import cpu_features

EXPECTED = Path(__file__).parent / "expected_texts.json"
PRESET = "opt_tiny_en"
PRECISIONS = ("fp32", "int8", "int4")
THREADS = 2
LEAST_NEW_TOKENS, LENGTH_STEP = 8, 12
PROMPTS, LONG_PROMPTS, KERAS_PROMPTS = 200, 6, 40
SEED = 15
WORDS = (  # noqa: SIM905
    "the a function returns list of string value object import module if for in class method file "
    "argument default raise error type integer None True False and or not with when called example "
    "following number name new dictionary key sequence tuple bytes is are be used to by"
).split()

SAMPLERS: dict[str, samplers.Sampler] = {
    "greedy": samplers.GreedySampler(),
    "random": samplers.RandomSampler(seed=1),
    "top_k": samplers.TopKSampler(k=5, seed=2, temperature=0.9),
    "top_p": samplers.TopPSampler(p=0.8, seed=3),
    "beam": samplers.BeamSampler(num_beams=3),
    "contrastive": samplers.ContrastiveSampler(k=4, alpha=0.6),
}


def prompts() -> list[str]:
    """Texts of 0 to 14 words, and a few that are read in several parts."""
    generator = np.random.default_rng(SEED)
    counts = [*generator.integers(0, 15, PROMPTS - LONG_PROMPTS), *range(150, 270, 20)]
    return [" ".join(generator.choice(WORDS, count)) for count in counts]


def cpu_kind() -> list[str]:
    """What decides the kernels: sums of other kinds are rounded differently."""
    words = cpu_features().split()
    return [
        name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in words
    ]


def max_length(prompt_tokens: int) -> int:
    """Of a prompt: one of few lengths, so that prompts of several lengths can run as one batch."""
    return -(-(prompt_tokens + LEAST_NEW_TOKENS) // LENGTH_STEP) * LENGTH_STEP


def token_ids(generator: Any, texts: list[str], length: int) -> list[list[int]]:
    """New tokens of some texts, which run together."""
    results = generator.generate_results(texts, max_length=length)
    return [list(result.token_ids) for result in results]


def main() -> None:
    """Writes the file."""
    from exporter import OPTCausalLM, export_bundle

    texts = prompts()
    found: dict[str, dict[str, list[list[int]]]] = {}
    model = OPTCausalLM.from_preset(PRESET)
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            bundle = Path(folder) / precision
            export_bundle(PRESET, bundle, precision=precision)
            generator = Generator.from_bundle(bundle, threads=THREADS, packed_weights=False)
            lengths = [max_length(1 + len(generator.tokenizer.encode(text))) for text in texts]
            found[precision] = texts_of(generator, texts, lengths)
            print(precision)
    found["keras"] = texts_of(model, texts[:KERAS_PROMPTS], lengths)
    values = {"cpu": cpu_kind(), "prompts": texts, "max_lengths": lengths, "token_ids": found}
    EXPECTED.write_text(json.dumps(values, separators=(",", ":")) + "\n", "utf-8")


def texts_of(generator: Any, texts: list[str], lengths: list[int]) -> dict[str, list[list[int]]]:
    """New tokens of each text alone, by each sampler."""
    found = {}
    for name, sampler in SAMPLERS.items():
        generator.compile(sampler=sampler)
        pairs = zip(texts, lengths, strict=False)
        found[name] = [token_ids(generator, [text], length)[0] for text, length in pairs]
    return found


if __name__ == "__main__":
    main()
