"""The built-in presets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BuiltinPreset:
    """A preset known by name.

    Attributes:
        name: as in Keras.
        description: one line for people.
        kaggle_handle: `user/model/framework/variation/version` on Kaggle; `None` if it ships here.
        folder: where it ships inside this package, if it does.
    """

    name: str
    description: str
    kaggle_handle: str | None = None
    folder: Path | None = None


_HERE = Path(__file__).parent

# Keras leaves out opt_350m, whose layers differ (norms after the residual, a narrow embedding);
# the larger models have no preset on Keras's side.
BUILTIN_PRESETS = {
    preset.name: preset
    for preset in (
        BuiltinPreset(
            "opt_tiny_en",
            "4-layer model for trying things out, trained on Python's own documentation",
            folder=_HERE / "opt_tiny_en",
        ),
        BuiltinPreset("opt_125m_en", "12 layers, 125 million", "keras/opt/keras/opt_125m_en/3"),
        BuiltinPreset("opt_1.3b_en", "24 layers, 1.3 billion", "keras/opt/keras/opt_1.3b_en/3"),
        BuiltinPreset("opt_2.7b_en", "32 layers, 2.7 billion", "keras/opt/keras/opt_2.7b_en/3"),
        BuiltinPreset("opt_6.7b_en", "32 layers, 6.7 billion", "keras/opt/keras/opt_6.7b_en/3"),
    )
}
