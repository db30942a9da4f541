"""A comparison as a picture: the one file that imports matplotlib."""

from __future__ import annotations

import io
from typing import Any

from bench.comparison_result import Comparison, SystemResult
from bench.measure import Spread
from bench.system import Hardware

FIGURES = {"prefill_ms": "prefill, ms", "decode_ms_per_token": "decode, ms per token"}
INCHES = (6.5, 3.2)  # of one panel
BAR_SHARE = 0.8  # of the room of a case


def check_plotting() -> None:
    """Fails before the work rather than after it.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"--plot needs matplotlib ({error}); install it with: pip install matplotlib"
        ) from error


def plot_comparison(comparison: Comparison, hardware: Hardware) -> bytes:
    """A PNG: a row of panels for each precision, prefill on the left and decode on the right.

    Bars are medians over the baseline's, so that all cases fit one axis, with the milliseconds written
    on them; lines go from the least to the greatest value.
    """
    from matplotlib.figure import Figure

    precisions = comparison.precisions
    size = (INCHES[0] * len(FIGURES), INCHES[1] * len(precisions) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(precisions), len(FIGURES), squeeze=False)
    for row, precision in zip(panels, precisions, strict=True):
        for axes, (name, label) in zip(row, FIGURES.items(), strict=True):
            _draw(axes, comparison, precision, name)
            axes.set_title(f"{label}, {precision}")
        row[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    config, settings = comparison.config, comparison.settings
    figure.suptitle(
        f"{config.num_parameters:,} parameters, {settings.new_tokens} new tokens, {settings.threads} "
        f"threads, {settings.trials} trials\n{hardware}",
        fontsize="medium",
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _draw(axes: Any, comparison: Comparison, precision: str, name: str) -> None:
    cases, results = comparison.settings.cases, comparison.of_precision(precision)
    width = BAR_SHARE / len(results)
    for i, result in enumerate(results):
        places, heights, below, above = [], [], [], []
        for c, case in enumerate(cases):
            if not result.cases[case].trials:
                continue
            spread: Spread = getattr(result.cases[case], name)
            ratio = comparison.ratios(result, case)[name]
            if spread.median <= 0 or ratio <= 0:  # noise above the decode steps of a toy
                continue
            places.append(c + (i + 0.5) * width - BAR_SHARE / 2)
            heights.append(ratio)
            text = f" {spread.median:,.{0 if spread.median >= 100 else 1}f}"
            axes.text(places[-1], 0, text, rotation=90, ha="center", va="bottom", fontsize=7)
            below.append(ratio * (1 - spread.minimum / spread.median))
            above.append(ratio * (spread.maximum / spread.median - 1))
        axes.bar(
            places,
            heights,
            width,
            yerr=[below, above],
            label=result.name,
            color=_color(comparison, result),
            error_kw={"linewidth": 0.8},
        )
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.set_ylabel("× the baseline")
    axes.set_xticks(range(len(cases)), [f"{c.batch} × {c.prompt_tokens}" for c in cases])
    axes.set_xlabel("rows × prompt tokens")


def _color(comparison: Comparison, result: SystemResult) -> str:
    """One color for a system at all precisions."""
    families = list(dict.fromkeys(_family(other) for other in comparison.systems))
    return f"C{families.index(_family(result)) % 10}"


def _family(result: SystemResult) -> str:
    return result.name.replace(f"-{result.system.precision}", "")
