"""The manifest: what is written is read, and nothing else is."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphs.contract import ModelConfig, Phase
from graphs.manifest import (
    FileEntry,
    GenerationDefaults,
    Manifest,
    ManifestError,
    Probe,
    read_manifest,
)
from graphs.sealed_json import seal

HASH = "0123456789abcdef" * 4


def entry(name: str, size: int = 5) -> FileEntry:
    return FileEntry(name, size, HASH)


MANIFEST = Manifest(
    model=ModelConfig(300, 2, 4, 32, 64, 64),
    precision="fp32",
    target="portable",
    cache_dtype="float32",
    graphs={Phase.PREFILL: entry("prefill.onnx", 7), Phase.DECODE: entry("decode.onnx", 6)},
    weights=entry("weights.bin", 98304),
    tokenizer=(entry("vocabulary.json"), entry("merges.txt")),
    generation=GenerationDefaults(48, {"class_name": "TopKSampler", "config": {"k": 5}}, (299, 2)),
    source={"preset": "Zoë"},
    versions={"keras": "3.15.1"},
    probe=Probe((5, 299), (7, 0), (1.5, -2.0), 0.001),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property; each writes the manifest anew."""
    return tmp_path_factory.mktemp("bundle")


def values() -> dict[str, Any]:
    """The manifest as JSON."""
    return {
        "format": "opt-onnx-bundle",
        "model": MANIFEST.model.to_dict(),
        "precision": "fp32",
        "target": "portable",
        "cache_dtype": "float32",
        "graphs": {
            "prefill": {"name": "prefill.onnx", "size": 7, "sha256": HASH},
            "decode": {"name": "decode.onnx", "size": 6, "sha256": HASH},
        },
        "weights": {"name": "weights.bin", "size": 98304, "sha256": HASH},
        "tokenizer": [
            {"name": "vocabulary.json", "size": 5, "sha256": HASH},
            {"name": "merges.txt", "size": 5, "sha256": HASH},
        ],
        "generation": {
            "max_length": 48,
            "sampler": {"class_name": "TopKSampler", "config": {"k": 5}},
            "end_token_ids": [299, 2],
        },
        "source": {"preset": "Zoë"},
        "versions": {"keras": "3.15.1"},
        "contract_revision": 3,
        "probe": {
            "prompt": [5, 299],
            "token_ids": [7, 0],
            "logits": [1.5, -2.0],
            "tolerance": 0.001,
        },
    }


def read(folder: Path, manifest: Any) -> Manifest:
    (folder / "manifest.json").write_text(sealed(manifest), "utf-8")
    return read_manifest(folder)


def sealed(manifest: Any) -> str:
    """The manifest's text as one writes it who alters it on purpose."""
    return seal(manifest) if isinstance(manifest, dict) else json.dumps(manifest)


def changed(place: str, value: Any) -> dict[str, Any]:
    """The manifest with the value at a dotted place replaced, or taken out if it is `...`."""
    manifest = values()
    *parents, last = place.split(".")
    node: Any = manifest
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node[name]
    if value is ...:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return manifest


# === Writing and reading ===


def test_what_is_written_is_read(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    data = (tmp_path / "manifest.json").read_bytes()
    without, _, rest = data.partition(b',\n  "sha256": "')
    digest = hashlib.sha256(without + b"\n}\n").hexdigest()
    assert rest.decode() == f'{digest}"\n}}\n'
    assert json.loads(data) == {**values(), "sha256": digest}
    assert read_manifest(tmp_path) == MANIFEST
    assert "Zoë" in (tmp_path / "manifest.json").read_text("utf-8")


def test_every_target_is_read(tmp_path: Path) -> None:
    for target in ("portable", "cpu"):
        assert read(tmp_path, changed("target", target)).target == target


def test_without_a_tokenizer(tmp_path: Path) -> None:
    manifest = read(tmp_path, changed("tokenizer", []))
    assert manifest.tokenizer == ()
    assert [file.name for file in manifest.files] == ["prefill.onnx", "decode.onnx", "weights.bin"]


def test_a_model_from_before_the_switches(tmp_path: Path) -> None:
    manifest = values()
    sizes = {name: manifest["model"][name] for name in list(manifest["model"])[:7]}
    assert list(sizes)[-1] == "layer_norm_epsilon"
    assert read(tmp_path, {**manifest, "model": sizes}) == MANIFEST


def test_a_model_with_switches(tmp_path: Path) -> None:
    model = dataclasses.replace(
        MANIFEST.model, embedding_dim=16, activation="gelu", norm_first=False, use_bias=False
    )
    manifest = dataclasses.replace(MANIFEST, model=model)
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert read_manifest(tmp_path).model.switches == model.switches


def test_files_and_their_size() -> None:
    names = ["prefill.onnx", "decode.onnx", "weights.bin", "vocabulary.json", "merges.txt"]
    assert [file.name for file in MANIFEST.files] == names
    assert MANIFEST.total_bytes == 7 + 6 + 98304 + 5 + 5


# === Malformed ===

REVISION = "follows revision {} of the graph contract and this runtime knows 3 and 4"
WHOLE = "must be a whole number"
BAD: list[tuple[str, Any, str]] = [
    ("format", ..., "is not the manifest of a bundle"),
    ("format", "onnx-bundle", "is not the manifest of a bundle"),
    ("contract_revision", ..., REVISION.format(None)),
    ("contract_revision", 1, REVISION.format(1)),
    ("contract_revision", 2, REVISION.format(2)),
    ("contract_revision", 5, REVISION.format(5)),
    ("contract_revision", True, REVISION.format(True)),
    ("contract_revision", 4, "contract_revision of target 'portable' must be 3, got 4"),
    ("contract_revision", [3], "follows revision"),
    (
        "precision",
        "int3",
        r"precision must be one of \('fp32', 'int8', 'int4', 'fp16', 'bf16'\), got 'int3'",
    ),
    ("precision", ["fp32"], "precision must be one of"),
    ("target", "tpu", r"target must be one of \('portable', 'cpu', 'cuda'\), got 'tpu'"),
    ("target", ["cpu"], "target must be one of"),
    ("target", None, "target must be one of"),
    (
        "cache_dtype",
        "float8",
        r"cache_dtype must be one of \('float32', 'float16', 'bfloat16'\), got 'float8'",
    ),
    *((name, ..., f"lacks the value '{name}'") for name in ("precision", "target", "cache_dtype")),
    ("model", ..., "lacks the value 'model'"),
    ("model", None, "is not valid"),
    ("model", [1, 2], "unknown names|is not valid"),
    ("model", [[]], "is not valid"),
    ("model", "text", "unknown names"),
    ("model.num_heads", ..., r"unknown names \[\], missing \['num_heads'\]"),
    ("model.num_heads", 5, "must be a multiple of num_heads"),
    ("model.num_layers", 0, "num_layers must be a whole number of at least 1, got 0"),
    ("model.num_layers", True, "num_layers must be a whole number of at least 1, got True"),
    ("model.rope", 1, r"unknown names \['rope'\]"),
    ("model.activation", "tanh", "activation must be one of relu, gelu, gelu_tanh, silu; got 'tanh'"),
    ("model.activation", None, "activation must be one of"),
    ("model.activation", {}, "activation must be one of"),
    ("model.embedding_dim", 0, "embedding_dim must be a whole number of at least 1, got 0"),
    *(
        (f"model.{name}", value, f"{name} must be true or false, got {value!r}")
        for name in ("norm_first", "final_norm", "use_bias", "norm_affine", "tied_head")
        for value in (1, None, "false")
    ),
    ("generation", ..., "lacks the value 'generation'"),
    ("generation", 5, "is not valid"),
    ("generation.max_length", ..., "is not valid: .*max_length"),
    ("generation.sampler", ..., "is not valid: .*sampler"),
    ("generation.seed", 4, "is not valid: .*seed"),
    *(
        ("generation.max_length", length, "generation.max_length is not within the model's positions")
        for length in (0, 65, 4.0, "48", None, True)
    ),
    ("generation.sampler", None, "sampler"),
    ("generation.sampler", 7, "sampler"),
    *(
        ("generation.end_token_ids", ids, "generation.end_token_ids must be ids from 0 to 299: ")
        for ids in ([], 2, "2", {}, [300], [2, -1], [True], [2.0], ["2"], [None], list(range(9000)))
    ),
    *(
        ("generation.options", options, "generation.options must be an object or null: ")
        for options in (5, "stop", [], ["stop"], True)
    ),
    ("generation.options", {"n": 4}, "generation.options has 'n', and may have repetition_penalty, "),
    ("generation.options", {"\x1b[2J": 4}, r"generation.options has '\\x1b\[2J', and may have"),
    ("graphs", ..., "lacks the value 'graphs'"),
    ("graphs", [], "is not valid"),
    ("graphs", {}, r"graphs lacks \["),
    ("graphs.decode", ..., r"graphs lacks \[.*decode.*\]"),
    ("graphs.train", {"name": "a", "size": 1, "sha256": HASH}, "'train' is not a valid Phase"),
    ("graphs.decode", "decode.onnx", "is not valid"),
    ("graphs.decode", None, "is not valid"),
    ("graphs.decode.name", "prefill.onnx", "files are named twice: prefill.onnx, prefill.onnx, "),
    ("weights", ..., "lacks the value 'weights'"),
    ("weights", [], "is not valid"),
    ("weights.size", ..., "is not valid: .*size"),
    ("weights.mode", 7, "is not valid: .*mode"),
    *(("weights.size", size, f"weights.bin: the size {WHOLE}, got") for size in (-1, 1.0, "5", True)),
    *(
        ("weights.sha256", digest, "weights.bin: the hash must have 64 digits, got")
        for digest in (None, 5, "", HASH[1:], HASH + "0", "z" * 64, " " * 64)
    ),
    *(
        ("weights.name", name, "a bundle's files have plain names, got")
        for name in (None, 5, "", ".", "..", "../a", "/a", "a/b", "a\\b", "a:b", "a\0b", ["a"])
    ),
    *(
        ("weights.name", f"weights{mark}.bin", re.escape(ascii(f"weights{mark}.bin")))
        # What a terminal would carry out, or not show: line ends, escapes, other directions, no width.
        for mark in "\n\r\t\x1b\x7f\x85\u2028\u202e\u200b\ufeff"
    ),
    ("tokenizer", ..., "lacks the value 'tokenizer'"),
    ("tokenizer", None, "is not valid"),
    ("tokenizer", {"name": "a"}, "is not valid"),
    ("tokenizer.1", "merges.txt", "is not valid"),
    ("tokenizer.1.name", "../merges.txt", "a bundle's files have plain names, got '../merges.txt'"),
    ("tokenizer.1.name", "vocabulary.json", "files are named twice"),
    ("weights.size", 100, "a model of 28800 parameters cannot be in the 100 bytes of weights.bin"),
    ("model.vocabulary_size", 2**24, "a model of .* parameters cannot be in the 98304 bytes"),
    ("model.num_layers", 1024, "a model of .* parameters cannot be in the 98304 bytes"),
    (
        "graphs.decode.size",
        2**24 + 1,
        "decode.onnx has 16777217 bytes, and such a file may have 16777216",
    ),
    ("tokenizer.0.size", 2**40, "vocabulary.json has 1099511627776 bytes, and such a file may have"),
    ("comment", "text", r"unknown names \['comment'\]"),
    ("probe", ..., "lacks the value 'probe'"),
    ("probe", 5, "is not valid"),
    ("probe", {}, "is not valid"),
    ("probe.token_ids", 7, "is not valid"),
    (
        "probe",
        {"prompt": [5], "token_ids": [], "logits": [], "tolerance": 0.1},
        "probe is not valid: it is no run of the model",
    ),
    *(
        (f"probe.{name}", value, "probe is not valid: it is no run of the model")
        for name, value in (
            ("prompt", []),
            ("prompt", [300]),
            ("prompt", [-1]),
            ("prompt", [True]),
            ("prompt", [5] * 63),
            ("token_ids", [7]),
            ("logits", [1, 2]),
            ("tolerance", 0.0),
            ("tolerance", "1"),
        )
    ),
    ("source", ..., "lacks the value 'source'"),
    ("source", 5, "is not valid"),
    ("versions", ..., "lacks the value 'versions'"),
    ("versions", [1], "is not valid"),
]


@pytest.mark.parametrize(
    ("place", "value", "message"), BAD, ids=[f"{place}={value!r:.20}" for place, value, _ in BAD]
)
def test_malformed_values(tmp_path: Path, place: str, value: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        read(tmp_path, changed(place, value))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1,", "NaN,", "[" * 100_000], ids=lambda text: text[:4])
def test_text_that_is_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(ManifestError, match=r"manifest\.json is not JSON"):
        read_manifest(tmp_path)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b'{"format": "\xff"}')
    with pytest.raises(ManifestError, match=r"manifest\.json is not JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("manifest", [None, 5, "text", [], [values()]])
def test_json_that_is_no_object(tmp_path: Path, manifest: Any) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json is no object of JSON"):
        read(tmp_path, manifest)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is no bundle: it has no manifest\.json"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match=r"is no bundle: it does not exist"):
        read_manifest(tmp_path / "nowhere")


# === The manifest's own hash ===


def test_a_flipped_bit_in_any_byte_is_found(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position * 5 % 8  # each bit in turn: 5 has no divisor of 8
        path.write_bytes(flipped)
        with pytest.raises(ManifestError):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + " ", "was altered: its SHA-256 is another"),
        (lambda text: text.replace("\n", "\r\n"), "was altered: its SHA-256 is another"),
        (lambda text: text.replace('"fp32"', '"f\\u00702"'), "was altered: its SHA-256 is another"),
        (lambda text: text.replace('"fp32"', '"\\ud800"'), "is not JSON: it holds half a character"),
        (lambda text: text.replace('"sha256": "', '"sha256": "0'), "was altered|64 digits"),
        (lambda text: json.dumps(values()), "has no SHA-256 of its own; copy the bundle or export"),
        (lambda text: text.replace("1.5", "NaN"), "is not JSON: it holds the number NaN"),
        (lambda text: text + " " * 2**20, "is larger than 1048576 bytes"),
    ],
)
def test_text_that_write_would_not_give(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(change(path.read_text("utf-8")).encode())
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)


# === Anything at all ===

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["fp32", "cpu", "prefill", "../x", HASH, 0, 1, 64, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON tree."""
    yield path
    items = (
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    )
    for key, child in items:
        yield from places(child, (*path, key))


Change = Callable[[Any], Any]


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """The manifest with a few values replaced, taken out, added or given another name."""
    manifest: Any = values()
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(manifest))))
        if not path:
            manifest = draw(JSON | st.just(manifest))
            continue
        parent = manifest
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "remove", "add", "copy"]))
        if kind == "replace":
            parent[path[-1]] = draw(JSON)
        elif kind == "remove":
            del parent[path[-1]]
        else:
            other = draw(st.sampled_from(list(places(manifest))))
            value: Any = manifest
            for key in other:
                value = value[key]
            value = draw(JSON) if kind == "add" else copy.deepcopy(value)
            if isinstance(parent, list):
                parent.append(value)
            else:
                parent[draw(st.text(max_size=5))] = value
    return manifest


@given(mutations())
@settings(max_examples=300)
@example(values())
def test_any_json_is_a_valid_manifest_or_an_error(folder: Path, manifest: Any) -> None:
    try:
        found = read(folder, manifest)
    except ManifestError:
        return
    assert_valid(found)
    found.write(folder)
    assert read_manifest(folder) == found


def assert_valid(manifest: Manifest) -> None:
    """What code that holds a manifest relies on."""
    assert isinstance(manifest.model, ModelConfig)
    assert (manifest.precision, manifest.cache_dtype) == ("fp32", "float32")
    assert manifest.target in ("portable", "cpu")
    assert set(manifest.graphs) == set(Phase)
    names = [file.name for file in manifest.files]
    assert len(set(names)) == len(names)
    for file in manifest.files:
        assert Path("folder", file.name).parent == Path("folder")
        assert file.name == Path(file.name).name
        assert file.size >= 0
        assert len(file.sha256) == 64
    assert 1 <= manifest.generation.max_length <= manifest.model.max_sequence_length
    for mapping in (manifest.source, manifest.versions):
        assert all(isinstance(text, str) for pair in mapping.items() for text in pair)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
def test_any_bytes_are_an_error(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(ManifestError):
        read_manifest(folder)


def test_a_bundle_of_an_older_export_says_nothing_of_what_ends_texts(tmp_path: Path) -> None:
    old = values()
    del old["generation"]["end_token_ids"]
    assert read(tmp_path, old).generation.end_token_ids is None
    assert read(tmp_path, {**old, "generation": {**old["generation"], "end_token_ids": None}}) == read(
        tmp_path, old
    )


def test_options_are_written_where_there_are_any(tmp_path: Path) -> None:
    options = {"repetition_penalty": 1.2, "bad_words_ids": [[5, 6]]}
    generation = dataclasses.replace(MANIFEST.generation, options=options)
    dataclasses.replace(MANIFEST, generation=generation).write(tmp_path)
    written = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert written["generation"]["options"] == options
    assert read_manifest(tmp_path).generation == generation
    without = read(tmp_path, changed("generation.options", None))
    assert without == MANIFEST
    without.write(tmp_path)
    assert "options" not in json.loads((tmp_path / "manifest.json").read_text("utf-8"))["generation"]
