"""Where ONNX Runtime runs the operators of a session: on the device asked for, or on the CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

from runtime.errors import NodePlacementError

# Session options without which a session does not tell.
RECORD = {"session.record_ep_graph_assignment_info": "1"}


def count_operators(session: Any) -> dict[str, Counter[str]]:
    """How many operators of each type each provider runs, by the providers' names.

    Copies between devices that ONNX Runtime adds are not among them.

    Args:
        session: an `InferenceSession` that was opened with `RECORD`.
    """
    counts: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        counts.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return counts


def check_placement(session: Any, provider: str, *, cuda_graphs: bool, allow_cpu_nodes: bool) -> None:
    """Makes sure that a provider runs all operators of a session.

    Args:
        session: an `InferenceSession` that was opened with `RECORD`.
        provider: ONNX Runtime's name of it.
        cuda_graphs: whether the session records CUDA graphs, which hold nothing of the CPU's.
        allow_cpu_nodes: whether the CPU may run operators all the same.

    Raises:
        NodePlacementError: if the CPU runs some that it may not.
    """
    counts = count_operators(session)
    total = sum(count.total() for count in counts.values())
    strays = sum((count for name, count in counts.items() if name != provider), Counter[str]())
    if not strays or (allow_cpu_nodes and not cuda_graphs):
        return
    listed = ", ".join(f"{name} {count}" for name, count in strays.most_common())
    remedy = (
        "CUDA graphs, which can hold none of them, need cuda_graphs=False"
        if allow_cpu_nodes
        else "allow_cpu_nodes=True lets them, with copies between the two at each step"
    )
    raise NodePlacementError(
        f"{strays.total()} of {total} operators would run on the CPU: {listed}; {remedy}"
    )
