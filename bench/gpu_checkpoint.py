"""A checkpoint of random weights that transformers writes, made on the card: seconds, where NumPy takes
minutes. The weights are distributed as those of `bench.random_weights`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.random_weights import OPT_DEVIATION, VECTOR_DEVIATION
from exporter.presets.hugging_face_config import write_hugging_face_config
from graphs.contract import ModelConfig

DTYPE = "float16"  # as OPT's published checkpoints are
SHARD_SIZE = "5GB"


def write_random_checkpoint(
    config: ModelConfig,
    folder: Path,
    device: str,
    deviation: float = OPT_DEVIATION,
    seed: int = 0,
) -> None:
    """Writes a checkpoint of Hugging Face's format.

    Args:
        config: sizes of the model.
        folder: made if missing.
        device: torch's name of what makes the numbers; another gives others.
        deviation: standard deviation of the matrices; see `bench.make_checkpoint`.
        seed: same seed, device and sizes, same weights.
    """
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        values = OPTConfig.from_dict(write_hugging_face_config(config, DTYPE))
        make: Any = OPTForCausalLM._from_config
        model = make(values, dtype=getattr(torch, DTYPE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_vector = parameter.dim() == 1
            center = 1.0 if is_vector and name.endswith("norm.weight") else 0.0
            parameter.normal_(center, VECTOR_DEVIATION if is_vector else deviation)
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
