"""`cls.presets`: the built-in presets of a class, in the form of keras-hub."""

from __future__ import annotations

from typing import Any

from exporter.presets.table import BUILTIN_PRESETS


class PresetListing:
    """A class attribute that lists the built-in presets, a new dictionary each time.

    By name: `metadata` (`description`, `params`, `path`) and `kaggle_handle`, `None` where the preset
    ships with this package. All classes of the OPT family have the same presets.
    """

    def __get__(self, instance: object, owner: type | None = None) -> dict[str, dict[str, Any]]:
        return {
            preset.name: {
                "metadata": {
                    "description": preset.description,
                    "params": preset.config.num_parameters,
                    "path": "opt",
                },
                "kaggle_handle": preset.kaggle_handle,
            }
            for preset in BUILTIN_PRESETS.values()
        }
