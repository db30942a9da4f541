"""Values of a graph and the operators that make them, as the rules see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.sizes import Dim, Shape
from runtime.graph_check.spans import UNKNOWN, Span, hull
from runtime.graph_check.wire_format import GraphFileError

MOST_SPANS = 64  # numbers of a tensor that are told apart
MAX_TOLD = 60  # characters of a name


class Value:
    """A tensor of a graph.

    Attributes:
        dtype: NumPy name.
        shape: numbers, or sizes that a run decides.
        spans: what its numbers may be: one span for all, or one for each place along the last axis.
        constant: whether it is the same in every run, so that ONNX Runtime may compute it at loading.
        initializer: whether the file itself holds it.
        source: what makes it; the name of an input of the graph; `None` for constants of the file.
    """

    __slots__ = ("constant", "dtype", "initializer", "shape", "source", "spans")

    def __init__(
        self,
        dtype: str,
        shape: Shape,
        spans: tuple[Span, ...] = (UNKNOWN,),
        *,
        source: Node | str | None = None,
        constant: bool = False,
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self.spans = spans
        self.constant = constant
        self.initializer = constant
        self.source = source

    @property
    def span(self) -> Span:
        """What any of its numbers may be."""
        return self.spans[0] if len(self.spans) == 1 else hull(self.spans)

    def numbers(self) -> list[Dim] | None:
        """All of its numbers, if it is a vector or a single number and they are known."""
        length = self.shape[0] if self.shape else 1
        if len(self.shape) > 1 or not isinstance(length, int) or length > MOST_SPANS:
            return None
        exact = [span.exact for span in self.spans]
        found = [number for number in exact if number is not None]
        if len(found) != len(exact):
            return None
        return found if len(found) == length else found * length

    @property
    def numbers_are_fixed(self) -> bool:
        """Whether its numbers are known and the same in every run."""
        return all(isinstance(span.exact, int) for span in self.spans)

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


class Node:
    """An operator with its inputs.

    Attributes:
        kind: name of the operator.
        inputs: `None` for one that is left out.
        outputs: names; empty for one that is left out.
        attributes: whole numbers, lists of them, or floats by name.
        limits: of the graph.
    """

    __slots__ = ("attributes", "inputs", "kind", "limits", "outputs")

    def __init__(
        self,
        kind: str,
        inputs: list[Value | None],
        outputs: list[bytes],
        attributes: Mapping[str, Any],
        limits: GraphLimits,
    ) -> None:
        self.kind = kind
        self.inputs = inputs
        self.outputs = outputs
        self.attributes = attributes
        self.limits = limits

    def given(self, place: int) -> Value | None:
        """An input, `None` where it is left out."""
        return self.inputs[place] if place < len(self.inputs) else None

    def input(self, place: int) -> Value:
        """An input that cannot be left out."""
        value = self.inputs[place]
        assert value is not None
        return value

    def require(self, condition: bool, reason: str) -> None:
        """Raises `GraphFileError` with the reason unless a condition holds."""
        if not condition:
            self.refuse(reason)

    def refuse(self, reason: str) -> NoReturn:
        """Raises `GraphFileError`, naming the output, the operator and its inputs."""
        name = next((name for name in self.outputs if name), b"").decode(errors="replace")
        given = ", ".join("nothing" if value is None else str(value) for value in self.inputs)
        raise GraphFileError(f"makes {name[:MAX_TOLD]!r} by {self.kind} of {given}: {reason}")

    def ints(self, place: int) -> list[int]:
        """The whole numbers of an input that is a vector of the file."""
        value = self.input(place)
        found = value.numbers() if value.dtype in ("int32", "int64") and len(value.shape) == 1 else None
        if found is None or not all(isinstance(each, int) for each in found):
            self.refuse(f"input {place} must be a short list of whole numbers that the file holds")
        return [each for each in found if isinstance(each, int)]

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the first."""
        if not -rank <= axis < rank:
            self.refuse(f"there is no axis {axis}")
        return axis % rank
