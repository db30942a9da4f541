"""Adapters that `peft` saved: `adapter_config.json` beside `adapter_model.safetensors` or `.bin`.

What a tensor is for is told by its name in transformers' OPT; the weight map of Hugging Face folders
says which part of which weight that is here. Weights are merged as `peft`'s `merge_and_unload` merges
them into a base that was loaded in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.adapters.adapter import Adapter
from exporter.adapters.edits import (
    ALL,
    AdapterTensor,
    AddLowRank,
    AddVector,
    Columns,
    Edit,
    Replace,
    ReplaceRows,
    ReplaceVector,
)
from exporter.adapters.peft_config import HEAD, PeftConfig, read_peft_config
from exporter.checkpoints.formats import HUGGING_FACE
from exporter.checkpoints.readers import TensorReader, check_floats
from exporter.checkpoints.safetensors_file import SafetensorsReader
from exporter.checkpoints.torch_file import TorchReader
from exporter.checkpoints.weight_map import BoundSource, bind_names, unwrapped
from exporter.errors import CheckpointError
from exporter.foreign_files import find_file
from exporter.weight_names import HEAD_TABLE, TOKEN_TABLE
from graphs.contract import ModelConfig
from graphs.shown import listed

PEFT_FILES: dict[str, Callable[[Path], TensorReader]] = {
    "adapter_model.safetensors": SafetensorsReader,
    "adapter_model.bin": TorchReader,
}
TOKENS = "model.decoder.embed_tokens"
POSITIONS = "model.decoder.embed_positions"
SIDES = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
OTHERS = ("lora_magnitude_vector", "lora_B.bias")
ROWS = "token_adapter.trainable_tokens_delta"
_PARTS = re.compile(rf"(.+)\.({'|'.join(map(re.escape, (*SIDES, *OTHERS, ROWS)))})")


@dataclass(frozen=True)
class _Place:
    """Where a tensor of transformers' model is in ours."""

    target: str
    columns: Columns
    source: BoundSource


def read_peft_adapter(folder: Path, origin: str, config: ModelConfig) -> Adapter:
    """Opens an adapter for a base model.

    Args:
        folder: where it is.
        origin: what errors and summaries call it.
        config: of the base model.

    Raises:
        PresetError: if its configuration is not valid, or of a kind that is not read.
        CheckpointError: if its tensors are none, do not fit the base, or are not those that its
            configuration names.
    """
    settings = read_peft_config(folder)
    reader = _open(folder, origin)
    try:
        return _Reading(settings, reader, origin, config).adapter()
    except ValueError as error:
        reader.close()
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{origin}: {error}") from None
    except BaseException:
        reader.close()
        raise


def _open(folder: Path, origin: str) -> TensorReader:
    for name, reader in PEFT_FILES.items():
        if (path := find_file(folder, name, CheckpointError)) is not None:
            return reader(path)
    raise CheckpointError(f"the adapter {origin} has no {' or '.join(PEFT_FILES)}")


class _Reading:
    """The edits that an adapter's tensors are."""

    def __init__(
        self, settings: PeftConfig, reader: TensorReader, origin: str, config: ModelConfig
    ) -> None:
        self._settings, self._reader, self._origin, self._config = settings, reader, origin, config
        self._shapes = reader.shapes
        self._names = unwrapped(HUGGING_FACE, self._shapes, origin)
        bare = any(name.startswith("decoder.") for name in self._names)  # of transformers' OPTModel
        self._prefix = "" if bare else "model."
        untied = replace(config, tied_head=False)
        self._places = {
            source.name: _Place(target.name, _part(target.shape, len(target.sources), i), source)
            for target in bind_names(HUGGING_FACE, untied)
            for i, source in enumerate(target.sources)
        }
        self._edits: dict[str, list[Edit]] = {}
        self._both: list[tuple[str, Edit]] = []  # what is done to both of two tied tables, and by whom

    def adapter(self) -> Adapter:
        pairs: dict[str, dict[str, str]] = {}
        whole: dict[str, str] = {}
        for name, stored in self._names.items():
            full = f"model.{name}" if name.startswith("decoder.") else name
            if found := _PARTS.fullmatch(full):
                pairs.setdefault(found[1], {})[found[2]] = stored
            else:
                whole[full.replace(".base_layer.", ".")] = stored
        if not self._names:
            raise CheckpointError(f"the adapter {self._origin} has no tensors")
        for stored in self._names.values():
            check_floats(self._reader, stored)
        self._check_targets({m for m, parts in pairs.items() if set(parts) != {ROWS}})
        vocabulary_size = self._vocabulary_size(whole)
        for name, stored in whole.items():
            self._replace(name, stored, vocabulary_size)
        for module, parts in pairs.items():
            self._add(module, parts, vocabulary_size or self._config.vocabulary_size)
        return self._finished(vocabulary_size)

    # === Which modules ===

    def _check_targets(self, found: set[str]) -> None:
        """The modules that have pairs must be those that the configuration names."""
        modules = {name.removesuffix(".weight") for name in self._places if not _is_vector(name)}
        wanted = {m for m in modules if self._settings.is_target(self._own_name(m))}
        if self._settings.tied and TOKENS in wanted:  # then peft saves the head's too
            wanted, found = wanted - {HEAD}, found - {HEAD}
        if unknown := sorted(found - modules):
            raise CheckpointError(
                f"the adapter {self._origin} has pairs for {listed(unknown)}, of which the base model "
                "has no such linear or embedding module; give the base that it was trained on"
            )
        if missing := sorted(wanted - found):
            raise CheckpointError(
                f"the adapter {self._origin} lacks the pairs of {listed(missing)}, which its "
                "configuration names; fetch it again, or give the base that it was trained on"
            )
        if surplus := sorted(found - wanted):
            raise CheckpointError(
                f"the adapter {self._origin} has pairs for {listed(surplus)}, which its configuration "
                "does not name, so that peft would not use them; correct its target_modules"
            )

    def _own_name(self, module: str) -> str:
        """What the module is called in the model that the adapter was trained on."""
        return self._prefix + module.removeprefix("model.") if module != HEAD else module

    # === Other values ===

    def _vocabulary_size(self, whole: dict[str, str]) -> int | None:
        """Rows of the adapter's own token table, where tokens were added to the base's."""
        stored = whole.get(f"{TOKENS}.weight")
        shape = self._shapes[stored] if stored is not None else ()
        rows = shape[0] if len(shape) == 2 else self._config.vocabulary_size
        if rows == self._config.vocabulary_size:
            return None
        if not self._config.tied_head and f"{HEAD}.weight" not in whole:
            raise CheckpointError(
                f"the adapter {self._origin} has a token table of {rows} rows and no {HEAD}.weight; "
                f"the base's head has {self._config.vocabulary_size}"
            )
        return rows

    def _replace(self, name: str, stored: str, vocabulary_size: int | None) -> None:
        place = self._places.get(name)
        if place is None:
            raise CheckpointError(
                f"the adapter {self._origin} has the tensor {stored!r:.200}, which is no weight of the "
                "base model; give the base that it was trained on"
            )
        shape = place.source.shape
        if vocabulary_size is not None and place.target in (TOKEN_TABLE, HEAD_TABLE):
            shape = (vocabulary_size, *shape[1:])
        self._check_shape(stored, shape)
        source = place.source
        values = AdapterTensor(self._reader, stored, source.transpose, source.skip_rows)
        edit: Edit = (
            ReplaceVector(values, place.columns) if len(shape) == 1 else Replace(values, place.columns)
        )
        module = name.rpartition(".")[0]
        together = self._settings.tied or not self._settings.is_saved(self._own_name(module))
        self._edit(place.target, edit, together=together)

    def _edit(self, target: str, edit: Edit, *, together: bool) -> None:
        """Adds an edit; one of a table that is made to both where they are tied goes to both."""
        if together and self._config.tied_head and target in (TOKEN_TABLE, HEAD_TABLE):
            self._both.append((target, edit))
        else:
            self._edits.setdefault(target, []).append(edit)

    # === Pairs ===

    def _add(self, module: str, parts: dict[str, str], tokens: int) -> None:
        if ROWS in parts:
            self._replace_rows(module, parts.pop(ROWS))
            if not parts:
                return
        embedding = module in (TOKENS, POSITIONS)
        first, second = SIDES[2:] if embedding else SIDES[:2]
        if {first, second} - set(parts) or set(parts) - {first, second, *OTHERS}:
            raise CheckpointError(
                f"the adapter {self._origin} has {listed(sorted(parts))} of {module}, and a pair is "
                f"{first} and {second}"
            )
        place = self._places[f"{module}.weight"]
        rows, columns = self._matrix_shape(place, module, tokens)
        rank = self._shapes[parts[first]][0] if self._shapes[parts[first]] else 0
        if not rank:
            raise CheckpointError(
                f"the adapter {self._origin} has no values in {parts[first]!r:.200}: it was saved "
                "without gathering the shards of ZeRO-3 or FSDP; save it again"
            )
        self._check_shape(parts[first], (rank, columns))
        self._check_shape(parts[second], (rows, rank))
        scale = self._settings.scale(self._own_name(module), rank)
        a = AdapterTensor(self._reader, parts[first], transpose=True, skip_rows=place.source.skip_rows)
        b = AdapterTensor(self._reader, parts[second], transpose=True)
        if module == HEAD:  # stored as the model has it
            a, b = replace(b, transpose=False), replace(a, transpose=False)
        magnitude = self._magnitude(module, parts, rows)
        edit = AddLowRank(a, b, scale, place.columns, magnitude, by_row=module == HEAD)
        self._edit(place.target, edit, together=self._settings.tied)
        if (bias := parts.get("lora_B.bias")) is not None:
            self._check_shape(bias, (rows,))
            place = self._places.get(f"{module}.bias", place)
            if not place.target.endswith("/bias"):
                raise CheckpointError(
                    f"the adapter {self._origin} has a bias for {module}, which has none"
                )
            values = AdapterTensor(self._reader, bias)
            self._edit(place.target, AddVector(values, scale, place.columns), together=False)

    def _matrix_shape(self, place: _Place, module: str, tokens: int) -> tuple[int, int]:
        """Outputs and inputs of a module, as of torch's linear layers."""
        if place.target in (TOKEN_TABLE, HEAD_TABLE):
            rows, columns = tokens, place.source.shape[1]
        else:
            rows, columns = place.source.shape
        return (columns, rows) if module in (TOKENS, POSITIONS) else (rows, columns)

    def _magnitude(self, module: str, parts: dict[str, str], outputs: int) -> AdapterTensor | None:
        name = parts.get("lora_magnitude_vector")
        if (name is not None) != self._settings.dora:
            raise CheckpointError(
                f"the adapter {self._origin} has use_dora={self._settings.dora}, and for {module} "
                f"{'no' if name is None else 'a'} lora_magnitude_vector"
            )
        if name is None:
            return None
        if module == POSITIONS:
            raise CheckpointError(f"the adapter {self._origin} has DoRA on {module}, which is not read")
        if self._shapes[name] not in ((outputs,), (outputs, 1), (1, outputs)):
            self._check_shape(name, (outputs,))
        return AdapterTensor(self._reader, name)

    def _replace_rows(self, module: str, stored: str) -> None:
        tokens = self._settings.tokens
        if module != TOKENS or not tokens:
            raise CheckpointError(
                f"the adapter {self._origin} has {stored!r:.200}, and trainable_token_indices names no "
                "rows of it"
            )
        self._check_shape(stored, (len(tokens), self._config.embedding_width))
        rows = self._config.vocabulary_size
        if max(tokens) >= rows:
            raise CheckpointError(
                f"the adapter {self._origin} has trained token {max(tokens)}, and the base has {rows}"
            )
        edit = ReplaceRows(AdapterTensor(self._reader, stored), tokens)
        self._edit(TOKEN_TABLE, edit, together=True)

    # === The whole ===

    def _finished(self, vocabulary_size: int | None) -> Adapter:
        edits = {name: tuple(several) for name, several in self._edits.items()}
        own_head = False
        if self._config.tied_head:
            tokens, head = edits.get(TOKEN_TABLE, ()), edits.get(HEAD_TABLE, ())
            own_head = bool(tokens or head)
            both = self._edits_of_both()
            edits |= {TOKEN_TABLE: (*both, *tokens), HEAD_TABLE: (*both, *head)}
        if vocabulary_size is not None:
            for name in (TOKEN_TABLE, HEAD_TABLE):
                if not edits[name] or not isinstance(edits[name][0], Replace):
                    raise CheckpointError(
                        f"the adapter {self._origin} has {vocabulary_size} tokens, and no table of "
                        f"them for {name}; the base's has {self._config.vocabulary_size} rows"
                    )
        edits = {name: several for name, several in edits.items() if several}
        return Adapter(self._origin, "peft", self._reader, edits, own_head, vocabulary_size)

    def _edits_of_both(self) -> tuple[Edit, ...]:
        """Each once: peft saves what the tables share under both names."""
        homes = {target for target, _ in self._both}
        home = TOKEN_TABLE if TOKEN_TABLE in homes else HEAD_TABLE
        return tuple(edit for target, edit in self._both if target == home)

    def _check_shape(self, name: str, wanted: tuple[int, ...]) -> None:
        if (found := self._shapes[name]) != wanted:
            raise CheckpointError(
                f"the adapter {self._origin} does not fit the base model: {name!r:.200} is {found}, "
                f"expected {wanted}; give the base that it was trained on"
            )


def _is_vector(name: str) -> bool:
    return name.endswith(".bias") or name.endswith("layer_norm.weight")


def _part(shape: tuple[int, ...], count: int, i: int) -> Columns:
    """The columns of one of a weight's sources."""
    if count == 1:
        return ALL
    width = shape[-1] // count
    return i * width, (i + 1) * width
