"""The systems that can be compared: which worker runs each, where, on what and at which precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OURS = "opt-onnx"
PRECISIONS = ("fp32", "int8", "int4")


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        name: as on the command line and in reports.
        module: of its worker.
        checkpoint: kind of folder that it loads, or that its worker converts: `"bundle"`,
            `"huggingface"` or `"keras"`.
        precision: of its weights, as a bundle's manifest names it.
        environment: name of the environment that its worker runs in; `None` for this project's own.
        converted: whether its worker makes a folder of its own from the checkpoint first.
        options: of the worker's job and conversion.
    """

    name: str
    module: str
    checkpoint: str
    precision: str = "fp32"
    environment: str | None = None
    converted: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)


def bundle_system(precision: str, name: str | None = None) -> System:
    """This project on a bundle of a precision; named after it by default."""
    return System(name or f"{OURS}-{precision}", "bench.workers.opt_onnx", "bundle", precision)


def _ctranslate2(precision: str, compute_type: str) -> System:
    return System(
        f"ctranslate2-{precision}",
        "bench.workers.ctranslate2",
        "huggingface",
        precision,
        "ctranslate2",
        converted=True,
        options={"compute_type": compute_type},
    )


def _openvino(precision: str) -> System:
    return System(
        f"openvino-{precision}",
        "bench.workers.openvino_genai",
        "huggingface",
        precision,
        "openvino",
        converted=True,
        options={"precision": precision},
    )


# The others; which bundles stand for this project is the command's to say.
SYSTEMS = {
    system.name: system
    for system in (
        System("keras-hub", "bench.workers.keras_hub", "keras", environment="keras-hub"),
        System(
            "keras-hub-xla",
            "bench.workers.keras_hub",
            "keras",
            environment="keras-hub",
            options={"jit_compile": True},
        ),
        System("transformers", "bench.workers.transformers", "huggingface", environment="transformers"),
        System(
            "optimum-onnx",
            "bench.workers.optimum_onnx",
            "huggingface",
            environment="optimum-onnx",
            converted=True,
        ),
        _ctranslate2("fp32", "float32"),
        _ctranslate2("int8", "int8"),
        _openvino("fp32"),
        _openvino("int8"),
        _openvino("int4"),
    )
}
