"""Adapter folders of `peft`, written by hand."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file

from tests.exporter.torch_files import write_torch_file

PREFIX = "base_model.model.model.decoder."
Q0, FC1 = f"{PREFIX}layers.0.self_attn.q_proj", f"{PREFIX}layers.1.fc1"


def pair(module=Q0, inputs=32, outputs=32, rank=2, seed=0):
    """The tensors of a linear module's pair."""
    generator = np.random.default_rng(seed)
    return {
        f"{module}.lora_A.weight": generator.normal(0, 0.3, (rank, inputs)).astype("float32"),
        f"{module}.lora_B.weight": generator.normal(0, 0.3, (outputs, rank)).astype("float32"),
    }


def write_peft(folder, tensors=None, kind="safetensors", **settings):
    """An adapter's folder; by default of one pair, for the first layer's query projection."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = pair() if tensors is None else tensors
    if kind == "safetensors":
        save_file(tensors, str(folder / "adapter_model.safetensors"))
    else:
        write_torch_file(folder / "adapter_model.bin", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": sorted({name.split(".lora_")[0].split(".", 2)[2] for name in tensors}),
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
