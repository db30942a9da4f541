"""A comparison as Markdown tables."""

from __future__ import annotations

from bench.comparison_result import (
    COMPARED_TOKENS,
    FIGURES,
    Case,
    CaseResult,
    Comparison,
    SystemResult,
)
from bench.markdown import markdown_table
from bench.measure import Spread
from bench.read_bandwidth import METHOD
from bench.system import Hardware

CASE_HEADER = [
    "precision",
    "system",
    "prefill ms",
    "decode ms/token",
    "whole s",
    "of bandwidth",
    "logit error",
    "same tokens",
]
ADVANTAGE_HEADER = ["precision", "bundle", "prefill", "decode", "whole"]
SYSTEM_HEADER = ["system", "weights MB", "load s", "first call s", "peak MB", "same choice"]
NONE = "–"


def format_comparison(comparison: Comparison, hardware: Hardware) -> str:
    """The comparison as Markdown: a table for each case, one of the systems, and what it all means."""
    config, settings = comparison.config, comparison.settings
    lines = [
        f"{config.num_parameters:,} random parameters ({config.num_layers} layers, hidden "
        f"{config.hidden_dim}, vocabulary {config.vocabulary_size}); {settings.new_tokens} new tokens, "
        f"{settings.threads} threads, {settings.trials} interleaved trials, seed {settings.seed}. "
        f"{hardware}.",
    ]
    for case in settings.cases:
        lines += ["", f"{str(case).capitalize()}:", "", *_case_table(comparison, case)]
    lines += ["", "Systems:", "", *_systems_table(comparison), "", *_legend(comparison), ""]
    for result in comparison.systems:
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        lines.append(f"- {result.name}: {versions}")
    return "\n".join(lines)


def _case_table(comparison: Comparison, case: Case) -> list[str]:
    rows = [CASE_HEADER]
    refusals = []
    for precision in comparison.precisions:
        for result in comparison.of_precision(precision):
            found = result.cases[case]
            if found.trials:
                rows.append([precision, result.name, *_figures(comparison, result, case)])
            else:
                rows.append([precision, result.name, *[NONE] * (len(CASE_HEADER) - 2)])
                refusals.append(f"{result.name} cannot do this: {found.refusal}")
    lines = [*markdown_table(rows, names=2), *([""] if refusals else []), *refusals]
    advantages = _advantage_rows(comparison, case)
    if advantages:
        rows = [ADVANTAGE_HEADER, *advantages]
        lines += [
            "",
            "Beside the fastest peer at the same precision:",
            "",
            *markdown_table(rows, names=2),
        ]
    return lines


def _advantage_rows(comparison: Comparison, case: Case) -> list[list[str]]:
    rows = []
    for precision in comparison.precisions:
        for result in comparison.of_precision(precision):
            if result.system.checkpoint != "bundle" or not result.cases[case].trials:
                continue
            found = comparison.advantages(result, case)
            if found:
                cells = [f"{found[f].times_as_fast:.2f}× {found[f].peer}" for f in FIGURES]
                rows.append([precision, result.name, *cells])
    return rows


def _figures(comparison: Comparison, result: SystemResult, case: Case) -> list[str]:
    found, ratios = result.cases[case], comparison.ratios(result, case)
    same, error = comparison.same_tokens(result, case), result.logit_error
    return [
        _cell(found.prefill_ms, ratios["prefill_ms"], 1),
        _cell(found.decode_ms_per_token, ratios["decode_ms_per_token"], 2),
        _cell(found.whole_seconds, ratios["whole_seconds"], 3),
        f"{comparison.bandwidth_share(result, case):.0%}",
        NONE if error is None else f"{error.mean:.2g} (≤ {error.maximum:.2g})",
        NONE if same is None else f"{same:.1%}",
    ]


def _systems_table(comparison: Comparison) -> list[str]:
    rows = [SYSTEM_HEADER]
    for result in comparison.systems:
        peak, error = result.peak_memory_bytes, result.logit_error
        first = next(iter(result.cases.values()))
        rows.append(
            [
                result.name,
                f"{result.weight_bytes / 1e6:.1f}",
                f"{result.load_seconds:.2f}",
                _first_call(first),
                "?" if peak is None else f"{peak / 1e6:.0f}",
                NONE if error is None else f"{error.same_choice:.1%}",
            ]
        )
    return markdown_table(rows, names=1)


def _first_call(found: CaseResult) -> str:
    return f"{found.first_call_seconds:.2f}" if found.refusal is None else NONE


def _legend(comparison: Comparison) -> list[str]:
    bandwidth, reference = comparison.read_bandwidth, comparison.reference
    first_case = comparison.settings.cases[0]
    lines = [
        "- Medians (minimum–maximum), × the median of this project at the same precision, or of the "
        "precision's first system.",
        "- Of bandwidth: bytes of weights in the time of a decode step, over what the machine reads: "
        f"{bandwidth.median / 1e9:.1f} ({bandwidth.minimum / 1e9:.1f}–{bandwidth.maximum / 1e9:.1f}) "
        f"GB/s; {METHOD}.",
        "- Beside the fastest peer: its median over the bundle's: times as fast as that peer.",
        f"- First call: of {first_case}. Peak: over all cases.",
    ]
    if reference is None:
        return lines
    errors = [result.logit_error for result in comparison.systems if result.logit_error is not None]
    lines.append(
        f"- Same tokens: share of the first {COMPARED_TOKENS} greedy tokens of each generation that "
        f"equal those of {reference}."
    )
    if errors:
        lines.append(
            "- Logit error: mean (and greatest) absolute difference from the logits of "
            f"{reference}, over their standard deviation, at {errors[0].places} places; same choice: "
            "share of these places with the same likeliest token."
        )
    return lines


def _cell(spread: Spread, ratio: float, digits: int) -> str:
    values = (spread.median, spread.minimum, spread.maximum)
    median, least, most = (f"{value:.{digits}f}" for value in values)
    return f"{median} ({least}–{most}), {ratio:.2f}×"
