"""What is fuzzed: how inputs begin, how they change, what reads them and what that may raise."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np

from exporter.checkpoints.h5_check import REFUSED, read_for_trial
from exporter.checkpoints.h5_file import H5Reader
from exporter.checkpoints.readers import TensorReader, shard_names
from exporter.checkpoints.safetensors_file import SafetensorsReader
from exporter.checkpoints.torch_file import TorchReader
from exporter.errors import CheckpointError, PresetError
from exporter.presets.folder import read_preset, read_text_folder
from exporter.presets.hugging_face_config import write_hugging_face_config
from exporter.presets.keras_config import backbone_config, dtype_policy, serialized
from graphs.contract import Phase
from graphs.manifest import MANIFEST_FILE, ManifestError, read_manifest
from graphs.sealed_json import SEAL, seal
from runtime.graph_check.graph_file import check_graph_file
from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.wire_format import GraphFileError
from runtime.tokenization.tokenizer import Tokenizer
from tests.exporter.torch_files import write_torch_file
from tests.faults.good_presets import MERGES, TINY, VOCABULARY, tensors, tokenizer_json
from tests.faults.preset_reading import use_tokenizer
from tests.fuzz.mutations import (
    SEPARATOR,
    Mutate,
    mutate_bytes,
    mutate_json,
    mutate_json_value,
    mutate_parts,
    mutate_safetensors,
    mutate_torch,
)

TOY_BUNDLE = Path(__file__).parents[1] / "data" / "toy_bundle"
MAX_MESSAGE = 20_000
MAX_INPUT = 64 * 1024
FORK_SECONDS = 1.0


@dataclass(frozen=True)
class Harness:
    """A reader and how to fuzz it.

    Attributes:
        about: what it is, for people.
        seeds: inputs to begin with, all of them valid.
        mutate: changes an input.
        run: reads an input; the folder is for its files.
        errors: what `run` may raise, these very classes.
    """

    about: str
    seeds: Callable[[], list[bytes]]
    mutate: Mutate
    run: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...]


def run_once(harness: Harness, data: bytes, folder: Path) -> Exception | None:
    """Reads one input; returns the error that it may end in.

    Raises:
        BaseException: any other, or an error that cannot be printed or is as long as the file.
    """
    try:
        harness.run(data, folder)
    except harness.errors as error:
        if type(error) not in harness.errors:  # a `ValueError` of the interpreter's own, say
            raise
        message = str(error).encode()
        if len(message) > MAX_MESSAGE:
            raise AssertionError(f"an error of {len(message)} bytes") from error
        return error
    return None


# === Manifest and graph ===


def _manifest_seeds() -> list[bytes]:
    values = json.loads((TOY_BUNDLE / MANIFEST_FILE).read_text("utf-8"))
    return [seal({name: value for name, value in values.items() if name != SEAL}).encode()]


def _mutate_manifest(data: bytes, source: random.Random) -> bytes:
    """Changed and sealed again: an altered manifest is told by its hash alone."""
    try:
        values = json.loads(data)
        del values[SEAL]
    except (ValueError, KeyError, TypeError, RecursionError):
        return mutate_json(data, source)
    changed = mutate_json_value(values, source)
    if not isinstance(changed, dict):
        return mutate_json(data, source)
    try:
        return seal(changed).encode()
    except UnicodeEncodeError:
        return json.dumps(changed).encode()


def _run_manifest(data: bytes, folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(data)
    manifest = read_manifest(folder)
    with contextlib.suppress(ManifestError):
        manifest.check_files(folder, weights_hash=False)


@cache
def _graph_limits() -> GraphLimits:
    values = json.loads((TOY_BUNDLE / MANIFEST_FILE).read_text("utf-8"))
    weights = TOY_BUNDLE / values["weights"]["name"]
    config = type(TINY).from_dict(values["model"])
    return GraphLimits(config, Phase.PREFILL, "float32", weights.name, weights.stat().st_size)


def _graph_seeds() -> list[bytes]:
    values = json.loads((TOY_BUNDLE / MANIFEST_FILE).read_text("utf-8"))
    return [(TOY_BUNDLE / values["graphs"]["prefill"]["name"]).read_bytes()]


def _run_graph(data: bytes, folder: Path) -> None:
    check_graph_file(data, _graph_limits())


# === Tokenizers ===


def _tokenizer_seeds() -> list[bytes]:
    special = {"start_token_id": 2, "end_token_id": 2, "pad_token_id": 1}
    normalizer = {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}|\s+"}, "behavior": "Isolated"}
    split |= {"invert": False}
    plain = tokenizer_json()
    template = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}
    template |= {"pair": [], "special_tokens": {}}
    other = plain | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, normalizer]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, plain["pre_tokenizer"]]},
        "post_processor": template,
    }
    return [
        SEPARATOR.join([json.dumps(VOCABULARY).encode(), MERGES.encode(), "héllo </s>".encode()]),
        *(
            SEPARATOR.join(
                [json.dumps(values).encode(), json.dumps(special).encode(), b"hello 12", b""]
            )
            for values in (plain, other)
        ),
    ]


def _run_tokenizer(data: bytes, folder: Path) -> None:
    first, second, text, *rest = [
        part.decode(errors="replace") for part in (*data.split(SEPARATOR), b"", b"")
    ]
    names = ("tokenizer.json", "special_tokens.json")
    if len(rest) < 3:
        names = ("vocabulary.json", "merges.txt")
    tokenizer = Tokenizer.from_files(dict(zip(names, (first, second), strict=True)))
    use_tokenizer(tokenizer)
    ids = tokenizer.encode(text)
    tokenizer.decode(ids, skip_special_tokens=True)
    assert all(0 <= i < 2**32 for i in ids)
    with contextlib.suppress(ValueError):  # what has no files says so
        assert Tokenizer.from_files(tokenizer.files()).encode(text) == ids


# === Weights ===


def _read_tensors(reader: TensorReader) -> None:
    with contextlib.closing(reader):
        for name, shape in reader.shapes.items():
            assert reader.read(name).shape == shape
            if shape:
                reader.read(name, 1, 2)


def _in_file(open_reader: Callable[[Path], TensorReader]) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path = folder / "weights"
        path.write_bytes(data)
        _read_tensors(open_reader(path))

    return run


def _safetensors_seeds() -> list[bytes]:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [0, 3], "data_offsets": [24, 24]},
        "c": {"dtype": "F16", "shape": [], "data_offsets": [24, 26]},
    }
    text = json.dumps(header).encode()
    return [len(text).to_bytes(8, "little") + text + bytes(26)]


def _torch_seeds() -> list[bytes]:
    file = io.BytesIO()
    write_torch_file(file, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    return [file.getvalue()]


def _check_in_fork(path: Path) -> None:
    """`check_in_child`, hundreds of times a second: a crash of the library there is an error here."""
    child = os.fork()
    if child == 0:
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL):
            signal.signal(number, signal.SIG_DFL)  # libFuzzer's are not for this process
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            read_for_trial(path)
        except CheckpointError:
            os._exit(REFUSED)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + FORK_SECONDS
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.001)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    status = ended[1]
    if os.WIFSIGNALED(status):
        raise CheckpointError(f"{path}: the library ended by signal {os.WTERMSIG(status)}")
    assert os.WEXITSTATUS(status) in (0, REFUSED), "an error in the child"


def _open_h5(path: Path) -> H5Reader:
    return H5Reader(path, check=_check_in_fork)


def _h5_seeds() -> list[bytes]:
    seeds = []
    for version, chunks in (("earliest", None), ("earliest", (2, 2)), ("latest", (2, 2))):
        file = io.BytesIO()
        with h5py.File(file, "w", libver=version) as h5:
            h5.create_dataset("layers/a/vars/0", data=np.ones((4, 3), np.float32), chunks=chunks)
            options = {"chunks": chunks, "compression": chunks and "gzip"}
            h5.create_dataset("layers/a/vars/1", data=np.ones((4, 4), np.float16), **options)
            bits = np.ones(3, ml_dtypes.bfloat16).view("V2")
            h5.create_dataset("layers/b", data=bits).attrs["dtype"] = "bfloat16"
        seeds.append(file.getvalue())
    return seeds


# === Configurations ===

HUGGING_FACE_PARTS = ("config.json", "vocab.json", "merges.txt", "tokenizer_config.json")
KERAS_PARTS = ("config.json", "tokenizer.json", "preprocessor.json")
INDEX = "model.safetensors.index.json"


def _config_seeds() -> list[bytes]:
    options = {"add_bos_token": True, "bos_token": {"content": "</s>"}, "eos_token": "</s>"}
    hugging_face = [write_hugging_face_config(TINY, "float32"), VOCABULARY, None, options]
    keras = [
        backbone_config(TINY, dtype=dtype_policy("float32")),
        serialized("OPTTokenizer", {"sequence_length": None, "unsplittable_tokens": ["</s>"]}),
        serialized("OPTCausalLMPreprocessor", {"sequence_length": 16, "add_start_token": True}),
    ]
    fast = [hugging_face[0], {}, None, options, tokenizer_json()]
    return [
        SEPARATOR.join(MERGES.encode() if v is None else json.dumps(v).encode() for v in values)
        for values in (hugging_face, keras, fast)
    ]


def _run_config(data: bytes, folder: Path) -> None:
    parts = data.split(SEPARATOR)
    names = (*HUGGING_FACE_PARTS, "tokenizer.json") if len(parts) > 3 else KERAS_PARTS
    for path in folder.iterdir():
        path.unlink()
    for name, part in zip(names, parts, strict=False):
        (folder / name).write_bytes(part)
    preset = read_preset(folder)
    assert type(preset.dropout) in (int, float)
    read_text_folder(folder)
    if preset.tokenizer_files is not None:
        with contextlib.suppress(ValueError):
            use_tokenizer(Tokenizer.from_files(preset.tokenizer_files))


def _index_seeds() -> list[bytes]:
    return [
        json.dumps({"weight_map": {"a": "one.safetensors", "b": ["one.h5", "two.h5"]}}).encode(),
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors("keras"), "x.h5")}).encode(),
    ]


def _run_index(data: bytes, folder: Path) -> None:
    (folder / INDEX).write_bytes(data)
    for name in shard_names(folder / INDEX):
        assert (folder / name).resolve().parent == folder.resolve()


HARNESSES = {
    "manifest": Harness(
        "graphs.manifest: the manifest of a bundle",
        _manifest_seeds, _mutate_manifest, _run_manifest, (ManifestError,),
    ),
    "graph": Harness(
        "runtime.graph_check: the graph of a bundle",
        _graph_seeds, mutate_bytes, _run_graph, (GraphFileError,),
    ),
    "tokenizer": Harness(
        "runtime.tokenization.tokenizer: vocabulary and merge rules, and tokenizer.json, with texts",
        _tokenizer_seeds, mutate_parts, _run_tokenizer, (ValueError,),
    ),
    "safetensors": Harness(
        "exporter.checkpoints.safetensors_file",
        _safetensors_seeds, mutate_safetensors, _in_file(SafetensorsReader), (CheckpointError,),
    ),
    "torch": Harness(
        "exporter.checkpoints.torch_file: zip file and pickle",
        _torch_seeds, mutate_torch, _in_file(TorchReader), (CheckpointError,),
    ),
    "h5": Harness(
        "exporter.checkpoints.h5_file, with the HDF5 library below it",
        _h5_seeds, mutate_bytes, _in_file(_open_h5), (CheckpointError,),
    ),
    "config": Harness(
        "exporter.presets.folder: configuration and tokenizer of Keras and Hugging Face presets",
        _config_seeds, mutate_parts, _run_config, (PresetError,),
    ),
    "index": Harness(
        "exporter.checkpoints.readers: the index of shards",
        _index_seeds, mutate_json, _run_index, (CheckpointError,),
    ),
}  # fmt: skip
