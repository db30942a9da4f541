"""Pickles that ask for anything but tensors: each is refused by name, and nothing of it is run."""

from __future__ import annotations

import contextlib
import copyreg
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from exporter.checkpoints.torch_pickle import Storage, StoredTensor, read_state_dict
from exporter.errors import CheckpointError
from tests.exporter.torch_files import numbers, state_dict, storage, tensor, text, whole

NOTHING_RUN = "; a checkpoint may hold only tensors; nothing of it was run"
TENSOR = StoredTensor(Storage("0", np.dtype("float32"), 12), 0, (4, 3), (3, 1))
ORDERED_DICT = b"ccollections\nOrderedDict\n"


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def touch(marker):
    return f"{sys.executable} -c \"open(r'{marker}', 'w')\""


def source(marker):
    return f"open({str(marker)!r}, 'w').close()"


def instance(module, name, *arguments):
    return b"(" + b"".join(text(a) for a in arguments) + f"i{module}\n{name}\n.".encode()


# === Pickles that run something where Python's unpickler reads them ===

RUNNING = {
    "os.system": (lambda m: pickle.dumps(Call(os.system, touch(m)), 2), "asks for posix.system"),
    "as a value": (
        lambda m: pickle.dumps({"w": Call(os.system, touch(m))}, 2),
        "asks for posix.system",
    ),
    "before the state dict": (
        lambda m: pickle.dumps(Call(exec, source(m)), 2)[:-1] + b"0}.",
        "asks for __builtin__.exec",
    ),
    "protocol 0": (lambda m: pickle.dumps(Call(os.system, touch(m)), 0), "asks for posix.system"),
    "protocol 4": (lambda m: pickle.dumps(Call(exec, source(m)), 4), "asks for builtins.exec"),
    "protocol 5": (lambda m: pickle.dumps(Call(eval, source(m)), 5), "asks for builtins.eval"),
    "a process": (
        lambda m: pickle.dumps(Call(subprocess.check_call, [sys.executable, "-c", source(m)]), 4),
        "asks for subprocess.check_call",
    ),
    "a folder": (lambda m: pickle.dumps(Call(os.mkdir, str(m)), 4), "asks for posix.mkdir"),
    "INST": (lambda m: instance("os", "system", touch(m)), "asks for os.system"),
    "OBJ": (lambda m: b"(cos\nsystem\n" + text(touch(m)) + b"o.", "asks for os.system"),
    "BUILD": (
        # A partial's state is its function: set, and then called.
        lambda m: (
            b"cfunctools\npartial\n(cos\nsystem\ntR(cos\nsystem\n(" + text(touch(m)) + b"t}Ntb)R."
        ),
        "asks for functools.partial",
    ),
    "getattr": (
        lambda m: b"c__builtin__\ngetattr\n(cos\nsys\n" + text("modules") + b"tR.",
        "asks for __builtin__.getattr",
    ),
}
SILENT = {"getattr"}  # runs a harmless call, which leaves no file


@pytest.mark.parametrize(("make", "message"), RUNNING.values(), ids=RUNNING)
def test_what_would_run_is_refused(tmp_path, make, message):
    marker = tmp_path / "marker"
    with pytest.raises(CheckpointError) as raised:
        read_state_dict(make(marker), "weights.bin")
    assert str(raised.value) == f"weights.bin {message}{NOTHING_RUN}"
    assert not marker.exists()


@pytest.mark.parametrize("name", sorted(set(RUNNING) - SILENT))
def test_these_pickles_are_dangerous(tmp_path, name):
    """Without which the test above would show nothing."""
    marker = tmp_path / "marker"
    with contextlib.suppress(Exception):  # the result is no model; the call has been made
        pickle.loads(RUNNING[name][0](marker))
    assert marker.exists()


def test_a_registered_extension_is_refused(tmp_path):
    copyreg.add_extension("os", "system", 201)
    try:
        data = b"\x80\x02\x82\xc9(" + text(touch(tmp_path / "marker")) + b"tR."
        with pytest.raises(CheckpointError, match="uses the pickle instruction EXT1"):
            read_state_dict(data, "weights.bin")
        assert not (tmp_path / "marker").exists()
        pickle.loads(data)
        assert (tmp_path / "marker").exists()
    finally:
        copyreg.remove_extension("os", "system", 201)


# === Pickles that misuse what is allowed ===


def rebuilt(arguments, function=b"_rebuild_tensor_v2"):
    return state_dict(w=b"ctorch._utils\n" + function + b"\n(" + arguments + b"tR")


MISUSES = {
    "of another class": (b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.", "asks for torch.nn.mod"),
    "other tensors": (rebuilt(b"", b"_rebuild_qtensor"), "asks for torch._utils._rebuild_qtensor"),
    "an attribute of a module": (b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93.", "asks for torch.os.s"),
    "an attribute of a function": (
        b"\x80\x04" + text("torch._utils") + text("_rebuild_parameter.__globals__") + b"\x93.",
        "asks for torch._utils._rebuild_parameter.__globals__",
    ),
    "a name that is none": (
        b"\x80\x04K\x01K\x02\x93.",
        "asks for a name that is a value of type int and a val",
    ),
    "terminal codes": (b"\x80\x02c\x1b[2J\nx\n.", r"asks for '\x1b[2J.x'"),
    "complex numbers": (
        state_dict(w=tensor(storage(kind=b"ComplexFloatStorage"))),
        "asks for torch.ComplexFloatStorage",
    ),
    "NEWOBJ": (b"\x80\x02" + ORDERED_DICT + b")\x81.", "uses the pickle instruction NEWOBJ"),
    "NEWOBJ_EX": (b"\x80\x04" + ORDERED_DICT + b")}\x92.", "uses the pickle instruction NEWOBJ_EX"),
    "PERSID": (b"Pstorage\n.", "uses the pickle instruction PERSID"),
    "a set": (b"\x80\x04\x8f.", "uses the pickle instruction EMPTY_SET"),
    "a long number": (b"\x80\x02\x8b\xff\xff\xff\x00" + bytes(2**24 - 1) + b".", "instruction LONG4"),
    "attributes of a tensor": (
        state_dict(w=tensor() + b"}" + text("x") + b"K\x01sb"),
        "sets the attributes of a value of type StoredTensor",
    ),
    "attributes of a function": (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n}b.",
        "sets the attributes of torch._utils._rebuild_parameter",
    ),
    "attributes of a class": (
        b"\x80\x02" + ORDERED_DICT + b"}b.",
        "sets the attributes of collections.OrderedDict",
    ),
    "items of a class": (b"\x80\x02" + ORDERED_DICT + b"K\x01K\x02s.", "puts 2 items into coll"),
    "items of a number": (b"\x80\x02K\x01K\x01K\x02s.", "puts 2 items into a value of type int"),
    "an odd item": (b"\x80\x02}(K\x01u.", "puts 1 items into a value of type dict"),
    "an end of a tuple": (b"\x80\x02)K\x01a.", "appends to a value of type tuple"),
    "a call of a storage": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
    "a call of text": (b"\x80\x02" + text("print") + b")R.", "calls a value of type str"),
    "a call of a tensor": (state_dict(w=tensor() + b")R"), "calls a value of type StoredTensor"),
    "arguments in a list": (
        b"\x80\x02" + ORDERED_DICT + b"]R.",
        "calls collections.OrderedDict with a value of type list for arguments",
    ),
    "a dict of arguments": (
        b"\x80\x02" + ORDERED_DICT + b"]\x85R.",
        "calls collections.OrderedDict with 1 arguments, not with none",
    ),
    "no arguments": (rebuilt(b""), "calls torch._utils._rebuild_tensor_v2 with the arguments ()"),
    "no storage": (
        rebuilt(b"NK\x00" + numbers([1]) + numbers([1]) + b"\x89N"),
        "_rebuild_tensor_v2 with the arguments (NoneType, int, tuple, tuple, bool, NoneType)",
    ),
    "a parameter of nothing": (
        rebuilt(b"N\x89N", b"_rebuild_parameter"),
        "calls torch._utils._rebuild_parameter with the arguments (NoneType, bool, NoneType)",
    ),
    "sizes in a list": (rebuilt(storage() + b"K\x00]]\x89N"), "sizes that are not tuples of whole"),
    "fractions": (
        rebuilt(storage() + b"K\x00" + b"G" + struct.pack(">d", 2.5) + b"\x85\x88\x85\x89N"),
        "sizes that are not tuples of whole numbers",
    ),
    "a truth value as a size": (rebuilt(storage() + b"K\x00\x88\x85K\x01\x85\x89N"), "whole numbers"),
    "a negative size": (state_dict(w=tensor(shape=(-4, 3))), "not tuples of whole numbers"),
    "a negative stride": (state_dict(w=tensor(strides=(-3, 1))), "not tuples of whole numbers"),
    "a negative offset": (state_dict(w=tensor(offset=-1)), "not tuples of whole numbers"),
    "too few strides": (state_dict(w=tensor(strides=(1,))), "with 2 sizes and 1 strides"),
    "too many axes": (
        state_dict(w=tensor(shape=[1] * 65, strides=[1] * 65)),
        "with 65 sizes and 65 strides",
    ),
    "a negated view": (
        rebuilt(storage() + b"K\x00K\x01\x85K\x01\x85\x89N}" + text("neg") + b"\x88s"),
        "with metadata, as of a conjugated or negated view",
    ),
    "a storage by text": (
        b"\x80\x02" + text("0") + b"Q.",
        "names a storage by a value of type str, not as torch",
    ),
    "a storage by number": (b"\x80\x02K\x05Q.", "names a storage by a value of type int"),
    "a storage by list": (
        b"\x80\x02](" + storage()[1:-2] + b"eQ.",
        "names a storage by a value of type list",
    ),
    "a module by tuple": (b"\x80\x02" + text("module") + b"K\x01\x86Q.", "by (str, int), not as"),
    "a storage of another kind": (
        b"\x80\x02(" + text("storage") + ORDERED_DICT + text("0") + text("cpu") + b"K\x0ctQ.",
        "names a storage by (str, collections.OrderedDict, str, str, int)",
    ),
    "a negative storage": (state_dict(w=tensor(storage(items=-1))), "names a storage by (str, torch"),
    "a key that is a value of type StoredTensor": (
        b"\x80\x02}" + tensor() + b"K\x01s.",
        "has a key that is a value of type StoredTensor",
    ),
    # Hashing this overflows the C stack, which ends the process.
    "a deep key": (
        b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
        "has a key that is a value of type tuple",
    ),
}


@pytest.mark.parametrize(("data", "message"), MISUSES.values(), ids=MISUSES)
def test_misuse_is_refused(data, message):
    with pytest.raises(CheckpointError) as raised:
        read_state_dict(data, "weights.bin")
    assert str(raised.value).startswith("weights.bin ")
    assert message in str(raised.value)
    assert str(raised.value).endswith(NOTHING_RUN)


DAMAGED = {
    "nothing": b"",
    "no end": b"\x80\x02}",
    "only an end": b".",
    "an empty stack": b"\x80\x02R.",
    "no mark": b"\x80\x02}u.",
    "a memo that was not kept": b"\x80\x02h\x07.",
    "no value to keep": b"\x80\x02q\x01.",
    "an unknown instruction": b"\x80\x02\xff.",
    "text of no encoding": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "text that is cut": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "text of 2**62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.",
    "text of 2**64 - 1 bytes": b"\x80\x04\x8d" + b"\xff" * 8 + b"abc.",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_an_error(data):
    with pytest.raises(CheckpointError, match=r"^weights\.bin has a damaged pickle \(.*; fetch the"):
        read_state_dict(data, "weights.bin")


ITEM = b"}" + text("w") + tensor()  # on the stack: a dict, a key and a value
BELOW_A_MARK = {
    "an item": ITEM + b"(s.",
    "an item's dict": b"}(" + text("w") + tensor() + b"s.",
    "a tuple of one": ITEM + b"(\x850s.",
    "a tuple of two": b"}" + text("w") + whole(1) + whole(2) + b"(\x86.",
    "a tuple of three": whole(1) * 3 + b"(\x87.",
    "what is kept": ITEM + b"(q\x01h\x01.",
    "what is called": b"}" + text("w") + ORDERED_DICT + b")(R.",
    "attributes": ITEM + b"s}(b.",
    "what a list gets": b"]" + whole(1) + b"(a.",
    "the name of a storage": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0")
    + text("cpu") + whole(12) + b"t(Q.",
    "a name": b"\x8c\x05torch\x8c\x0cFloatStorage(\x93.",
    "the result": ITEM + b"s(.",
}  # fmt: skip


@pytest.mark.parametrize("data", BELOW_A_MARK.values(), ids=BELOW_A_MARK)
def test_no_instruction_takes_a_value_from_below_a_mark(data):
    with pytest.raises(CheckpointError, match="IndexError: an instruction takes a value that is not"):
        read_state_dict(b"\x80\x04" + data, "weights.bin")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x80\x02" + tensor() + b".", "a value of type StoredTensor"),
        (b"\x80\x02](" + tensor() + b"e.", "a value of type list"),
        (b"\x80\x02}.", "a value of type dict"),
        (state_dict(model=b"}" + text("w") + tensor() + b"s"), "a dict with the keys ['model']"),
        (b"\x80\x02}K\x05" + tensor() + b"s.", "a dict with the keys [5]"),
    ],
)
def test_what_is_no_state_dict_is_an_error(data, what):
    with pytest.raises(CheckpointError) as raised:
        read_state_dict(data, "weights.bin")
    assert str(raised.value) == (
        f"weights.bin holds {what}, not tensors by name; write it with "
        "torch.save(model.state_dict(), path)"
    )


# === Pickles that are read ===


def test_what_an_allowed_pickle_says():
    data = state_dict(
        w=tensor(),
        column=tensor(storage("1", b"BFloat16Storage", 20), 2, (5,), (4,)),
        steps=whole(10**30),
        names=b"](" + text("a") + b"NG" + bytes(8) + b"e",
        nested=b"}" + text("x") + tensor() + b"s",
    )
    column = StoredTensor(Storage("1", np.dtype(ml_dtypes.bfloat16), 20), 2, (5,), (4,))
    assert read_state_dict(data, "weights.bin") == {"w": TENSOR, "column": column}


@pytest.mark.parametrize("attribute", ["_metadata", "items", "__class__", "__setstate__"])
def test_attributes_of_a_state_dict_are_left_out(attribute):
    """torch puts `_metadata` there; no other name may change how the dict is read either."""
    data = state_dict(w=tensor())[:-1] + b"}" + text(attribute) + b"}sb."
    assert read_state_dict(data, "weights.bin") == {"w": TENSOR}


def test_what_follows_the_end_is_not_read(tmp_path):
    data = state_dict(w=tensor()) + pickle.dumps(Call(os.system, touch(tmp_path / "marker")), 2)
    assert read_state_dict(data, "weights.bin") == {"w": TENSOR}
    assert not (tmp_path / "marker").exists()


def test_memory_goes_with_the_length_of_the_pickle():
    """Python's unpickler takes gigabytes for the memo's index and 400 MB for the declared bytes."""
    memo = b"r" + struct.pack("<I", 2**32 - 1)
    nested = b"(" * 10_000 + b"t" * 10_000
    tracemalloc.start()
    try:
        data = state_dict(w=tensor() + memo, deep=nested)
        assert read_state_dict(data, "weights.bin") == {"w": TENSOR}
        with pytest.raises(CheckpointError, match="damaged"):
            read_state_dict(b"\x80\x02X" + struct.pack("<I", 400_000_000) + b".", "weights.bin")
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
