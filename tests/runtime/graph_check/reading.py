"""Values and nodes from text, as the rules of `runtime.graph_check` take them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from graphs.contract import ModelConfig, Phase, Revision
from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.messages import FUSED, STANDARD
from runtime.graph_check.operators import OPERATORS
from runtime.graph_check.sizes import BATCH, CAPACITY, OUTPUTS, SEQUENCE, Dim
from runtime.graph_check.spans import UNKNOWN, Span, only
from runtime.graph_check.values import Node, Value
from runtime.graph_check.wire_format import GraphFileError

CONFIG = ModelConfig(300, 2, 4, 32, 64, 64)
SYMBOLS: dict[str, Dim] = {"B": BATCH, "S": SEQUENCE, "C": CAPACITY, "O": OUTPUTS}
LIMITS = GraphLimits(CONFIG, Phase.PREFILL, "float32", "weights.bin", 100_000)


def size(text: str) -> Dim:
    """A size from text: `"4"`, or `"32*B*S"`."""
    found: Dim = 1
    for factor in text.strip().split("*"):
        found = found * (SYMBOLS[factor] if factor in SYMBOLS else int(factor))
    return found


def value(text: str, *spans: Span, source: Any = None, constant: bool = False) -> Value:
    """A value from text: `"float32 [B, 32]"`."""
    found = re.fullmatch(r"(\w+) \[(.*)\]", text)
    assert found is not None, text
    shape = tuple(size(part) for part in found[2].split(",") if part)
    return Value(found[1], shape, spans or (UNKNOWN,), source=source, constant=constant)


def const(text: str) -> Value:
    """A constant of the file whose numbers are not known."""
    return value(text, constant=True)


def numbers(*values: Dim, dtype: str = "int64", constant: bool = True) -> Value:
    """A list of numbers."""
    return Value(dtype, (len(values),), tuple(map(only, values)), constant=constant)


def number(of: Dim, dtype: str = "int32", constant: bool = True) -> Value:
    """A single number."""
    return Value(dtype, (), (only(of),), constant=constant)


Input = Value | str | None


def node(
    kind: str,
    *inputs: Value | str | None,
    outputs: int = 1,
    limits: GraphLimits = LIMITS,
    **attributes: Any,
) -> Node:
    """A node of values, or of what text says of them."""
    values = [value(each) if isinstance(each, str) else each for each in inputs]
    names = [f"out{i}".encode() for i in range(outputs)]
    return Node(kind, values, names, attributes, limits)


def made(kind: str, *inputs: Input, **options: Any) -> list[Value]:
    """What an operator makes."""
    operator = OPERATORS.get((STANDARD, kind)) or OPERATORS[FUSED, kind]
    return operator.rule(node(kind, *inputs, **options))


def told(kind: str, *inputs: Input, **options: Any) -> str:
    """Dtypes and shapes of what an operator makes."""
    return "; ".join(map(str, made(kind, *inputs, **options)))


def refused(why: str, kind: str, *inputs: Input, **options: Any) -> None:
    """Makes sure that an operator is refused, and of what is said."""
    with pytest.raises(GraphFileError, match=f"makes 'out0' by {kind} of .*: .*{why}"):
        made(kind, *inputs, **options)


def device_limits() -> GraphLimits:
    """Of `Revision.DEVICE`."""
    return GraphLimits(CONFIG, Phase.PREFILL, "float16", "weights.bin", 100_000, Revision.DEVICE)
