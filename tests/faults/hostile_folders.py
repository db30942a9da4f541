"""Hostile presets: their folders, links, configurations and tokenizers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.good_presets import VOCABULARY, tokenizer_json, write_json
from tests.fuzz.tokenizer_seeds import precompiled

OUTSIDE = "outside"  # a folder beside the preset, with a copy of its files


@dataclass(frozen=True)
class Kind:
    """A hostile preset.

    Attributes:
        name: what is wrong with it.
        base: the whole preset that it begins as, one of `good_presets.FORMATS`.
        make: does the harm to the preset's folder.
        error: part of the error that reading it must end in.
    """

    name: str
    base: str
    make: Callable[[Path], object]
    error: str


# === Links, pipes, indices ===


def _link_out(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder.parent / OUTSIDE / name)

    return make


def _link(name: str, target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def _pipe(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def _folder(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return make


def _giant(name: str, size: int) -> Callable[[Path], None]:
    """A file that is a hole of so many bytes."""

    def make(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return make


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


INDEX = "model.safetensors.index.json"


def _index(shards: list[str]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_json(folder / INDEX, {"weight_map": {str(i): name for i, name in enumerate(shards)}})

    return make


def _shard_twice(folder: Path) -> None:
    names = sorted(path.name for path in folder.glob("model-*"))
    (folder / "model-copy").write_bytes((folder / names[0]).read_bytes())
    _index([*names, "model-copy"])(folder)


def _pipe_as_shard(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    _index(["pipe"])(folder)


FOLDERS = (
    Kind("weights are a link to a file elsewhere", "safetensors", _link_out("model.safetensors"),
         "is a link out of its folder"),
    Kind("configuration is a link to a file elsewhere", "safetensors", _link_out("config.json"),
         "is a link out of its folder"),
    Kind("vocabulary is a link to a file elsewhere", "h5",
         _link_out("assets/tokenizer/vocabulary.json"), "is a link out of its folder"),
    Kind("weights are a link to a device", "torch", _link("pytorch_model.bin", "/dev/zero"),
         "is not a regular file"),
    Kind("weights are a link to nothing", "safetensors", _link("model.safetensors", "nowhere"),
         "is a link to nowhere, which is not there"),
    Kind("weights are a link to themselves", "safetensors",
         _link("model.safetensors", "model.safetensors"), "cannot be read"),
    Kind("weights are a pipe", "safetensors", _pipe("model.safetensors"), "is not a regular file"),
    Kind("configuration is a pipe", "h5", _pipe("config.json"), "is not a regular file"),
    Kind("merge rules are a pipe", "h5", _pipe("assets/tokenizer/merges.txt"),
         "is not a regular file"),
    Kind("configuration is a folder", "torch", _folder("config.json"), "is not a regular file"),
    Kind("index names a shard above its folder", "shards", _index([f"../{OUTSIDE}/config.json"]),
         "names a shard outside its folder"),
    Kind("index names a shard by an absolute path", "shards", _index(["/etc/passwd"]),
         "names a shard outside its folder"),
    Kind("index names a shard with a null character", "shards", _index(["a\0b"]),
         "or by no plain name"),
    Kind("index names a pipe", "shards", _pipe_as_shard, "is not a regular file"),
    Kind("index names a file of another kind", "shards", _index(["merges.txt"]),
         "is truncated or not a safetensors file"),
    Kind("index names 5,000 shards", "shards", _index([f"s{i}" for i in range(5000)]),
         "lists 5000 shards, of at most 1000"),
    Kind("one tensor in two shards", "shards", _shard_twice, "hold the tensors"),
    Kind("index of 8 GB", "shards", _giant(INDEX, 8 * 1024**3), "such a file may have 16777216"),
    Kind("index nested 100,000 deep", "shards", _text(INDEX, "[" * 100_000),
         "it nests too deeply"),
)  # fmt: skip

# === Configurations ===


def _set(**values: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        write_json(folder / "config.json", config | values)

    return make


def _set_keras(**values: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        write_json(folder / "config.json", config | {"config": config["config"] | values})

    return make


def _replace(old: str, new: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / "config.json"
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), "utf-8")

    return make


CONFIGS = (
    Kind("configuration of 8 GB", "h5", _giant("config.json", 8 * 1024**3), "may have 4194304"),
    Kind("configuration nested 100,000 deep", "torch", _text("config.json", '{"a":' * 100_000),
         "it nests too deeply"),
    Kind("configuration with a name twice", "torch", _replace("{", '{"hidden_size": 9, '),
         "it gives the name 'hidden_size' twice"),
    Kind("configuration with NaN", "h5", _set_keras(dropout=float("nan")),
         "it holds the number NaN, which is not finite"),
    Kind("configuration with 1e999", "torch", _replace('"dropout": 0.1', '"dropout": 1e999'),
         "it holds the number 1e999, which is not finite"),
    Kind("a size of 5,000 digits", "torch",
         _replace('"hidden_size": 8', '"hidden_size": ' + "9" * 5000), "is not JSON"),
    Kind("a million layers", "torch", _set(num_hidden_layers=10**6),
         "num_layers must be at most 1024, got 1000000"),
    Kind("a width of 2**40", "h5", _set_keras(hidden_dim=2**40), "hidden_dim must be at most 131072"),
    Kind("a vocabulary of 10**12", "h5", _set_keras(vocabulary_size=10**12),
         "vocabulary_size must be at most 16777216"),
    Kind("sizes within bounds that no file has", "h5",
         _set_keras(vocabulary_size=2**24, hidden_dim=2**16), "do not fit its configuration"),
    Kind("a negative size", "torch", _set(ffn_dim=-1), "must be a whole number of at least 1, got -1"),
    Kind("a size that is a list", "h5", _set_keras(num_heads=[2]), "must be a whole number"),
    Kind("a class that is not OPT's", "h5", _set(registered_name="builtins>eval"),
         "holds 'builtins>eval', not an OPT model"),
    Kind("a lambda as dtype", "h5", _set_keras(dtype={"class_name": "__lambda__", "config": {}}),
         "a __lambda__ as dtype"),
    Kind("a sequence length of 10**15", "h5",
         _text("preprocessor.json", '{"config": {"sequence_length": 1000000000000000}}'),
         "sequence_length must be a positive whole number up to"),
)  # fmt: skip

# === Tokenizers ===


def _tokenizer(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "tokenizer.json", tokenizer_json() | changes)


def _assets(text: str) -> Callable[[Path], object]:
    return _text("assets/tokenizer/vocabulary.json", text)


_DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_SEQUENCE_B = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "B", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}
_REPEATED = _SEQUENCE_B | {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * 10_000}
_LONG_ADDED = [{"id": 300, "content": "x" * 2**21, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": False}]  # fmt: skip
_PADDING = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None}
_PADDING |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
_STRIDE = {"max_length": 1, "stride": 5, "strategy": "LongestFirst", "direction": "Right"}
_UNKNOWN = {"type": "BPE", "vocab": VOCABULARY, "merges": [["no", "ne"]]}

TOKENIZERS = (
    Kind("an id of 10**18", "h5", _assets('{"</s>": 2, "<pad>": 1, "a": 1000000000000000000}'),
         "not to an id of 0 to 16777215"),
    Kind("half a character as a token", "h5", _assets(r'{"</s>": 2, "<pad>": 1, "\ud800": 3}'),
         "it holds half a character"),
    Kind("a token twice", "h5", _assets('{"</s>": 2, "<pad>": 1, "</s>": 0}'),
         "it gives the name '</s>' twice"),
    Kind("a vocabulary of 8 GB", "h5",
         _giant("assets/tokenizer/vocabulary.json", 8 * 1024**3), "may have 67108864"),
    Kind("a vocabulary that is not UTF-8", "h5",
         lambda folder: (folder / "assets/tokenizer/vocabulary.json").write_bytes(b'{"\xff": 1}'),
         "is not UTF-8 text"),
    Kind("forty steps that each double a text", "torch",
         _tokenizer(normalizer={"type": "Sequence", "normalizers": [_DOUBLE] * 30}),
         "makes up to 1.07e+09 bytes of one byte of text"),
    Kind("a replacement of nothing by much", "torch",
         _tokenizer(normalizer=_DOUBLE | {"pattern": {"Regex": ""}, "content": "a" * 1000}),
         "makes up to 2e+03 bytes of one byte of text"),
    Kind("bytes spelled as bytes thirty times", "torch",
         _tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [_BYTES] * 30}),
         "has 30 ByteLevel pre-tokenizers, at most one"),
    Kind("a thousand steps", "torch",
         _tokenizer(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000}),
         "has more than 32 normalizers"),
    Kind("a template that the library panics on", "torch", _tokenizer(post_processor=_SEQUENCE_B),
         "has a template with 1 places for one text, ['B']"),
    Kind("a template of a text ten thousand times", "torch", _tokenizer(post_processor=_REPEATED),
         "has a template with 10000 places for one text"),
    Kind("a normalizer that the library panics on", "torch",
         _tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
         "tokenizer.json has a step 'Precompiled', and known ones are"),
    Kind("a table that makes a thousand letters of one, three times", "torch",
         _tokenizer(normalizer={"type": "Sequence", "normalizers": [precompiled("a", "b" * 1000)] * 3}),
         "tokenizer.json has a step 'Precompiled', and known ones are"),
    Kind("an added token of two megabytes", "torch", _tokenizer(added_tokens=_LONG_ADDED),
         "have 2097152 bytes, and may have 1048576"),
    Kind("a merge rule of unknown tokens", "torch", _tokenizer(model=_UNKNOWN),
         "tokenizer.json is not valid: Token `no` out of vocabulary"),
    Kind("a tokenizer without a model", "torch", _tokenizer(model=None), "tokenizer.json"),
    Kind("special ids that are no ids", "torch",
         lambda folder: (_tokenizer()(folder), _set(eos_token_id=[2, "x"])(folder)),
         "eos_token_id must be a token id or a list of up to 1000, got [2, 'x']"),
    Kind("an added token without a text", "torch",
         lambda folder: (_tokenizer()(folder),
                         write_json(folder / "tokenizer_config.json",
                                    {"added_tokens_decoder": {"3": {}}})),
         "is no token, a string or an object of one"),
)  # fmt: skip

# What looks as bad and is taken: the harm in it is never done.
HARMLESS = (
    ("a padding to 10**12 tokens, which is not applied", _tokenizer(padding=_PADDING)),
    ("a truncation that the library panics on, which is not applied", _tokenizer(truncation=_STRIDE)),
    (
        "an empty list of ends, which says nothing",
        lambda folder: (_tokenizer()(folder), _set(eos_token_id=[])(folder)),
    ),
)
