"""Writes files in the layout of `torch.save` without torch, valid or not."""

from __future__ import annotations

import pickle
import struct
import zipfile

KINDS = {"f": b"FloatStorage", "e": b"HalfStorage"}


def text(value):
    """The instruction that pushes a string."""
    data = value if isinstance(value, bytes) else value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value):
    """The instruction that pushes a whole number."""
    return pickle.dumps(value, 2)[2:-1]


def numbers(values):
    """The instructions that push a tuple of whole numbers."""
    return b"(" + b"".join(whole(n) for n in values) + b"t"


def storage(key="0", kind=b"FloatStorage", items=12):
    """The instructions that name a storage."""
    return (
        b"("
        + text("storage")
        + b"ctorch\n"
        + kind
        + b"\n"
        + text(key)
        + text("cpu")
        + whole(items)
        + b"tQ"
    )


def tensor(stored=None, offset=0, shape=(4, 3), strides=(3, 1), function=b"_rebuild_tensor_v2"):
    """The instructions that rebuild a tensor: by default the [4, 3] one in record 0."""
    arguments = (storage() if stored is None else stored) + whole(offset)
    arguments += numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n" + function + b"\n(" + arguments + b"tR"


def state_dict(**values):
    """The pickle of a dict of values that are given as instructions."""
    items = b"".join(text(name) + value for name, value in values.items())
    return b"\x80\x02}(" + items + b"u."


def write_archive(path, pickled, records=None, **options):
    """A zip file of the pickle and of the records, which are bytes by name."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in (records or {}).items():
            archive.writestr(f"archive/{name}", data)
    return path


def write_torch_file(path, tensors):
    """A file of contiguous float32 or float16 arrays by name."""
    values, records = {}, {}
    for key, (name, array) in enumerate(tensors.items()):
        strides = [step // array.itemsize for step in array.strides]
        kind = KINDS[array.dtype.char]
        values[name] = tensor(storage(str(key), kind, array.size), 0, array.shape, strides)
        records[f"data/{key}"] = array.tobytes()
    return write_archive(path, state_dict(**values), records)
