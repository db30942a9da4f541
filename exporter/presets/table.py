"""The built-in presets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.foreign_files import OWN_FOLDER
from graphs.contract import ModelConfig


@dataclass(frozen=True)
class BuiltinPreset:
    """A preset known by name.

    Attributes:
        name: as in Keras.
        description: one line for people.
        config: the model's sizes, known ahead of the download.
        kaggle_handle: where Keras downloads it from; `None` if it ships here.
        hugging_face_handle: the alternative source; `None` if it ships here.
        folder: where it ships inside this package, if it does.
    """

    name: str
    description: str
    config: ModelConfig
    kaggle_handle: str | None = None
    hugging_face_handle: str | None = None
    folder: Path | None = None


def _sizes(layers: int, heads: int, width: int) -> ModelConfig:
    """Sizes that the published OPT models share but for depth, heads and width."""
    return ModelConfig(
        vocabulary_size=50272,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=2048,
    )


TINY = ModelConfig(
    vocabulary_size=4096,
    num_layers=4,
    num_heads=4,
    hidden_dim=256,
    intermediate_dim=1024,
    max_sequence_length=512,
)

# Keras leaves out opt_350m, whose layers differ (norms after the residual, a narrow embedding);
# the larger models have no preset on Keras's side.
BUILTIN_PRESETS = {
    preset.name: preset
    for preset in (
        BuiltinPreset(
            "opt_tiny_en",
            "4 layers, 4 million parameters, trained on Python's own documentation",
            TINY,
            folder=OWN_FOLDER,
        ),
        BuiltinPreset(
            "opt_125m_en",
            "12 layers, 125 million",
            _sizes(12, 12, 768),
            "kaggle://keras/opt/keras/opt_125m_en/3",
            "hf://keras/opt_125m_en",
        ),
        BuiltinPreset(
            "opt_1.3b_en",
            "24 layers, 1.3 billion",
            _sizes(24, 32, 2048),
            "kaggle://keras/opt/keras/opt_1.3b_en/3",
            "hf://keras/opt_1.3b_en",
        ),
        BuiltinPreset(
            "opt_2.7b_en",
            "32 layers, 2.7 billion",
            _sizes(32, 32, 2560),
            "kaggle://keras/opt/keras/opt_2.7b_en/3",
            "hf://keras/opt_2.7b_en",
        ),
        BuiltinPreset(
            "opt_6.7b_en",
            "32 layers, 6.7 billion",
            _sizes(32, 32, 4096),
            "kaggle://keras/opt/keras/opt_6.7b_en/3",
            "hf://keras/opt_6.7b_en",
        ),
    )
}
