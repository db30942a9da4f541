"""What an adapter does to a weight, and weights with that done to them as they are read.

A weight is a matrix [rows, columns], or a vector, of the Keras model; an edit concerns some of its
columns, since query, key and value are parts of one weight. Nothing is kept but the tensors of the
weight that is being read, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from exporter.checkpoints.finite_blocks import finite_blocks
from exporter.checkpoints.readers import TensorReader
from exporter.checkpoints.weight_map import BLOCK_BYTES
from exporter.weight_names import HEAD_TABLE, TOKEN_TABLE
from exporter.weights import WeightSource

Columns: TypeAlias = tuple[int, int]  # the first, and the one behind the last
ALL: Columns = (0, 2**62)
Blocks = Callable[[], Iterator[np.ndarray]]  # of the weight before the edit, again at each call
Change = Callable[[np.ndarray, int], None]  # alters rows in place, given the first one's number


@dataclass(frozen=True)
class AdapterTensor:
    """A tensor of an adapter's file, as rows of the weight that it is for.

    Attributes:
        reader: gives it.
        name: in the file.
        transpose: stored as [columns, rows].
        skip_rows: leading rows that the model does not have.
        shape: to read it as, before it is transposed; by default as it is stored.
        columns: which of its columns are meant.
    """

    reader: TensorReader
    name: str
    transpose: bool = False
    skip_rows: int = 0
    shape: tuple[int, ...] | None = None
    columns: Columns = ALL

    def whole(self) -> np.ndarray:
        """All values, float32."""
        values = np.asarray(self.reader.read(self.name), np.float32)
        values = values if self.shape is None else values.reshape(self.shape)
        values = values.T if self.transpose else values
        return values[self.skip_rows :, slice(*self.columns)] if values.ndim > 1 else values

    def rows(self) -> Callable[[int, int], np.ndarray]:
        """Gives rows `start` to `stop`, float32; a table is read as they are asked for."""
        if self.transpose or self.shape is not None:
            values = self.whole()
            return lambda start, stop: values[start:stop]
        skipped = self.skip_rows
        return lambda start, stop: np.asarray(
            self.reader.read(self.name, start + skipped, stop + skipped), np.float32
        )


class Edit(Protocol):
    """One change to a weight."""

    def begin(self, blocks: Blocks) -> Change:
        """Reads what it needs for one pass over the weight."""


@dataclass(frozen=True)
class Replace:
    """Other values in place of some columns: biases, and modules that were trained whole."""

    values: AdapterTensor
    columns: Columns = ALL

    def begin(self, blocks: Blocks) -> Change:
        read = self.values.rows()

        def change(rows: np.ndarray, start: int) -> None:
            rows[:, slice(*self.columns)] = read(start, start + len(rows))

        return change


@dataclass(frozen=True)
class ReplaceVector:
    """Other values in place of a part of a vector, which is one row."""

    values: AdapterTensor
    columns: Columns = ALL

    def begin(self, blocks: Blocks) -> Change:
        def change(rows: np.ndarray, start: int) -> None:
            rows[0, slice(*self.columns)] = self.values.whole()

        return change


@dataclass(frozen=True)
class ReplaceRows:
    """Other values in place of single rows: tokens that were trained one by one."""

    values: AdapterTensor
    rows: tuple[int, ...]

    def begin(self, blocks: Blocks) -> Change:
        values, places = self.values.whole(), np.asarray(self.rows)

        def change(rows: np.ndarray, start: int) -> None:
            here = (places >= start) & (places < start + len(rows))
            rows[places[here] - start] = values[here]

        return change


@dataclass(frozen=True)
class AddVector:
    """A scaled vector, added to a part of a bias."""

    values: AdapterTensor
    scale: float
    columns: Columns = ALL

    def begin(self, blocks: Blocks) -> Change:
        def change(rows: np.ndarray, start: int) -> None:
            rows[0, slice(*self.columns)] += np.float32(self.scale) * self.values.whole()

        return change


@dataclass(frozen=True)
class AddLowRank:
    """The scaled product of a pair (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

    Attributes:
        a: [rows, rank].
        b: [rank, columns].
        scale: of the product.
        columns: of the weight that it is added to.
        magnitude: where the pair is DoRA's (Liu et al., 2024, https://arxiv.org/abs/2402.09353), the
            length that each output's weights get; a vector.
        by_row: whether an output's weights are a row, as in a head, and not a column.
    """

    a: AdapterTensor
    b: AdapterTensor
    scale: float
    columns: Columns = ALL
    magnitude: AdapterTensor | None = None
    by_row: bool = False

    def begin(self, blocks: Blocks) -> Change:
        a, b = self.a.whole(), self.b.whole()

        def add(rows: np.ndarray, start: int) -> None:
            rows[:, slice(*self.columns)] += np.float32(self.scale) * (a[start : start + len(rows)] @ b)

        return add if self.magnitude is None else self._with_magnitude(add, blocks)

    def _with_magnitude(self, add: Change, blocks: Blocks) -> Change:
        assert self.magnitude is not None
        magnitude = self.magnitude.whole().reshape(-1)
        factor: np.ndarray | None = None
        if not self.by_row:
            squares, start = np.zeros(len(magnitude)), 0
            for rows in blocks():
                add(rows, start)
                squares += np.square(rows[:, slice(*self.columns)]).sum(axis=0, dtype=np.float64)
                start += len(rows)
            factor = magnitude / np.sqrt(squares).astype(np.float32)

        def change(rows: np.ndarray, start: int) -> None:
            add(rows, start)
            part = rows[:, slice(*self.columns)]
            if factor is None:
                wanted = magnitude[start : start + len(rows), None]
                part *= wanted / np.linalg.norm(part, axis=1, keepdims=True)
            else:
                part *= factor

        return change


class EditedWeights:
    """Another source's weights with the edits of adapters made, in turn.

    Args:
        source: of the base model.
        edits: by the weight's name.
        shapes: of every weight of the edited model. It has another number of tokens where tables were
            replaced, and a head of its own where only one of two tied tables was edited.
        origin: what errors call the adapters.
        readers: of the adapters' files, closed with the source.
    """

    def __init__(
        self,
        source: WeightSource,
        edits: Mapping[str, tuple[Edit, ...]],
        shapes: dict[str, tuple[int, ...]],
        origin: str,
        readers: Sequence[TensorReader],
    ) -> None:
        self._source, self._edits, self._shapes = source, edits, shapes
        self._origin, self._readers = origin, readers

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        edits = self._edits.get(name, ())
        if not edits:
            return self._source.blocks(self._stored(name))
        what = f"{name} with {self._origin} merged into it"
        return finite_blocks(self._edited(name, edits), what)

    def _edited(self, name: str, edits: tuple[Edit, ...]) -> Iterator[np.ndarray]:
        shape = self._shapes[name]

        def rows_after(count: int) -> Iterator[np.ndarray]:
            """The weight's rows after the first edits, copies that may be altered."""
            changes = [
                edit.begin(lambda i=i: rows_after(i))  # type: ignore[misc]
                for i, edit in enumerate(edits[:count])
            ]
            start = 0
            for rows in self._base_rows(name, shape, edits[0]):
                for change in changes:
                    change(rows, start)
                yield rows
                start += len(rows)

        with np.errstate(all="ignore"):  # what is not finite is told by its weight
            for rows in rows_after(len(edits)):
                yield rows.reshape(-1) if len(shape) == 1 else rows

    def _base_rows(self, name: str, shape: tuple[int, ...], first: Edit) -> Iterator[np.ndarray]:
        step = max(1, BLOCK_BYTES // (4 * shape[-1]))
        if isinstance(first, Replace) and first.columns == ALL:  # which may have another size
            for start in range(0, shape[0], step):
                yield np.empty((min(step, shape[0] - start), shape[1]), np.float32)
            return
        for block in self._source.blocks(self._stored(name)):
            rows = block.reshape((1, -1) if len(shape) == 1 else block.shape)
            for start in range(0, len(rows), step):
                yield np.array(rows[start : start + step], np.float32)

    def _stored(self, name: str) -> str:
        """A head that was tied is read from the token table."""
        tied = name == HEAD_TABLE and name not in self._source.shapes
        return TOKEN_TABLE if tied else name

    def close(self) -> None:
        """Closes the other source and the adapters' files."""
        self._source.close()
        for reader in self._readers:
            reader.close()
