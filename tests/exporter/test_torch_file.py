"""Reading what `torch.save` writes: values, rows, and files that are not valid."""

from __future__ import annotations

import collections
import random
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from exporter.checkpoints.torch_file import TorchReader
from exporter.errors import CheckpointError
from tests.exporter.torch_files import state_dict, storage, tensor, write_archive, write_torch_file

VALUES = np.arange(-6, 6, dtype=np.float32).reshape(4, 3) / 4
RECORDS = {"data/0": VALUES.tobytes()}
ROWS = [(0, None), (0, 2), (1, 3), (3, None), (2, 2), (-1, None), (0, 9), (7, 9)]


# === What torch writes ===


@pytest.fixture(scope="module")
def torch_tensors():
    """Tensors of every kind that a state dict holds, by name."""
    import torch

    values = torch.arange(24.0).reshape(4, 6) / 8
    return collections.OrderedDict(
        float32=values,
        float64=values.double(),
        float16=values.half(),
        bfloat16=values.bfloat16(),
        int64=values.long(),
        int8=values.char(),
        bool=values > 1,
        parameter=torch.nn.Parameter(values.clone()),
        half_parameter=torch.nn.Parameter(values.half()),
        shared=values,
        rows=values[1:3],
        transposed=values.T,
        columns=values[:, 1:3],
        every_second=values[::2],
        one_row=values[2:3, :2],
        permuted=torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        overlapping=torch.arange(12.0).as_strided((5, 2), (2, 1)),
        wide_step=torch.empty_strided((1, 3), (100, 1)).fill_(2.5),
        scalar=torch.tensor(3.5),
        scalar_view=values[3, 5],
        vector=values[0],
        no_rows=torch.zeros(0, 5),
        no_columns=torch.zeros(5, 0),
    )


def as_numpy(values):
    """The values of a torch tensor, of bfloat16 too."""
    import torch

    values = values.detach().contiguous()
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return values.numpy()


@pytest.mark.reference
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_what_torch_writes(torch_tensors, tmp_path, protocol):
    import torch

    torch.save(torch_tensors, tmp_path / "w.bin", pickle_protocol=protocol)
    reader = TorchReader(tmp_path / "w.bin")
    assert reader.shapes == {name: tuple(value.shape) for name, value in torch_tensors.items()}
    for name, value in torch_tensors.items():
        expected, found = as_numpy(value), reader.read(name)
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, expected, err_msg=name)
        for start, stop in ROWS if found.shape else []:
            rows = reader.read(name, start, stop)
            np.testing.assert_array_equal(rows, expected[start:stop], err_msg=f"{name} {start} {stop}")
    reader.close()


@pytest.mark.reference
def test_reads_the_state_dict_of_a_module(tmp_path):
    """It carries `_metadata`, and tied weights of one storage."""
    import torch

    module = torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5)
    )
    module[1].weight = module[0].weight
    state = module.state_dict()
    assert state._metadata
    torch.save(state, tmp_path / "w.bin")
    reader = TorchReader(tmp_path / "w.bin")
    assert set(reader.shapes) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(reader.read(name), value.numpy(), err_msg=name)


@pytest.mark.reference
def test_other_values_are_left_out(tmp_path):
    import torch

    state = {"w": torch.ones(2), "epoch": 3, "loss": 0.5, "tags": ["a", None], "more": {"x": (1, True)}}
    torch.save(state, tmp_path / "w.bin")
    assert TorchReader(tmp_path / "w.bin").shapes == {"w": (2,)}


def _refused_by_torch_name():
    import torch

    ones = torch.ones(3, 2)
    marked = torch.ones(2)
    marked.mark = 1
    return {
        "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
        "torch._utils._rebuild_tensor_v3": {"w": torch.ones(2, dtype=torch.uint16)},
        "torch._utils._rebuild_sparse_tensor": {"w": ones.to_sparse()},
        "torch._utils._rebuild_meta_tensor_no_storage": {"w": torch.ones(2, device="meta")},
        "torch._tensor._rebuild_from_type_v2": {"w": marked},
        "torch.ComplexFloatStorage": {"w": torch.ones(2, dtype=torch.complex64)},
        "torch.storage.UntypedStorage": {"w": ones.untyped_storage()},
        "torch.Size": {"w": ones, "size": ones.shape},
        "torch.float16": {"w": ones, "dtype": torch.float16},
    }


@pytest.mark.reference
def test_what_else_torch_writes_is_refused_by_name(tmp_path):
    import torch

    for name, value in _refused_by_torch_name().items():
        torch.save(value, tmp_path / "w.bin")
        with pytest.raises(CheckpointError, match=rf"w\.bin asks for {name};"):
            TorchReader(tmp_path / "w.bin")


@pytest.mark.reference
def test_the_format_before_torch_1_6_is_refused_with_the_way_out(tmp_path):
    import torch

    path = tmp_path / "w.bin"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError) as raised:
        TorchReader(path)
    assert str(raised.value) == (
        f"{path} is in the format before torch 1.6, which is not read; convert it where torch is "
        "installed: torch.save(torch.load(path, weights_only=True), path)"
    )
    torch.save(torch.load(path, weights_only=True), path)  # what the error says
    assert TorchReader(path).read("w").tolist() == [1, 1]


@pytest.mark.reference
def test_repeated_values_are_refused(tmp_path):
    """Axes without a stride could make a few bytes into terabytes."""
    import torch

    torch.save({"w": torch.ones(2).expand(1000, 2)}, tmp_path / "w.bin")
    with pytest.raises(CheckpointError) as raised:
        TorchReader(tmp_path / "w.bin")
    assert str(raised.value) == (
        f"{tmp_path / 'w.bin'}: tensor 'w' of shape (1000, 2) has more values than its storage, 2; "
        "save a contiguous copy of it"
    )


# === Reading only what is asked for ===


def test_rows_of_a_large_tensor_take_their_own_memory(tmp_path):
    values = np.zeros((4096, 4096), np.float32)  # 64 MB
    values[8, :5] = range(5)
    path = write_torch_file(tmp_path / "w.bin", {"w": values})
    tracemalloc.start()
    try:
        reader = TorchReader(path)
        rows = reader.read("w", 8, 10)
        assert tracemalloc.get_traced_memory()[1] < rows.nbytes + 200_000
        np.testing.assert_array_equal(rows, values[8:10])
        assert reader.read("w").sum() == 10
        assert tracemalloc.get_traced_memory()[1] < values.nbytes + rows.nbytes + 200_000
    finally:
        tracemalloc.stop()


def test_rows_of_a_view_take_the_span_of_the_rows(tmp_path, monkeypatch):
    counts = []
    fromfile = np.fromfile
    path = tmp_path / "w.bin"
    pickled = state_dict(
        columns=tensor(storage(items=1200), 1, (40, 5), (30, 1)),
        transposed=tensor(storage(items=1200), 0, (30, 40), (1, 30)),
    )
    write_archive(path, pickled, {"data/0": np.arange(1200, dtype=np.float32).tobytes()})
    reader = TorchReader(path)
    monkeypatch.setattr(
        np, "fromfile", lambda f, d, count, **o: counts.append(count) or fromfile(f, d, count, **o)
    )
    assert reader.read("columns", 3, 5).tolist() == [[91, 92, 93, 94, 95], [121, 122, 123, 124, 125]]
    assert reader.read("transposed", 29)[0, :3].tolist() == [29, 59, 89]
    assert reader.read("columns", 5, 5).shape == (0, 5)
    assert counts == [4 * 35, 4 * 1171]


# === The archive ===


def test_a_file_without_a_byte_order_is_little_endian(tmp_path):
    path = write_torch_file(tmp_path / "w.bin", {"w": VALUES, "h": VALUES.astype(np.float16)})
    reader = TorchReader(path)
    np.testing.assert_array_equal(reader.read("w"), VALUES)
    np.testing.assert_array_equal(reader.read("h"), VALUES.astype(np.float16))
    write_archive(path, state_dict(w=tensor()), {"byteorder": b"little", **RECORDS})
    np.testing.assert_array_equal(TorchReader(path).read("w"), VALUES)


def test_local_headers_of_64_bit_sizes(tmp_path):
    path = tmp_path / "w.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any name/data.pkl", state_dict(w=tensor()))
        with archive.open("any name/data/0", "w", force_zip64=True) as file:
            file.write(VALUES.tobytes())
    np.testing.assert_array_equal(TorchReader(path).read("w"), VALUES)


def test_a_big_endian_file_is_refused(tmp_path):
    path = write_archive(tmp_path / "w.bin", state_dict(w=tensor()), {"byteorder": b"big", **RECORDS})
    with pytest.raises(CheckpointError, match="in the byte order 'big', and only 'little' is read"):
        TorchReader(path)


def test_compressed_records_are_refused(tmp_path):
    path = write_archive(
        tmp_path / "w.bin", state_dict(w=tensor()), RECORDS, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(
        CheckpointError, match=r"'archive/data\.pkl' is compressed or encrypted \(zip m"
    ):
        TorchReader(path)


@pytest.mark.parametrize("names", [["x"], ["data.pkl"], ["a/data.pkl", "b/data.pkl"], ["a/b/data.pkl"]])
def test_another_zip_file_is_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
        for name in names:
            archive.writestr(name, state_dict(w=tensor()))
    with pytest.raises(CheckpointError, match=r"w\.bin is a zip file, but not one that torch\.save"):
        TorchReader(tmp_path / "w.bin")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(tmp_path):
    write_archive(tmp_path / "w.bin", state_dict(w=tensor()), RECORDS)
    with zipfile.ZipFile(tmp_path / "w.bin", "a") as archive:
        archive.writestr("archive/data/0", bytes(48))
    with pytest.raises(CheckpointError, match="1 repeated names"):
        TorchReader(tmp_path / "w.bin")


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    (tmp_path / "w.bin").write_bytes(data)
    with pytest.raises(CheckpointError) as raised:
        TorchReader(tmp_path / "w.bin")
    assert str(raised.value) == (
        f"{tmp_path / 'w.bin'} is truncated or not a file that torch.save wrote ({len(data)} bytes: "
        "File is not a zip file); fetch the file again"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (24, 4096, "record 'archive/data/0' ends at byte [0-9]+ of [0-9]+; fetch the file again"),
        (42, 7, "record 'archive/data/0' does not begin at byte 7, as it should"),
        (42, 2**31, "record 'archive/data/0' does not begin at byte 2147483648, as it should"),
        (10, 8, r"is compressed or encrypted \(zip method 8\)"),
        (8, 1, "is compressed or encrypted"),
    ],
    ids=["size", "offset", "offset outside", "method", "flags"],
)
def test_a_directory_that_does_not_fit_the_records(tmp_path, field, value, message):
    path = write_archive(tmp_path / "w.bin", state_dict(w=tensor()), RECORDS)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\1\2") + field  # the last record's entry
    width = 4 if field > 20 else 2
    data[place : place + width] = value.to_bytes(width, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        TorchReader(path)


def test_a_huge_pickle_is_refused(tmp_path):
    path = write_archive(tmp_path / "w.bin", bytes(1024 * 1024 + 1))
    with pytest.raises(CheckpointError, match=r"record 'data\.pkl' takes 1048577 bytes, at most 10485"):
        TorchReader(path)


# === Bounds ===

BEYOND = {
    "one item": (tensor(offset=1), "shape (4, 3), strides (3, 1) and offset 1 reaches item 13 of"),
    "far": (tensor(offset=2**62), f"reaches item {2**62 + 12} of a storage of 12"),
    "by a stride": (tensor(strides=(4, 1)), "strides (4, 1) and offset 0 reaches item 15 of a storage"),
    "by a long stride": (tensor(strides=(2**500, 1)), f"offset 0 reaches item {3 * 2**500 + 3} of"),
    "by its shape": (tensor(shape=(5, 3)), "of shape (5, 3) has more values than its storage, 12"),
    "by 2**80 values": (tensor(shape=(2**40, 2**40)), "has more values than its storage, 12"),
    "by nothing": (tensor(shape=(0, 2**62), strides=(1, 1)), "has more values than its storage"),
    "by an offset of nothing": (tensor(shape=(0, 3), offset=13), "reaches item 13 of a storage of 12"),
    "by its storage": (
        tensor(storage(items=13)),
        "has a storage of 13 items of float32, which take 52 bytes, but its record holds 48",
    ),
    "by its kind": (tensor(storage(kind=b"DoubleStorage")), "items of float64, which take 96 bytes"),
    "by a huge storage": (tensor(storage(items=2**70)), "but its record holds 48"),
    "by its record": (tensor(storage("1")), "is in a record '1' that the file does not have"),
    "by a path": (tensor(storage("../../data/0")), "in a record '../../data/0' that the file does not"),
}


@pytest.mark.parametrize(("stored", "message"), BEYOND.values(), ids=BEYOND)
def test_a_tensor_beyond_its_storage_is_an_error(tmp_path, stored, message):
    path = write_archive(tmp_path / "w.bin", state_dict(a=tensor(), w=stored), RECORDS)
    with pytest.raises(CheckpointError) as raised:
        TorchReader(path)
    assert str(raised.value).startswith(f"{path}: tensor 'w' ")
    assert message in str(raised.value)


def test_every_truncation_is_an_error(tmp_path):
    path = write_torch_file(tmp_path / "w.bin", {"w": VALUES, "v": VALUES[0]})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"w\.bin is truncated or not .*\({length} bytes: "):
            TorchReader(path)
    path.write_bytes(whole)
    np.testing.assert_array_equal(TorchReader(path).read("w"), VALUES)


def test_a_file_that_is_cut_while_open_is_an_error(tmp_path):
    path = write_torch_file(tmp_path / "w.bin", {"w": VALUES})
    reader = TorchReader(path)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(
        CheckpointError, match=r"cut short while it was open: tensor 'w' lacks .* of 48 b"
    ):
        reader.read("w")


def write_by_hand(path):
    pickled = state_dict(a=tensor(), b=tensor(strides=(1, 4)), c=tensor(offset=3, shape=(2, 3)))
    write_archive(path, pickled, {"byteorder": b"little", **RECORDS})


def write_by_torch(path):
    import torch

    values = torch.from_numpy(VALUES)
    torch.save({"a": values, "b": values.T, "c": torch.nn.Parameter(values[1:3])}, path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("part", ["pickle", "file"])
@pytest.mark.parametrize(
    "write", [write_by_hand, pytest.param(write_by_torch, marks=pytest.mark.reference)]
)
def test_damage_is_refused_or_stays_inside_the_file(tmp_path, write, part):
    """300 flips: no exception of another kind, and no tensor larger than its storage."""
    path = tmp_path / "w.bin"
    write(path)
    whole = path.read_bytes()
    begin = whole.index(b"\x80\x02}") if part == "pickle" else 0
    end = whole.index(b"PK", begin + 1) if part == "pickle" else len(whole)
    generator = random.Random(7)
    outcomes = {"refused": 0, "read": 0}
    for _ in range(300):
        data = bytearray(whole)
        data[generator.randrange(begin, end)] ^= generator.randrange(1, 256)
        path.write_bytes(data)
        try:
            reader = TorchReader(path)
            assert all(reader.read(name).size <= 12 for name in reader.shapes)
            outcomes["read"] += 1
        except CheckpointError as error:
            outcomes["refused"] += str(path) in str(error)
    assert sum(outcomes.values()) == 300
    assert min(outcomes.values()) > 0, outcomes
