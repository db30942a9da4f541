"""Adapters in `.lora.h5` files, as `save_lora_weights` of this project and keras-hub writes them.

keras-hub writes the pairs of a layer under its number among all layers that have weights, and no names.
Of an OPT backbone these numbers are the same in each of its layers: so they are read.
"""

from __future__ import annotations

from pathlib import Path

from exporter.adapters.adapter import Adapter
from exporter.adapters.edits import ALL, AdapterTensor, AddLowRank, Columns, Edit
from exporter.checkpoints.h5_file import H5Reader
from exporter.checkpoints.readers import TensorReader, check_floats
from exporter.errors import CheckpointError
from exporter.foreign_files import find_file
from exporter.opt import lora_file
from exporter.opt.lora import QKV_PARTS, TARGETS, pair_name
from graphs.contract import ModelConfig
from graphs.listing import listed

# In keras-hub's numbering: three layers before the first decoder layer, ten of each.
FIRST_LAYER, LAYER_STEP = 3, 10
HUB_NUMBERS = {
    2: "feedforward_output_dense",
    3: "feedforward_intermediate_dense",
    6: "attention_output",
    7: "value",
    8: "key",
    9: "query",
}
HUB = "keras-hub"
HUB_RANK = "lora/vars/rank"
HUB_SIDES = ("lora_kernel_a", "lora_kernel_b")


def read_keras_adapter(path: Path, origin: str, config: ModelConfig) -> Adapter:
    """Opens an adapter file for a base model.

    Args:
        path: of the file, which ends in `.lora.h5`.
        origin: what errors and summaries call it.
        config: of the base model.

    Raises:
        CheckpointError: if it is no adapter, is damaged, or does not fit the base.
    """
    if find_file(path.parent, path.name, CheckpointError) is None:
        raise CheckpointError(f"there is no adapter {origin}")
    reader = H5Reader(path)
    try:
        if any(name.startswith("lora/") for name in reader.shapes):
            return _read_hub(reader, origin, config)
        return _read_own(reader, origin, config)
    except BaseException:
        reader.close()
        raise


def _read_own(reader: H5Reader, origin: str, config: ModelConfig) -> Adapter:
    try:
        settings = lora_file.read_settings(reader)
    except CheckpointError as error:
        raise CheckpointError(f"{origin} is no LoRA adapter or is damaged: {error}") from None
    pairs = {}
    for layer in range(config.num_layers):
        for target in settings.targets:
            dense, part = TARGETS[target]
            kernel = f"transformer_layer_{layer}/{dense}/kernel"
            pairs[layer, target] = [pair_name(kernel, part, side) for side in "ab"]
    scale = settings.alpha / settings.rank
    return _adapter(reader, origin, config, "this project", pairs, scale)


def _read_hub(reader: H5Reader, origin: str, config: ModelConfig) -> Adapter:
    pairs: dict[tuple[int, str], list[str]] = {}
    unknown = []
    for name in sorted(set(reader.shapes) - {HUB_RANK}):
        match name.split("/"):
            case ["lora", number, "vars", side] if (
                number.isdecimal() and len(number) < 6 and side in HUB_SIDES
            ):
                layer, place = divmod(int(number) - FIRST_LAYER, LAYER_STEP)
                if place in HUB_NUMBERS and 0 <= layer < config.num_layers:
                    group = f"lora/{number}/vars"
                    pairs[layer, HUB_NUMBERS[place]] = [f"{group}/{side}" for side in HUB_SIDES]
                    continue
        unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"the adapter {origin} has {listed(unknown)}, which are of no projection of an OPT model "
            f"of {config.num_layers} layers as keras-hub numbers them; give the base that it was "
            "trained on"
        )
    return _adapter(reader, origin, config, HUB, pairs, 1.0)  # its alpha is the rank


def _adapter(
    reader: TensorReader,
    origin: str,
    config: ModelConfig,
    kind: str,
    pairs: dict[tuple[int, str], list[str]],
    scale: float,
) -> Adapter:
    """The edits of pairs, each A and B, by layer and name of the projection."""
    shapes = reader.shapes
    names = {name for pair in pairs.values() for name in pair}
    missing, surplus = sorted(names - set(shapes)), sorted(set(shapes) - names - {HUB_RANK})
    if missing or surplus or not pairs:
        what = f"lacks {listed(missing)}" if missing else f"has {listed(surplus) or 'no pairs'}"
        raise CheckpointError(
            f"the adapter {origin} does not fit a base model of {config.num_layers} layers: it {what}"
        )
    edits: dict[str, tuple[Edit, ...]] = {}
    for (layer, target), pair in pairs.items():
        dense, part = TARGETS[target]
        heads = config.num_heads if kind == HUB and target in QKV_PARTS else 1
        rank = shapes[pair[0]][-1] if shapes[pair[0]] else 0
        rows, columns = _sizes(config, dense)
        stored = _shapes(config, kind, target, rows, columns, rank)
        for name, wanted in zip(pair, stored, strict=True):
            if shapes[name] != wanted or not rank:
                raise CheckpointError(
                    f"the adapter {origin} does not fit the base model: {name} is {shapes[name]}, and "
                    f"of {target} it must be {wanted}; give the base that it was trained on"
                )
            check_floats(reader, name)
        kernel = f"transformer_layer_{layer}/{dense}/kernel"
        edits[kernel] = edits.get(kernel, ()) + tuple(
            AddLowRank(
                AdapterTensor(
                    reader,
                    pair[0],
                    shape=(rows, heads * rank),
                    columns=(head * rank, (head + 1) * rank),
                ),
                AdapterTensor(reader, pair[1]),
                scale,
                _columns(config, target, part, head, heads),
            )
            for head in range(heads)
        )
    return Adapter(origin, kind, reader, edits)


def _sizes(config: ModelConfig, dense: str) -> tuple[int, int]:
    """Inputs and outputs of a projection."""
    wide, narrow = config.intermediate_dim, config.hidden_dim
    return {"intermediate": (narrow, wide), "output": (wide, narrow)}.get(dense, (narrow, narrow))


def _shapes(
    config: ModelConfig, kind: str, target: str, rows: int, columns: int, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What A and B of a projection are stored as. keras-hub's attention has axes for the heads, and its
    A for query, key and value has pairs of its own for each head, of which all have one B."""
    heads = (config.num_heads, config.head_dim)
    if kind == HUB and target in QKV_PARTS:
        return (rows, heads[0], rank), (rank, heads[1])
    if kind == HUB and target == "attention_output":
        return (*heads, rank), (rank, columns)
    return (rows, rank), (rank, columns)


def _columns(config: ModelConfig, target: str, part: str, head: int, heads: int) -> Columns:
    """Which columns of its kernel a projection has, or one of its heads."""
    if target not in QKV_PARTS:
        return ALL
    width = config.hidden_dim // heads
    start = QKV_PARTS.index(part) * config.hidden_dim + head * width
    return start, start + width
