"""LoRA adapters, as `peft`, keras-hub and this project write them: read, and merged as weights stream."""
