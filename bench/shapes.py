"""The sizes that random checkpoints are made in: those of the built-in presets."""

from __future__ import annotations

from exporter.presets.table import BUILTIN_PRESETS

SHAPES = {name.removesuffix("_en"): preset.config for name, preset in BUILTIN_PRESETS.items()}
