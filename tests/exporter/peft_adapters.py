"""Adapters that the `peft` package writes here for a small random OPT, in many configurations."""

from __future__ import annotations

import numpy as np

CONFIGURATIONS = {
    "two projections": {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 16},
    "all-linear": {"target_modules": "all-linear", "r": 3, "lora_alpha": 7},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "fc1"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 8, "^model.decoder.layers.1.*fc1": 2},
        "alpha_pattern": {r".*\.1\.self_attn\.(q|k)_proj": 32, "fc1": 5},
    },
    "rslora": {"target_modules": ["out_proj", "fc2"], "use_rslora": True, "bias": "lora_only"},
    "dora": {"target_modules": ["q_proj", "fc1", "fc2"], "use_dora": True},
    "regex": {
        "target_modules": r".*layers\.(0|1)\.self_attn\.(k|out)_proj",
        "fan_in_fan_out": True,
        "bias": "all",
    },
    "one layer": {
        "target_modules": ["q_proj", "fc2"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "token table": {"target_modules": ["embed_tokens", "v_proj"]},
    "head and tables by dora": {
        "target_modules": ["lm_head", "embed_tokens", "q_proj"],
        "use_dora": True,
    },
    "modules to save": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "lm_head", "final_layer_norm", "fc1"],
    },
    "lora bias": {"target_modules": ["q_proj", "k_proj", "fc1"], "lora_bias": True},
    "tokens, tied": {"target_modules": ["q_proj"], "trainable_token_indices": [200, 5, 9]},
    "tied tables": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "excluded": {"target_modules": ["fc1", "fc2"], "exclude_modules": ["layers.0.fc2"]},
}
# Where merging by peft alters tied tables in another way than its model computes: the other one with
# each, or both twice.
MERGED_OTHERWISE = ("token table", "head and tables by dora", "tied tables")


def write_adapter(base, folder, seed=0, **options):
    """Saves an adapter of a transformers model that is in the folder `base`, its values random."""
    import peft
    import torch
    import transformers

    generator = torch.Generator().manual_seed(seed)
    model = transformers.OPTForCausalLM.from_pretrained(base)
    settings = {"r": 4, **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.15 * noise)
    adapted.save_pretrained(folder)
    return folder


def load_with_peft(base, *folders):
    """peft's own model: the base with adapters loaded, the first one active."""
    import peft
    import transformers

    model = transformers.OPTForCausalLM.from_pretrained(base)
    adapted = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="0")
    for i, folder in enumerate(folders[1:], 1):
        adapted.load_adapter(folder, adapter_name=str(i))
    return adapted.eval()


def torch_logits(model, token_ids):
    """Logits [rows, length, vocabulary] of a torch model, without padding."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.from_numpy(np.asarray(token_ids, "int64"))).logits.numpy()
