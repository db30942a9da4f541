"""CTranslate2: `Generator.generate_batch` over its own format; the option `compute_type` is its own.

Weights are stored as they are computed with. Prompts are given as tokens, so the converted vocabulary
is made of the ids themselves: token `"17"` has id 17.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.workers.protocol import Conversion, Job, Model, serve

UNKNOWN_TOKEN = "3"  # OPT's; a converted model must name one


def convert(conversion: Conversion) -> None:
    """Converts a Hugging Face folder by CTranslate2's own converter."""
    from ctranslate2.converters import TransformersConverter

    config = json.loads(Path(conversion.source, "config.json").read_text(encoding="utf-8"))
    tokenizer = _tokenizer_of_ids(config)

    class Converter(TransformersConverter):
        def load_tokenizer(self, *arguments: Any, **options: Any) -> Any:
            return tokenizer

    converter = Converter(conversion.source)
    quantization = conversion.options["compute_type"]
    converter.convert(conversion.target, quantization=quantization, force=True)


def _tokenizer_of_ids(config: dict[str, Any]) -> SimpleNamespace:
    """What the converter asks of a tokenizer; the checkpoints have none."""
    vocabulary = {str(i): i for i in range(config["vocab_size"])}
    return SimpleNamespace(
        get_vocab=lambda: vocabulary,
        bos_token=str(config["bos_token_id"]),
        eos_token=str(config["eos_token_id"]),
        unk_token=UNKNOWN_TOKEN,
    )


def load(job: Job) -> Model:
    """See `bench.workers.protocol.serve`."""
    import ctranslate2
    import numpy as np

    generator = ctranslate2.Generator(
        job.checkpoint,
        device="cpu",
        compute_type=job.options["compute_type"],
        intra_threads=job.threads,
    )

    def generate(token_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        results = generator.generate_batch(
            [[str(token) for token in row] for row in token_ids],
            max_length=new_tokens,
            # No token ends a row. `min_length` would keep rows going by banning the end token.
            end_token=[],
            # The prompt is computed at once; otherwise it would go through the decoding loop.
            include_prompt_in_result=False,
            beam_size=1,
            sampling_topk=1,
        )
        return [result.sequences_ids[0] for result in results]

    def logits(token_ids: list[list[int]], places: int) -> Any:
        return np.array(generator.forward_batch(token_ids))[:, -places:]

    return Model(generate, logits)


if __name__ == "__main__":
    serve(load, ("ctranslate2", "numpy"), convert)
