"""The choices of an export, which must fit each other and the model before there is any work."""

from __future__ import annotations

from graphs.contract import ModelConfig, Phase
from graphs.manifest import PRECISIONS, TARGET_PRECISIONS, TARGETS
from graphs.passes.attention import HEAD_DIM_MULTIPLE
from graphs.quantization import Scheme, block_size, phase_schemes


def check_choices(
    precision: str | None, target: str, prefill_precision: str | None, calibration: str | None
) -> tuple[str, dict[Phase, Scheme]]:
    """The precision, and how each phase's weights are stored."""
    check_choice("target", target, TARGETS)
    if precision is None:
        precision = TARGET_PRECISIONS[target][0]
    check_choice("precision", precision, PRECISIONS)
    if precision not in TARGET_PRECISIONS[target]:
        others = " or ".join(repr(t) for t, names in TARGET_PRECISIONS.items() if precision in names)
        hint = ""
        if target == "cuda":
            hint = "; for fp32 on a GPU export target 'portable', which runs on any device"
        raise ValueError(
            f"{precision} needs target {others}; target {target!r} has "
            f"{', '.join(TARGET_PRECISIONS[target])}{hint}"
        )
    if prefill_precision is not None:
        check_choice("prefill_precision", prefill_precision, ("int8",))
        if (precision, target) != ("int4", "cpu"):
            raise ValueError(
                f"prefill_precision is a choice of int4 bundles for CPUs, not of {precision} for "
                f"target {target!r}"
            )
    schemes = phase_schemes(precision, prefill_precision, target)
    if calibration is not None and not any(scheme.calibrated for scheme in schemes.values()):
        raise ValueError(
            f"calibration is for int8 on CPUs and int4; {precision} weights of target {target!r} do "
            "not depend on a text"
        )
    return precision, schemes


def check_sizes(config: ModelConfig, target: str, precision: str) -> None:
    """Raises `ValueError` if the operators of a target do not take a model's sizes."""
    if precision == "int4" or (precision, target) == ("int8", "cuda"):
        block_size(config)  # which refuses sizes that it has no blocks for
    if target == "cuda" and config.head_dim % HEAD_DIM_MULTIPLE:
        raise ValueError(
            f"target 'cuda' needs attention heads of a multiple of {HEAD_DIM_MULTIPLE} numbers, and "
            f"this model's have {config.head_dim}; export target 'portable', fp32 for any device"
        )


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    return value
