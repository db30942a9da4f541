"""Weight maps: which tensors of a checkpoint make which weight of the Keras OPT backbone.

A map is data. A weight of the model (a `Target`, named by its Keras path) is made of one or more
`Source` tensors, each transposed, reshaped or stripped of leading rows, and joined along the last
axis: that is how separate query, key and value projections become the model's fused one. The same
data read backwards splits a weight into a file's tensors.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from exporter.checkpoints.readers import TensorReader, check_floats
from exporter.checkpoints.transposition import transpose_into
from exporter.errors import CheckpointError
from graphs.contract import ModelConfig
from graphs.shown import listed

_logger = logging.getLogger(__name__)
Condition = Callable[[ModelConfig], bool]


def always(config: ModelConfig) -> bool:
    """The condition of weights that every model has."""
    return True


# A dimension is a name from `_dimensions`, with an optional number of extra rows.
Shape = tuple[str, ...]
BLOCK_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Source:
    """One tensor of a checkpoint.

    Attributes:
        names: its possible names, current spelling first; `{layer}` stands for the layer's number.
        shape: its shape in the file.
        transpose: stored as [out, in] where the model has [in, out].
        skip_rows: leading rows that the model does not have.
        outside: whether its names stand without the map's prefix.
    """

    names: tuple[str, ...]
    shape: Shape
    transpose: bool = False
    skip_rows: int = 0
    outside: bool = False

    def spellings(self, prefixes: tuple[str, ...]) -> list[str]:
        """Its possible full names, the current one first."""
        return [p + n for n in self.names for p in (("",) if self.outside else prefixes)]


@dataclass(frozen=True)
class Target:
    """One weight of the model, and the sources it is joined from along the last axis.

    Attributes:
        name: its Keras path.
        shape: its shape in the model.
        sources: the tensors of the checkpoint.
        when: for which models it exists; by default for all.
    """

    name: str
    shape: Shape
    sources: tuple[Source, ...]
    when: Condition = always


@dataclass(frozen=True)
class WeightMap:
    """How one checkpoint format spells an OPT decoder.

    Attributes:
        prefixes: what names may begin with; sources are given without it.
        targets: weights outside the layers.
        layer_targets: weights of each layer.
        copies: tensors that may be in the file though no target takes them, and the target that
            they must equal.
        wrappers: what libraries put before all names, or into them, of a model that they wrap.
    """

    prefixes: tuple[str, ...]
    targets: tuple[Target, ...]
    layer_targets: tuple[Target, ...]
    copies: tuple[tuple[str, str], ...] = ()
    wrappers: tuple[str, ...] = ()


@dataclass(frozen=True)
class BoundSource:
    """A source with its name in this checkpoint and its shape in numbers."""

    name: str
    shape: tuple[int, ...]
    transpose: bool
    skip_rows: int

    @property
    def part_shape(self) -> tuple[int, ...]:
        rows, *rest = self.shape
        shape = (rows - self.skip_rows, *rest)
        return shape[::-1] if self.transpose else shape


@dataclass(frozen=True)
class BoundTarget:
    """A weight of the model with its shape in numbers and its sources in this checkpoint."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[BoundSource, ...]

    def read(self, reader: TensorReader, dtype: str = "float32") -> np.ndarray:
        """The weight's values [shape] in `dtype`."""
        if len(self.sources) == 1 and not self.sources[0].transpose:
            return np.ascontiguousarray(self._part(reader, self.sources[0]), dtype)
        joined = np.empty(self.shape, dtype)
        width = self.shape[-1] // len(self.sources)
        for i, source in enumerate(self.sources):
            place = joined[..., i * width : (i + 1) * width]
            if source.transpose:
                transpose_into(reader.read(source.name)[source.skip_rows :], place)
            else:
                place[...] = self._part(reader, source)
        return joined

    def _part(self, reader: TensorReader, source: BoundSource) -> np.ndarray:
        return reader.read(source.name)[source.skip_rows :].reshape(self._part_shape)

    def blocks(self, reader: TensorReader, dtype: str = "float32") -> Iterator[np.ndarray]:
        """The weight's values in consecutive runs of rows, of bounded size where it is stored so."""
        source = self.sources[0]
        if len(self.sources) > 1 or source.transpose or source.part_shape != self.shape:
            yield self.read(reader, dtype)
            return
        row_bytes = int(np.prod(self.shape[1:])) * np.dtype(dtype).itemsize
        step = max(1, BLOCK_BYTES // max(1, row_bytes))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            rows = reader.read(source.name, start + source.skip_rows, stop + source.skip_rows)
            yield np.ascontiguousarray(rows, dtype)

    def split(self, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The file's tensors of a weight's values; skipped rows come back as zeros."""
        parts = np.split(values, len(self.sources), axis=-1)
        for source, part in zip(self.sources, parts, strict=True):
            part = (part.T if source.transpose else part).reshape(
                (source.shape[0] - source.skip_rows, *source.shape[1:])
            )
            if source.skip_rows:
                rows = np.zeros((source.skip_rows, *part.shape[1:]), part.dtype)
                part = np.concatenate([rows, part])
            yield source.name, np.ascontiguousarray(part)

    @property
    def _part_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], self.shape[-1] // len(self.sources))


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return {
        "vocabulary": config.vocabulary_size,
        "positions": config.max_sequence_length,
        "positions+2": config.max_sequence_length + 2,
        "embedding": config.embedding_width,
        "hidden": config.hidden_dim,
        "3*hidden": 3 * config.hidden_dim,
        "inner": config.intermediate_dim,
        "heads": config.num_heads,
        "head_dim": config.head_dim,
    }


def _expand(weight_map: WeightMap, config: ModelConfig) -> Iterator[Target]:
    """The model's targets with the layer numbers filled in; Keras counts `name`, `name_1`, …"""
    yield from (target for target in weight_map.targets if target.when(config))
    layer_targets = [target for target in weight_map.layer_targets if target.when(config)]
    for layer in range(config.num_layers):
        values = {"layer": layer, "_layer": f"_{layer}" if layer else ""}
        for target in layer_targets:
            sources = tuple(
                replace(s, names=tuple(n.format(**values) for n in s.names)) for s in target.sources
            )
            yield replace(target, name=target.name.format(**values), sources=sources)


def bind_names(weight_map: WeightMap, config: ModelConfig) -> list[BoundTarget]:
    """The targets with every source under its current name: what a writer of the format needs."""
    size = _dimensions(config)
    return [
        BoundTarget(
            target.name,
            tuple(size[d] for d in target.shape),
            tuple(
                BoundSource(
                    s.spellings(weight_map.prefixes)[0],
                    tuple(size[d] for d in s.shape),
                    s.transpose,
                    s.skip_rows,
                )
                for s in target.sources
            ),
        )
        for target in _expand(weight_map, config)
    ]


def unwrapped(weight_map: WeightMap, names: Collection[str], origin: str) -> dict[str, str]:
    """The names in a file by what they are without the wrappers of training libraries.

    Raises:
        CheckpointError: if two of them are then the same.
    """
    if not weight_map.wrappers:
        return {name: name for name in names}
    wrappers = "|".join(map(re.escape, weight_map.wrappers))
    inner = re.compile(rf"(?:^|(?<=\.))(?:{wrappers})")
    plain: dict[str, str] = {}
    for name in names:
        bare = inner.sub("", name)
        if bare in plain:
            raise CheckpointError(f"{origin} holds {bare} twice, as {listed([plain[bare], name])}")
        plain[bare] = name
    return plain


def bind_checkpoint(
    weight_map: WeightMap, config: ModelConfig, reader: TensorReader, origin: str
) -> list[BoundTarget]:
    """The targets with every source under its name in this checkpoint.

    Tensors that are no part of an OPT model are left out, as transformers leaves them out, and told in
    a warning. Those that an OPT model of other switches or more layers has are refused.

    Raises:
        CheckpointError: naming the missing, mis-shaped and surplus tensors at once, or a tensor that
            should be a copy of another and is not.
    """
    sizes = reader.shapes
    stored = unwrapped(weight_map, sizes, origin)
    shapes = {name: sizes[of] for name, of in stored.items()}
    family = _family_names(weight_map)
    _check_whole({name: shape for name, shape in shapes.items() if family.fullmatch(name)}, origin)
    _check_unmerged(shapes, origin)
    used: set[str] = set()
    missing, misshaped, bound = [], [], []
    targets = zip(_expand(weight_map, config), bind_names(weight_map, config), strict=True)
    for target, expected in targets:
        sources = []
        for source, wanted in zip(target.sources, expected.sources, strict=True):
            spellings = source.spellings(weight_map.prefixes)
            name = next((spelling for spelling in spellings if spelling in shapes), None)
            if name is None:
                missing.append(wanted.name)
                continue
            used.add(name)
            if shapes[name] != wanted.shape:
                misshaped.append(f"{name} is {shapes[name]}, expected {wanted.shape}")
            sources.append(replace(wanted, name=stored[name]))
        bound.append(replace(expected, sources=tuple(sources)))
    copies = {p + name: of for name, of in weight_map.copies for p in ("", *weight_map.prefixes)}
    others = sorted(set(shapes) - used - set(copies))
    surplus = [name for name in others if family.fullmatch(name)]
    _check_all_used(missing, misshaped, surplus, origin, config)
    for bound_target in bound:
        for part in bound_target.sources:
            check_floats(reader, part.name)
    if others:
        _logger.warning(
            "%s holds %d tensors that are no part of an OPT model and are not used: %s",
            *(origin, len(others), listed(others)),
        )
    sources_of = {target.name: target.sources[0].name for target in bound}
    for name in sorted(set(copies) & set(shapes) - used):
        _check_copy(reader, stored[name], sources_of[copies[name]], origin)
    return bound


def _check_whole(shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """Raises `CheckpointError` for what is saved of a model that training has taken apart."""
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise CheckpointError(
            f"{len(empty)} of the {len(shapes)} tensors of {origin} are empty, {listed(empty, 2)}: "
            "they were saved without gathering the shards of ZeRO-3 or FSDP; run DeepSpeed's "
            "zero_to_fp32.py on the training checkpoint, or save again with "
            "stage3_gather_16bit_weights_on_model_save"
        )


def _check_unmerged(names: Collection[str], origin: str) -> None:
    """Raises `CheckpointError` for what is saved of a model of `peft`, adapters and all."""
    if pairs := [name for name in names if re.search(r"\.lora_(embedding_)?[AB]\b", name)]:
        raise CheckpointError(
            f"{origin} holds LoRA pairs beside the weights, {listed(pairs, 2)}: save the peft model "
            "with save_pretrained() and give its folder as an adapter, or save what merge_and_unload() "
            "returns"
        )


def _family_names(weight_map: WeightMap) -> re.Pattern[str]:
    """All names that a model of any size and switches may have in the format."""
    names = {
        re.escape(name).replace(r"\{layer\}", "[0-9]+").replace(r"\{_layer\}", "(?:_[0-9]+)?")
        for target in (*weight_map.targets, *weight_map.layer_targets)
        for source in target.sources
        for name in source.spellings(weight_map.prefixes)
    }
    return re.compile("|".join(sorted(names)))


def _check_all_used(
    missing: list[str], misshaped: list[str], surplus: list[str], origin: str, config: ModelConfig
) -> None:
    problems = [
        f"{len(names)} {kind}: {listed(names)}"
        for kind, names in (("missing", missing), ("mis-shaped", misshaped), ("surplus", surplus))
        if names
    ]
    if not problems:
        return
    layers = {int(found[1]) for name in surplus if (found := re.search(r"[._]([0-9]+)[./]", name))}
    hint = ""
    if layers and max(layers) >= config.num_layers:
        hint = f". The file has layers up to {max(layers)}, and the configuration {config.num_layers}"
    raise CheckpointError(
        f"the tensors of {origin} do not fit its configuration; {'; '.join(problems)}{hint}"
    )


def _check_copy(reader: TensorReader, name: str, original: str, origin: str) -> None:
    """Whether two tensors have the same values, compared in blocks of rows."""
    shape = reader.shapes[original]
    step = max(1, BLOCK_BYTES // (4 * int(np.prod(shape[1:]))))
    if reader.shapes[name] != shape or not all(
        np.array_equal(
            reader.read(name, start, start + step), reader.read(original, start, start + step)
        )
        for start in range(0, shape[0], step)
    ):
        raise CheckpointError(
            f"{origin}: {name} is not {original}, which the configuration ties it to; set "
            "tie_word_embeddings to false in config.json to use it, or take it out of the file"
        )
