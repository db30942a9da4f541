"""Presets downloaded by the real clients from servers on this machine.

The clients read their environment when they are imported, so each test runs them in a process of its
own, which prints one line of JSON per preset and nothing else on standard output.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.presets.handles import COPY_HINT
from tests.exporter.hub_servers import HuggingFaceServer, KaggleServer, commit_of

MEGABYTE = 2**20
RESOLVE = """
import json, sys
from exporter.errors import PresetError
from exporter.presets.handles import resolve_preset
for preset in sys.argv[2:]:
    try:
        print(json.dumps(str(resolve_preset(preset, weights=sys.argv[1] == "weights"))))
    except PresetError as error:
        print(json.dumps(str(error).splitlines()))
"""


def some_bytes(seed, size=1000):
    return random.Random(seed).randbytes(size)


def part(files, names):
    return {name: files[name] for name in names}


# As the hubs hold them. No two files are the same: the client fetches a content once.
KERAS = {
    "README.md": b"a model",
    "config.json": b'{"registered_name": "keras_hub>OPTBackbone"}',
    "metadata.json": b'{"of": "keras"}',
    "tokenizer.json": b'{"tokenizer": 1}',
    "assets/tokenizer/vocabulary.json": b'{"a": 0}',
    "assets/tokenizer/merges.txt": b"#version: 0.2\n",
    "model.weights.h5": some_bytes(1),
}
HUGGING_FACE = {
    ".gitattributes": b"*.bin",
    "README.md": b"a model",
    "config.json": b'{"model_type": "opt"}',
    "generation_config.json": b'{"generation": 1}',
    "vocab.json": b'{"a": 0}',
    "merges.txt": b"#version: 0.2\n",
    "tokenizer_config.json": b'{"tokenizer": 1}',
    "special_tokens_map.json": b'{"tokens": 1}',
    "pytorch_model.bin": some_bytes(2),
    "flax_model.msgpack": some_bytes(3),
    "tf_model.h5": some_bytes(4),
}
HUGGING_FACE_SMALL = set(HUGGING_FACE) - {
    ".gitattributes",
    "README.md",
    "pytorch_model.bin",
    "flax_model.msgpack",
    "tf_model.h5",
}
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
SHARDED = {
    **HUGGING_FACE,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    ).encode(),
    SHARDS[0]: some_bytes(5),
    SHARDS[1]: some_bytes(6),
}
ADAPTER = {
    "README.md": b"an adapter",
    "adapter_config.json": b'{"peft_type": "LORA"}',
    "adapter_model.safetensors": some_bytes(9),
    "tokenizer_config.json": b'{"of": "the adapter"}',
    "training_args.bin": some_bytes(10),
}
RESOLVE_ADAPTER = """
import json, sys
from exporter.errors import PresetError
from exporter.presets.handles import resolve_adapter
for adapter in sys.argv[1:]:
    try:
        print(json.dumps(str(resolve_adapter(adapter))))
    except PresetError as error:
        print(json.dumps(str(error).splitlines()))
"""


@pytest.fixture
def kaggle():
    models = {
        "me/opt/keras/toy/1": {**KERAS, "model.weights.h5": some_bytes("old")},
        "me/opt/keras/toy/2": KERAS,
        "me/opt/transformers/toy/1": {name: HUGGING_FACE[name] for name in sorted(HUGGING_FACE)},
        "me/opt/keras/words/1": {
            name: KERAS[name] for name in KERAS if name.startswith(("tok", "ass"))
        },
        "me/opt/keras/large/1": {**KERAS, "model.weights.h5": some_bytes(7, 4 * MEGABYTE)},
        "keras/opt/keras/opt_125m_en/3": KERAS,
    }
    with KaggleServer(models) as server:
        yield server


@pytest.fixture
def hugging_face():
    repositories = {
        "me/toy": {
            "main": HUGGING_FACE,
            "v1": {**HUGGING_FACE, "vocab.json": b'{"old": 1}'},
            "refs/pr/1": KERAS,
        },
        "me/sharded": {"main": SHARDED},
        "me/torn": {"main": {name: SHARDED[name] for name in SHARDED if name != SHARDS[1]}},
        "me/tensorflow": {"main": {n: HUGGING_FACE[n] for n in (*HUGGING_FACE_SMALL, "tf_model.h5")}},
        "me/adapter": {"main": ADAPTER},
        "me/old_adapter": {
            "main": {**part(ADAPTER, {"adapter_config.json"}), "adapter_model.bin": some_bytes(11)}
        },
        "me/both": {"main": HUGGING_FACE | ADAPTER},
        "me/adapter_and_config": {
            "main": ADAPTER | part(HUGGING_FACE, {"config.json", "generation_config.json"})
        },
        "me/adapter_without_weights": {"main": part(ADAPTER, {"adapter_config.json"})},
        "me/data": {"main": {"README.md": b"", "train.csv": b"1"}},
        "me/large": {"main": {**HUGGING_FACE, "pytorch_model.bin": some_bytes(8, 12 * MEGABYTE)}},
        "keras/opt_125m_en": {"main": KERAS},
    }
    with HuggingFaceServer(repositories) as server:
        yield server


class Client:
    """Runs the clients in processes that share a home, and so their caches.

    Attributes:
        err: what the last process wrote to standard error.
    """

    def __init__(self, repository, home, *servers):
        self.repository, self.servers, self.err = repository, servers, ""
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        self.environment = {**kept, "HOME": str(home), "USERPROFILE": str(home)}
        for server in servers:
            self.environment |= server.environment()

    def run(self, *arguments, **environment):
        """The lines that Python prints."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.repository,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        self.err = done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def resolve(self, *presets, weights=True, **environment):
        """Of each preset its folder, or the lines of the error."""
        mode = "weights" if weights else "no weights"
        answers = [json.loads(line) for line in self.run("-c", RESOLVE, mode, *presets, **environment)]
        assert len(answers) == len(presets)
        return [Path(answer) if isinstance(answer, str) else answer for answer in answers]

    def reasons(self, *presets, **options):
        """Of each preset, which none of its sources gives, the reasons."""
        found = []
        for preset, lines in zip(presets, self.resolve(*presets, **options), strict=True):
            assert lines[0] == f"cannot download preset {preset!r}:", lines
            assert lines[-1] == COPY_HINT
            found.extend(line.removeprefix("  ") for line in lines[1:-1])
        return found


@pytest.fixture
def client(repository, tmp_path, kaggle, hugging_face):
    return Client(repository, tmp_path, kaggle, hugging_face)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# === What is downloaded ===


def test_adapters(client):
    needed = {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"}
    alone, old, both, configured = client.resolve(
        "hf://me/adapter", "hf://me/old_adapter", "hf://me/both", "hf://me/adapter_and_config"
    )
    assert contents(alone) == part(ADAPTER, needed)
    assert set(contents(old)) == {"adapter_config.json", "adapter_model.bin"}
    assert set(contents(both)) == needed | HUGGING_FACE_SMALL | {"pytorch_model.bin"}
    assert set(contents(configured)) == needed | {"config.json", "generation_config.json"}
    assert client.reasons("hf://me/adapter_without_weights")[0].endswith(
        "its adapter has no weights: expected adapter_model.safetensors or adapter_model.bin"
    )
    alone_again, old_again = client.resolve(
        "hf://me/adapter", "hf://me/old_adapter", HF_HUB_OFFLINE="1"
    )
    assert (alone_again, old_again) == (alone, old)


def test_an_adapter_is_downloaded_without_the_weights_beside_it(client):
    lines = client.run("-c", RESOLVE_ADAPTER, "hf://me/both", "hf://me/toy", "hf://me/none")
    both, toy, none = map(json.loads, lines)
    assert "pytorch_model.bin" not in contents(Path(both))
    assert "adapter_model.safetensors" in contents(Path(both))
    assert toy == [
        "cannot download adapter 'hf://me/toy': it holds no adapter: it has no adapter_config.json"
    ]
    assert "there is no such repository" in none[0]


def test_kaggle_models(client, kaggle):
    latest, old, built_in = client.resolve(
        "kaggle://me/opt/keras/toy", "kaggle://me/opt/keras/toy/1/", "opt_125m_en"
    )
    assert contents(latest) == contents(built_in) == KERAS
    assert contents(old) == kaggle.models["me/opt/keras/toy/1"]
    assert len({latest, old, built_in}) == 3
    assert "%|" in client.err  # progress; that it is nowhere else, `resolve` has found
    assert "Downloading to " in client.err


def test_kaggle_without_weights(client, kaggle):
    keras, hugging_face, words = client.resolve(
        "kaggle://me/opt/keras/toy/2",
        "kaggle://me/opt/transformers/toy/1",
        "kaggle://me/opt/keras/words/1",
        weights=False,
    )
    assert contents(keras) == part(KERAS, set(KERAS) - {"README.md", "model.weights.h5"})
    assert contents(hugging_face) == part(HUGGING_FACE, HUGGING_FACE_SMALL)
    assert set(contents(words)) == {
        "tokenizer.json",
        "assets/tokenizer/vocabulary.json",
        "assets/tokenizer/merges.txt",
    }
    assert not kaggle.requested() & {"model.weights.h5", "pytorch_model.bin", "README.md"}
    assert client.resolve("kaggle://me/opt/keras/toy/2") == [keras]
    assert contents(keras) == KERAS
    kaggle.stop()
    assert client.resolve("kaggle://me/opt/keras/toy/2", weights=False) == [keras]


def test_one_set_of_weights_and_what_belongs_to_it(client, hugging_face):
    (folder,) = client.resolve("hf://me/toy")
    assert folder.name == commit_of("me/toy")
    assert contents(folder) == part(HUGGING_FACE, {*HUGGING_FACE_SMALL, "pytorch_model.bin"})
    assert hugging_face.requested() == set(contents(folder))
    assert len(hugging_face.contents) == len(contents(folder))
    assert "%|" in client.err


def test_safetensors_in_shards_come_before_pickles(client, hugging_face):
    (folder,) = client.resolve("hf://me/sharded")
    needed = {*HUGGING_FACE_SMALL, *SHARDS, "model.safetensors.index.json"}
    assert contents(folder) == part(SHARDED, needed)
    assert hugging_face.requested() == needed


def test_revisions_and_both_formats(client, hugging_face):
    old, keras, by_commit = client.resolve(
        "hf://me/toy@v1", "hf://me/toy@refs/pr/1", f"hf://me/toy@{commit_of('me/toy', 'v1')}"
    )
    assert (old / "vocab.json").read_bytes() == b'{"old": 1}'
    assert by_commit == old
    assert contents(keras) == part(KERAS, set(KERAS) - {"README.md"})


def test_without_weights_and_then_with_them(client, hugging_face):
    (folder,) = client.resolve("hf://me/toy", weights=False)
    assert contents(folder) == part(HUGGING_FACE, HUGGING_FACE_SMALL)
    assert client.resolve("hf://me/toy") == [folder]
    assert [r.name for r in hugging_face.contents].count("config.json") == 1
    assert "pytorch_model.bin" in contents(folder)


# === The cache ===


def test_what_is_in_the_cache_needs_no_hub(client, kaggle, hugging_face):
    presets = ("hf://me/toy", "hf://me/sharded", "opt_125m_en", "kaggle://me/opt/keras/toy/2")
    folders = client.resolve(*presets)
    kaggle.calls.clear()
    hugging_face.calls.clear()
    assert client.resolve(*presets) == folders
    assert kaggle.calls == []
    # One question each, for the commit that the branch is at; no list, no file.
    assert [call for call in hugging_face.calls if "/me/" in call] == [
        f"GET /api/models/me/{name}/revision/main" for name in ("toy", "sharded")
    ]

    hugging_face.calls.clear()
    assert client.resolve("hf://me/toy", HF_HUB_OFFLINE="1") == folders[:1]
    assert hugging_face.calls == []
    kaggle.stop()
    hugging_face.stop()
    assert client.resolve(*presets) == folders
    assert client.resolve(*presets, weights=False) == folders
    (reason,) = client.reasons("kaggle://me/opt/keras/toy")
    assert reason.startswith("Kaggle model me/opt/keras/toy: it cannot be reached (")
    assert reason.endswith("; with its version in the handle, a cached model needs no network")


def test_offline_without_a_copy(client, tmp_path):
    client.resolve("hf://me/large", weights=False)
    cache = tmp_path / ".cache" / "huggingface" / "hub"
    for preset in ("hf://me/toy", "hf://me/large"):
        assert client.reasons(preset, HF_HUB_OFFLINE="1") == [
            f"Hugging Face repository {preset[5:]}: HF_HUB_OFFLINE is set, and the cache {cache} has "
            "no complete copy"
        ]


# === Sources of built-in presets ===


def test_a_built_in_preset_from_hugging_face_where_kaggle_is_away(client, kaggle, hugging_face):
    kaggle.stop()
    (folder,) = client.resolve("opt_125m_en")
    assert contents(folder) == part(KERAS, set(KERAS) - {"README.md"})
    assert client.err.startswith("Kaggle model keras/opt/keras/opt_125m_en/3: it cannot be reached (")
    hugging_face.stop()
    kaggle_reason, hugging_face_reason = client.reasons("opt_1.3b_en")
    assert kaggle_reason.startswith(
        "Kaggle model keras/opt/keras/opt_1.3b_en/3: it cannot be reached ("
    )
    assert hugging_face_reason.startswith(
        "Hugging Face repository keras/opt_1.3b_en: it cannot be reached, or the download broke off ("
    )


# === Refusals ===


def test_what_the_hubs_do_not_have(client):
    none = "there is no such "
    token = "log in with `hf auth login` or set HF_TOKEN"
    assert client.reasons(
        "kaggle://me/opt/keras/toy/9",
        "kaggle://me/opt/keras/none",
        "kaggle://me/opt/nonsense/toy",
        "hf://me/none",
        "hf://me/toy@none",
        "opt_6.7b_en",
    ) == [
        f"Kaggle model me/opt/keras/toy/9: {none}model or version (404)",
        f"Kaggle model me/opt/keras/none: {none}model or version (404)",
        "Kaggle model me/opt/nonsense/toy: 'nonsense' is not a valid ModelFramework",
        f"Hugging Face repository me/none: {none}repository, or it is private: {token}",
        "Hugging Face repository me/toy@none: it has no revision 'none'",
        f"Kaggle model keras/opt/keras/opt_6.7b_en/3: {none}model or version (404)",
        f"Hugging Face repository keras/opt_6.7b_en: {none}repository, or it is private: {token}",
    ]


@pytest.mark.slow
def test_repositories_that_hold_no_preset(client, hugging_face):
    torn, tensorflow, data = client.reasons("hf://me/torn", "hf://me/tensorflow", "hf://me/data")
    assert torn.endswith(f": it lacks the shards {SHARDS[1]} that model.safetensors.index.json lists")
    assert (
        ": it has no weights: expected model.safetensors or model.safetensors.index.json or "
        in tensorflow
    )
    assert data.endswith(": it has no config.json, so it holds no model")
    assert not hugging_face.requested() & {SHARDS[0], "tf_model.h5", "pytorch_model.bin", "train.csv"}
    (data,) = client.reasons("hf://me/data", weights=False)
    assert data.endswith(": it holds no preset: none of the files of Keras or of Hugging Face")


@pytest.mark.parametrize(("status", "weights"), [(401, True), (403, False)])
def test_access_is_denied(client, kaggle, hugging_face, status, weights):
    kaggle.denied = status, {}
    hugging_face.denied = status, {}
    assert client.reasons("opt_125m_en", weights=weights) == [
        "Kaggle model keras/opt/keras/opt_125m_en/3: there is no such model, or access to it is denied "
        f"({status}): log in with kagglehub.login() or set KAGGLE_API_TOKEN (or KAGGLE_USERNAME and "
        "KAGGLE_KEY), and accept the model's terms on its page",
        f"Hugging Face repository keras/opt_125m_en: access to it is denied ({status}): log in with "
        "`hf auth login` or set HF_TOKEN",
    ]


def test_a_restricted_repository(client, hugging_face):
    hugging_face.denied = 403, {"X-Error-Code": "GatedRepo"}
    assert client.reasons("hf://me/toy") == [
        "Hugging Face repository me/toy: access to it is restricted: accept its conditions at "
        f"{hugging_face.url}/me/toy and log in with `hf auth login` or set HF_TOKEN"
    ]


# === Interrupted downloads ===


def test_kaggle_goes_on_where_a_download_broke_off(client, kaggle):
    preset, name = "kaggle://me/opt/keras/large/1", "model.weights.h5"
    kaggle.cut[name] = 3 * MEGABYTE + 5
    (reason,) = client.reasons(preset)
    assert reason.startswith(
        "Kaggle model me/opt/keras/large/1: the download broke off; the next one goes on from there ("
    )
    kaggle.down.add(name)
    (reason,) = client.reasons(preset)  # what is left is no preset
    assert "503 Server Error" in reason
    kaggle.down.clear()
    kaggle.contents.clear()
    (folder,) = client.resolve(preset)
    assert contents(folder) == kaggle.models["me/opt/keras/large/1"]
    assert [r.start for r in kaggle.contents if r.name == name] == [0, 3 * MEGABYTE]
    kaggle.stop()
    assert client.resolve(preset) == [folder]


def test_hugging_face_goes_on_where_the_connection_broke(client, hugging_face):
    name = "pytorch_model.bin"
    hugging_face.cut[name] = 11 * MEGABYTE
    (folder,) = client.resolve("hf://me/large")
    assert (folder / name).read_bytes() == some_bytes(8, 12 * MEGABYTE)
    assert [r.start for r in hugging_face.contents if r.name == name] == [0, 10 * MEGABYTE]  # one call


@pytest.mark.slow
def test_what_hugging_face_left_half_is_no_preset(client, hugging_face, tmp_path):
    name = "pytorch_model.bin"
    hugging_face.cut[name] = 11 * MEGABYTE
    hugging_face.down.add(name)
    (reason,) = client.reasons("hf://me/large")
    assert "the hub answered Server error '503 Service Unavailable'" in reason
    assert [path for path in tmp_path.rglob("*") if path.stat().st_size > MEGABYTE] == []
    (reason,) = client.reasons("hf://me/large", HF_HUB_OFFLINE="1")
    assert reason.endswith(" has no complete copy")
    hugging_face.down.clear()
    (folder,) = client.resolve("hf://me/large")
    assert (folder / name).read_bytes() == some_bytes(8, 12 * MEGABYTE)
