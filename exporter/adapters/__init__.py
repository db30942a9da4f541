"""LoRA adapters of `peft`, keras-hub and this project: read, and merged as weights stream."""
