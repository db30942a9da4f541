"""An adapter that was read: which weights of the model it edits; and a model with adapters merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from exporter.adapters.edits import AddLowRank, AddVector, Edit, EditedWeights
from exporter.checkpoints.readers import TensorReader
from exporter.errors import CheckpointError
from exporter.weight_names import HEAD_TABLE, TOKEN_TABLE
from exporter.weights import WeightSource
from graphs.contract import ModelConfig


@dataclass(frozen=True)
class Adapter:
    """The edits of one adapter; its tensors are read from its file when a weight is.

    Attributes:
        origin: what people call it: the path or handle.
        kind: what wrote it, `peft` say.
        reader: of its file.
        edits: by the Keras path of the weight. Those of the head's table are given also where the
            base's is tied to the token table.
        own_head: whether a head that is tied in the base has other edits than the token table.
        vocabulary_size: rows of its token table, where it has one of its own.
        weight: what its pairs were multiplied by.
    """

    origin: str
    kind: str
    reader: TensorReader
    edits: Mapping[str, tuple[Edit, ...]] = field(default_factory=dict)
    own_head: bool = False
    vocabulary_size: int | None = None
    weight: float = 1.0

    def weighted(self, weight: float) -> Adapter:
        """The same with its pairs scaled, as by `peft`'s `add_weighted_adapter` of type `"cat"`.

        Raises:
            CheckpointError: if it holds what cannot be scaled: other values, not differences.
        """
        if weight == 1.0:
            return self
        edits = {}
        for name, several in self.edits.items():
            if fixed := [edit for edit in several if not _is_difference(edit)]:
                raise CheckpointError(
                    f"{self.origin} has other values for {name} ({type(fixed[0]).__name__}), and not a "
                    f"difference that the weight {weight:g} could scale; give it the weight 1"
                )
            edits[name] = tuple(replace(e, scale=e.scale * weight) for e in several)  # type: ignore[attr-defined, type-var]
        return replace(self, edits=edits, weight=weight)


def _is_difference(edit: Edit) -> bool:
    """Whether an edit adds something that does not depend on what is there."""
    return isinstance(edit, AddVector) or (isinstance(edit, AddLowRank) and edit.magnitude is None)


def merged_config(config: ModelConfig, adapters: Sequence[Adapter]) -> ModelConfig:
    """The sizes and switches of a model with adapters merged.

    A head that was tied to the token table gets a table of its own where only one of them is edited, or
    each in its own way: so they are in the model that was trained. `peft`'s `merge_and_unload` would
    alter the other with it.

    Raises:
        CheckpointError: if two adapters do not go together.
    """
    _check_together(adapters)
    sizes = [a.vocabulary_size for a in adapters if a.vocabulary_size is not None]
    own_head = any(adapter.own_head for adapter in adapters)
    return replace(
        config,
        vocabulary_size=sizes[0] if sizes else config.vocabulary_size,
        tied_head=config.tied_head and not own_head,
    )


def merge(source: WeightSource, config: ModelConfig, adapters: Sequence[Adapter]) -> WeightSource:
    """A base model's weights with adapters merged into them as they are read, in float32.

    Args:
        source: the base's.
        config: what `merged_config` gives.
        adapters: what is merged, in turn.
    """
    edits: dict[str, tuple[Edit, ...]] = {}
    for adapter in adapters:
        for name, several in adapter.edits.items():
            if name != HEAD_TABLE or not config.tied_head:
                edits[name] = edits.get(name, ()) + several
    table = (config.vocabulary_size, config.embedding_width)
    shapes = {**source.shapes, TOKEN_TABLE: table}
    if not config.tied_head:
        shapes[HEAD_TABLE] = table
    origin = " and ".join(adapter.origin for adapter in adapters)
    return EditedWeights(source, edits, shapes, origin, [adapter.reader for adapter in adapters])


def _check_together(adapters: Sequence[Adapter]) -> None:
    """Other values, and DoRA's lengths, are of the base alone: nothing else may be done to them."""
    for i, first in enumerate(adapters):
        for second in adapters[i + 1 :]:
            for name in first.edits.keys() & second.edits.keys():
                several = first.edits[name] + second.edits[name]
                if not all(map(_is_difference, several)) and first.edits[name] and second.edits[name]:
                    raise CheckpointError(
                        f"{first.origin} and {second.origin} both change {name}, one of them not by "
                        "adding to it, so that they cannot be merged together; merge one"
                    )
