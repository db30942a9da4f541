"""A comparison as a Markdown table."""

from __future__ import annotations

from bench.comparison import Comparison
from bench.measure import Spread
from bench.system import Hardware


def format_comparison(comparison: Comparison, hardware: Hardware) -> str:
    """The comparison as Markdown."""
    config, settings, base = comparison.config, comparison.settings, comparison.baseline
    rows = [
        [
            "system",
            "prefill ms",
            "decode ms/token",
            "whole s",
            "first call s",
            "load s",
            "peak MB",
            "same tokens",
        ]
    ]
    for system in comparison.systems:
        peak = system.peak_memory_bytes
        rows.append(
            [
                system.name,
                _cell(system.prefill_ms, base.prefill_ms, 1),
                _cell(system.decode_ms_per_token, base.decode_ms_per_token, 2),
                _cell(system.whole_seconds, base.whole_seconds, 3),
                f"{system.first_call_seconds:.2f}",
                f"{system.load_seconds:.2f}",
                "?" if peak is None else f"{peak / 1e6:.0f}",
                f"{system.agreement(base):.1%}",
            ]
        )
    lines = [
        f"{config.num_parameters:,} random parameters ({config.num_layers} layers, hidden "
        f"{config.hidden_dim}, vocabulary {config.vocabulary_size}), float32; batch {settings.batch}, "
        f"{settings.prompt_tokens} prompt tokens, {settings.new_tokens} new tokens, "
        f"{settings.threads} threads, {settings.trials} interleaved trials, seed {settings.seed}.",
        "",
        *_table(rows),
        "",
        f"Medians (minimum–maximum), × the median of {base.name}. {hardware}.",
        "",
    ]
    for system in comparison.systems:
        versions = ", ".join(f"{name} {version}" for name, version in system.versions.items())
        lines.append(f"- {system.name}: {versions}")
    return "\n".join(lines)


def _cell(spread: Spread, base: Spread, digits: int) -> str:
    values = (spread.median, spread.minimum, spread.maximum)
    median, least, most = (f"{value:.{digits}f}" for value in values)
    return f"{median} ({least}–{most}), {spread.median / base.median:.2f}×"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
