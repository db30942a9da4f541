"""The pickle of a torch checkpoint, read by a machine that can describe tensors and nothing else.

Python's own unpickler is not used, not even with `find_class` restricted: its C code allocates what
a nine-byte memo instruction asks for (gigabytes), and overflows its stack on a deeply nested key.
Here the standard library only decodes the instructions. The few that a state dict needs are carried
out on plain values, and whatever else a file asks for is refused by its name.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from exporter.errors import CheckpointError

STORAGE_DTYPES: dict[str, Any] = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
MAX_NAME = 200  # characters of a name that an error repeats
MAX_AXES = 64  # NumPy's


@dataclass(frozen=True)
class Storage:
    """A run of items in a file.

    Attributes:
        key: the name of the record that holds it.
        dtype: NumPy dtype of an item.
        items: how many there are.
    """

    key: str
    dtype: np.dtype
    items: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a view of a storage; offset and strides count items, as torch's do."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(data: bytes, origin: str) -> dict[str, StoredTensor]:
    """The tensors that a pickled state dict describes; values of other kinds are left out.

    Args:
        data: the pickle, of protocol 2 to 5.
        origin: what errors call the file.

    Raises:
        CheckpointError: if the pickle is damaged, or asks for anything but tensors.
    """
    try:
        state = _Machine().run(data)
    except _RefusalError as refusal:
        raise CheckpointError(
            f"{origin} {refusal}; a checkpoint may hold only tensors; nothing of it was run"
        ) from None
    except (ValueError, OverflowError, IndexError, KeyError) as error:
        raise CheckpointError(
            f"{origin} has a damaged pickle ({type(error).__name__}: {error}); fetch the file again"
        ) from None
    items = state.items() if type(state) is dict else ()
    tensors = {name: value for name, value in items if isinstance(value, StoredTensor)}
    if not tensors or any(type(name) is not str for name in tensors):
        what = f"a dict with the keys {list(state)[:5]}" if items else _kind(state)
        raise CheckpointError(
            f"{origin} holds {what[:MAX_NAME]}, not tensors by name; write it with "
            "torch.save(model.state_dict(), path)"
        )
    return tensors


class _RefusalError(Exception):
    """What a pickle asks for, told as the predicate of a sentence whose subject is the file."""


@dataclass(frozen=True)
class _Global:
    """A name that the pickle asks for: only the name, whatever it stands for elsewhere."""

    name: str


class _Machine:
    """Carries out the instructions of a pickle on plain values, in memory in step with its length."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []  # how high the stack was
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            carry_out = _INSTRUCTIONS.get(opcode.name)
            if carry_out is None:
                raise _RefusalError(f"uses the pickle instruction {opcode.name}")
            carry_out(self, argument)
        return self.pop()

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        self._check_height(1)
        return self._stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        self._check_height(count)
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def memoize(self, index: int | None) -> None:
        self._check_height(1)
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def recall(self, index: int) -> None:
        self.push(self._memo[index])

    def _check_height(self, count: int) -> None:
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < count:
            raise IndexError("an instruction takes a value that is not there")

    # === Containers ===

    def set_items(self, values: list[Any]) -> None:
        target = self.pop()
        if type(target) is not dict or len(values) % 2:
            raise _RefusalError(f"puts {len(values)} items into {_kind(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):  # hashing a nested tuple can overflow the C stack
                raise _RefusalError(f"has a key that is {_kind(key)}")
            target[key] = value
        self.push(target)

    def append(self, values: list[Any]) -> None:
        target = self.pop()
        if type(target) is not list:
            raise _RefusalError(f"appends to {_kind(target)}")
        target.extend(values)
        self.push(target)

    # === Objects ===

    def find(self, name: str) -> None:
        if name not in STORAGE_DTYPES and name not in _CALLS:
            _refuse_global(name)
        self.push(_Global(name))

    def stack_global(self, _: Any) -> None:
        module, name = self.pop_many(2)
        if type(module) is not str or type(name) is not str:
            raise _RefusalError(f"asks for a name that is {_kind(module)} and {_kind(name)}")
        self.find(f"{module}.{name}")

    def call(self, _: Any) -> None:
        function, arguments = self.pop_many(2)
        if not isinstance(function, _Global) or function.name not in _CALLS:
            raise _RefusalError(f"calls {_kind(function)}")
        if type(arguments) is not tuple:
            raise _RefusalError(f"calls {function.name} with {_kind(arguments)} for arguments")
        self.push(_CALLS[function.name](function.name, arguments))

    def build(self, _: Any) -> None:
        """A state dict carries `_metadata` as an attribute, which is of no use here."""
        target, _state = self.pop_many(2)
        if type(target) is not dict:
            raise _RefusalError(f"sets the attributes of {_kind(target)}")
        self.push(target)

    def persistent(self, _: Any) -> None:
        identifier = self.pop()
        match identifier:
            case ("storage", _Global(name), str(key), str(), int(items)) if (
                type(identifier) is tuple
                and name in STORAGE_DTYPES
                and type(items) is int
                and items >= 0
            ):
                self.push(Storage(key, np.dtype(STORAGE_DTYPES[name]), items))
            case _:
                kinds = _kinds(identifier) if type(identifier) is tuple else _kind(identifier)
                raise _RefusalError(f"names a storage by {kinds}, not as torch does")


def _refuse_global(name: str) -> NoReturn:
    raise _RefusalError(f"asks for {_shown(name)}")


def _shown(name: str) -> str:
    return name if re.fullmatch(rf"[\w.]{{1,{MAX_NAME}}}", name) else repr(name[:MAX_NAME])


def _kind(value: Any) -> str:
    return value.name if isinstance(value, _Global) else f"a value of type {type(value).__name__}"


def _kinds(values: tuple[Any, ...]) -> str:
    names = [v.name if isinstance(v, _Global) else type(v).__name__ for v in values[:10]]
    return f"({', '.join(names)})"


# === What a pickle may call ===


def _rebuild_mapping(name: str, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise _RefusalError(f"calls {name} with {len(arguments)} arguments, not with none")
    return {}


def _rebuild_tensor(name: str, arguments: tuple[Any, ...]) -> StoredTensor:
    """Arguments: storage, offset, shape, strides, requires_grad, hooks, and maybe metadata."""
    match arguments:
        case (Storage() as storage, int(offset), shape, strides, bool(), _, *metadata):
            pass
        case _:
            raise _RefusalError(f"calls {name} with the arguments {_kinds(arguments)}")
    if len(metadata) > 1 or any(value is not None and value != {} for value in metadata):
        raise _RefusalError(f"calls {name} with metadata, as of a conjugated or negated view")
    for sizes in ((offset,), shape, strides):
        if type(sizes) is not tuple or any(type(n) is not int or n < 0 for n in sizes):
            raise _RefusalError(f"calls {name} with sizes that are not tuples of whole numbers")
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise _RefusalError(f"calls {name} with {len(shape)} sizes and {len(strides)} strides")
    return StoredTensor(storage, offset, shape, strides)


def _rebuild_parameter(name: str, arguments: tuple[Any, ...]) -> StoredTensor:
    """Arguments: the tensor, requires_grad, hooks, and maybe attributes."""
    match arguments:
        case (StoredTensor() as tensor, bool(), _) | (StoredTensor() as tensor, bool(), _, _):
            return tensor
    raise _RefusalError(f"calls {name} with the arguments {_kinds(arguments)}")


_CALLS: dict[str, Callable[[str, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _rebuild_mapping,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}

# === Instructions, as pickletools names them ===

_LITERALS = "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8"  # no LONG4
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(_LITERALS.split(), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.memoize),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop_many(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop_many(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop_many(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_many(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: machine.append(machine.pop_many(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "GLOBAL": lambda machine, name: machine.find(name.replace(" ", ".", 1)),
    "INST": lambda machine, name: _refuse_global(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
