"""Exports from end to end: what a bundle says and does, and what is left when one fails."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from exporter import OPTCausalLM, export, export_bundle
from exporter.binding import ALIGNMENT
from exporter.cli import main
from exporter.errors import CheckpointError, ExportError, PresetError
from exporter.presets.folder import read_preset
from exporter.progress import Progress
from exporter.weights import CheckpointWeights, read_weight
from graphs.contract import CONTRACT_REVISION, Phase
from graphs.manifest import read_manifest
from runtime import Generator, samplers
from runtime.samplers import Sampler

pytestmark = pytest.mark.usefixtures("quick_tracing")

PROMPTS = [" the quick brown fox", "import", "é 日", " fox fox fox fox fox fox"]
LENGTH = 24
FILES = {
    "decode.onnx",
    "manifest.json",
    "merges.txt",
    "prefill.onnx",
    "vocabulary.json",
    "weights.bin",
}
STEPS = ("write_weights", "write_bound_graph", "verify_graphs", "verify_logits")


def run(*arguments):
    """The command's exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def fails(*arguments, code=2):
    """The one line that a failing command prints at the end."""
    found, out, err = run(*arguments)
    assert found == code
    assert out == ""
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith("opt-export: ")
    assert err.count("opt-export: ") == 1
    return line.removeprefix("opt-export: ")


def listing(folder):
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def bundle_tokens(bundle, **options):
    """The greedy tokens of every prompt, and the prompt's own."""
    generator = Generator.from_bundle(bundle, device="cpu", threads=1)
    generator.compile("greedy")
    results = generator.generate_results(PROMPTS, max_length=LENGTH, stop_token_ids=None, **options)
    return [[*r.prompt_token_ids, *r.token_ids] for r in results]


@pytest.fixture(scope="module")
def toy_bundle_of_ours(quick_tracing, toy_preset, tmp_path_factory):
    """A bundle of the preset that our own model saved, made by the command; not to be altered."""
    folder = tmp_path_factory.mktemp("bundles") / "toy"
    code, out, err = run("--preset", toy_preset, "--output", folder)
    assert code == 0, err
    return SimpleNamespace(folder=folder, out=out, err=err)


@pytest.fixture
def old_bundle(toy_bundle_of_ours, tmp_path):
    """A bundle that stands where an export is to go."""
    return shutil.copytree(toy_bundle_of_ours.folder, tmp_path / "bundle")


# === Against the reference implementations ===


@pytest.fixture(scope="module")
def prompt_ids(toy_tokenizer):
    """The tokens of every prompt."""
    return [[2, *toy_tokenizer.encode(prompt)] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def keras_hub_tokens(keras_hub, hub_model, prompt_ids):
    """What keras-hub's own `generate` makes of the prompts."""
    model = keras_hub.models.OPTCausalLM(backbone=hub_model.backbone, preprocessor=None)
    model.compile(sampler="greedy", run_eagerly=True)
    token_ids = np.ones((len(PROMPTS), LENGTH), "int32")
    mask = np.zeros((len(PROMPTS), LENGTH), bool)
    for i, prompt in enumerate(prompt_ids):
        token_ids[i, : len(prompt)], mask[i, : len(prompt)] = prompt, True
    found = model.generate({"token_ids": token_ids, "padding_mask": mask}, stop_token_ids=None)
    return np.asarray(found["token_ids"]).tolist()


@pytest.fixture(scope="module")
def transformers_tokens(hf_model, prompt_ids):
    """What transformers' own `generate` makes of the prompts."""
    import torch

    found = []
    for prompt in prompt_ids:
        ids = torch.tensor([prompt])
        answer = hf_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=LENGTH - len(prompt),
            eos_token_id=287,  # a row that no prompt comes to: nothing stops it
            pad_token_id=1,
        )
        assert 287 not in answer[0].tolist()
        found.append(answer[0].tolist())
    return found


@pytest.mark.reference
@pytest.mark.parametrize("preset", ["hub_preset", "hub_sharded_preset"])
def test_a_keras_hub_preset_says_what_keras_hub_says(preset, request, tmp_path, keras_hub_tokens):
    code, _, err = run("--preset", request.getfixturevalue(preset), "--output", tmp_path / "b")
    assert code == 0, err
    found = bundle_tokens(tmp_path / "b")
    assert found == keras_hub_tokens
    assert len({tuple(row[-10:]) for row in found}) > 1


@pytest.mark.reference
@pytest.mark.parametrize("preset", ["hf_folder", "hf_sharded_folder"])
def test_a_transformers_folder_says_what_transformers_says(
    preset, request, tmp_path, transformers_tokens
):
    code, _, err = run("--preset", request.getfixturevalue(preset), "--output", tmp_path / "b")
    assert code == 0, err
    assert bundle_tokens(tmp_path / "b") == transformers_tokens
    manifest = read_manifest(tmp_path / "b")
    assert manifest.generation.max_length == 64
    assert manifest.source["format"] == "huggingface"


# === What a bundle is ===


def test_the_bundle_says_what_the_model_says(toy_bundle_of_ours, toy_model, greedy, prompt_ids):
    found = bundle_tokens(toy_bundle_of_ours.folder)
    assert found == greedy(toy_model, prompt_ids, LENGTH)
    # What a row becomes does not depend on the rows beside it.
    generator = Generator.from_bundle(toy_bundle_of_ours.folder, threads=1)
    generator.compile("greedy")
    for prompt, expected in zip(PROMPTS, found, strict=True):
        (alone,) = generator.generate_results([prompt], LENGTH, stop_token_ids=None)
        assert [*alone.prompt_token_ids, *alone.token_ids] == expected


def test_the_manifest(toy_bundle_of_ours, toy_config):
    folder = toy_bundle_of_ours.folder
    assert {path.name for path in folder.iterdir()} == FILES
    manifest = read_manifest(folder)
    assert manifest.contract_revision == CONTRACT_REVISION
    assert manifest.model == toy_config
    assert manifest.precision == "fp32"
    assert manifest.target == "portable"
    assert manifest.cache_dtype == "float32"
    assert {phase: entry.name for phase, entry in manifest.graphs.items()} == {
        Phase.PREFILL: "prefill.onnx",
        Phase.DECODE: "decode.onnx",
    }
    assert manifest.weights.name == "weights.bin"
    assert [entry.name for entry in manifest.tokenizer] == ["vocabulary.json", "merges.txt"]
    assert manifest.generation.max_length == 32
    assert manifest.generation.sampler == samplers.serialize(samplers.TopKSampler(k=5))
    assert manifest.source == {"preset": "toy", "format": "keras"}
    assert {"keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime"} <= set(manifest.versions)
    manifest.check_files(folder, weights_hash=True)


def test_both_graphs_point_at_the_checkpoint_s_weights(toy_bundle_of_ours, toy_preset):
    folder = toy_bundle_of_ours.folder
    data = (folder / "weights.bin").read_bytes()
    places = {}
    for phase in Phase:
        model = onnx.load(folder / f"{phase}.onnx", load_external_data=False)
        external = [t for t in model.graph.initializer if t.external_data]
        for tensor in external:
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry["location"] == "weights.bin"
            places.setdefault(tensor.name, set()).add((int(entry["offset"]), int(entry["length"])))
    with contextlib.closing(CheckpointWeights(read_preset(toy_preset))) as source:
        assert set(places) == set(source.shapes)
        for name, shape in source.shapes.items():
            ((offset, length),) = places[name]  # the same in both
            assert offset % ALIGNMENT == 0
            stored = np.frombuffer(data[offset : offset + length], "<f4").reshape(shape)
            np.testing.assert_array_equal(stored, read_weight(source, name), err_msg=name)
    assert len(data) == max(offset + length for ((offset, length),) in places.values())


def test_graphs_hold_no_path_of_this_machine(toy_bundle_of_ours, toy_preset):
    for name in FILES:
        data = (toy_bundle_of_ours.folder / name).read_bytes()
        assert str(toy_preset.parent).encode() not in data
        assert str(toy_bundle_of_ours.folder.parent).encode() not in data


@pytest.mark.reference
def test_shards_make_the_same_weights_file(hub_preset, hub_sharded_preset, tmp_path):
    hashes = set()
    for name, preset in (("one", hub_preset), ("many", hub_sharded_preset)):
        summary = export_bundle(preset, tmp_path / name, verify="none")
        hashes.add(read_manifest(summary.bundle).weights.sha256)
    assert len(hashes) == 1


def test_a_bundle_without_a_tokenizer(plain_hf_folder, tmp_path, greedy):
    code, _, err = run("--preset", plain_hf_folder, "--output", tmp_path / "b")
    assert code == 0, err
    manifest = read_manifest(tmp_path / "b")
    assert manifest.tokenizer == ()
    assert {p.name for p in (tmp_path / "b").iterdir()} == FILES - {"vocabulary.json", "merges.txt"}
    generator = Generator.from_bundle(tmp_path / "b", threads=1)
    assert generator.tokenizer is None
    generator.compile("greedy")
    tokens = {"token_ids": np.array([[2, 5, 6] + [1] * 9]), "padding_mask": np.arange(12)[None] < 3}
    found = generator.generate(tokens, stop_token_ids=None)["token_ids"][0].tolist()
    model = OPTCausalLM.from_preset(str(plain_hf_folder))
    assert [found] == greedy(model, [[2, 5, 6]], 12)
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        generator.generate("import")


# === Live models ===


def test_a_live_model(build_model, tmp_path, greedy, prompt_ids):
    model = build_model(seed=30, dropout=0.1)
    model.compile(sampler=samplers.TopKSampler(k=3, seed=7, temperature=0.5))
    summary = export_bundle(model, tmp_path / "b")
    assert summary.comparison.difference < 1e-4
    manifest = read_manifest(tmp_path / "b")
    assert manifest.source == {"preset": "toy", "format": "live"}
    assert manifest.generation.max_length == 32
    sampler = Generator.from_bundle(tmp_path / "b").sampler
    assert samplers.serialize(sampler) == samplers.serialize(model.sampler)
    assert bundle_tokens(tmp_path / "b") == greedy(model, prompt_ids, LENGTH)
    texts = model.generate(PROMPTS, max_length=LENGTH)  # top-k with a seed: one loop, one outcome
    assert Generator.from_bundle(tmp_path / "b").generate(PROMPTS, max_length=LENGTH) == texts


def test_a_live_model_after_training_is_exported_as_it_is_now(
    build_model, tmp_path, greedy, prompt_ids
):
    import keras

    model = build_model(seed=31)
    before = greedy(model, prompt_ids, LENGTH)
    model.compile(optimizer=keras.optimizers.Adam(0.05), run_eagerly=True)
    model.fit([" the quick brown fox"] * 2, batch_size=2, verbose=0)
    export_bundle(model, tmp_path / "b", verify="graph")
    found = bundle_tokens(tmp_path / "b")
    assert found == greedy(model, prompt_ids, LENGTH) != before


def test_a_live_model_without_a_preprocessor(build_model, tmp_path):
    export_bundle(build_model(preprocessor=False), tmp_path / "b", verify="graph")
    manifest = read_manifest(tmp_path / "b")
    assert manifest.tokenizer == ()
    assert manifest.generation.max_length == 64


def test_a_live_model_in_bfloat16_is_exported_in_float32(build_model, tmp_path):
    model = build_model(seed=32, dtype="bfloat16")
    summary = export_bundle(model, tmp_path / "b")
    assert summary.comparison.difference < 1e-4
    weights = onnx.load(tmp_path / "b" / "prefill.onnx").graph.initializer
    table = next(t for t in weights if t.name == "embeddings/token_embedding/embeddings")
    expected = np.asarray(model.backbone.token_embedding.embeddings.value).astype("float32")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(table), expected)


def test_a_sampler_that_a_bundle_cannot_name_is_refused(build_model, tmp_path):
    """A bundle is data: it cannot carry a caller's own class, and must not come out unusable."""

    class LastToken(Sampler):
        def get_next_token(self, probabilities, generators):
            return np.full(len(probabilities), probabilities.shape[-1] - 1)

    model = build_model()
    model.compile(sampler=LastToken())
    with pytest.raises((ExportError, ValueError), match="LastToken"):
        export_bundle(model, tmp_path / "b", verify="graph")
    assert list(tmp_path.iterdir()) == []


# === The command ===


def test_the_summary(toy_bundle_of_ours):
    out, folder = toy_bundle_of_ours.out, toy_bundle_of_ours.folder
    lines = dict(line.split(maxsplit=1) for line in out.replace("Peak memory", "Memory").splitlines())
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    assert lines["Bundle"] == str(folder)
    assert lines["Size"] == f"{size:.1f} MB"
    assert lines["Time"].endswith(" s")
    assert "MB" in lines["Memory"]
    assert "MB in the process that tried the bundle" in lines["Memory"]
    assert "Rewrites     prefill: fuse_layer_norm 5, fuse_tied_head 1" in out
    assert "Rewrites     decode: fuse_layer_norm 5, fuse_tied_head 1" in out
    assert lines["Logits"].startswith("within ")
    assert lines["Logits"].endswith(" of a standard deviation of Keras's")
    assert float(lines["Logits"].split()[1]) < 1e-4


def test_the_progress(toy_bundle_of_ours, toy_preset):
    phases = [
        f"Reading preset {toy_preset}",
        "Tracing the prefill graph (2 layers)",
        "Tracing the decode graph (2 layers)",
        "Writing weights",
        "Writing graphs",
        "Verifying graphs",
        "Comparing logits with Keras",
        "Finishing",
    ]
    places = [toy_bundle_of_ours.err.index(phase) for phase in phases]
    assert places == sorted(places)
    assert "100%" in toy_bundle_of_ours.err


def test_progress_counts_every_byte(toy_preset, tmp_path):
    counted = []

    class Counting(Progress):
        def phase(self, name, total_bytes=None):
            counted.append([name, total_bytes, 0])

        def advance(self, size):
            counted[-1][2] += size

    export_bundle(toy_preset, tmp_path / "b", verify="none", progress=Counting())
    ((_, total, written),) = [entry for entry in counted if entry[1] is not None]
    assert total == written == (tmp_path / "b" / "weights.bin").stat().st_size


def test_quiet_prints_nothing(toy_preset, tmp_path):
    code, out, err = run("--preset", toy_preset, "--output", tmp_path / "b", "--quiet")
    assert (code, out, err) == (0, "", "")


def test_the_default_output_is_the_preset_s_name_here(toy_preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("--preset", toy_preset, "--verify", "none")
    assert code == 0
    assert out.startswith("Bundle       toy\n")
    assert {p.name for p in (tmp_path / "toy").iterdir()} == FILES


@pytest.mark.parametrize(
    ("module", "function", "handle"),
    [
        ("kagglehub", "model_download", "kaggle://me/opt/keras/mine"),
        ("kagglehub", "model_download", "kaggle://me/opt/keras/mine/4"),
        ("huggingface_hub", "snapshot_download", "hf://me/mine"),
        ("huggingface_hub", "snapshot_download", "hf://me/mine@refs/pr/4"),
    ],
)
def test_the_default_output_of_a_handle_is_the_model_s_name(
    toy_preset, tmp_path, monkeypatch, module, function, handle
):
    stand_in = SimpleNamespace(**{function: lambda *args, **options: str(toy_preset)})
    monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.chdir(tmp_path)
    summary = export_bundle(handle, verify="none")
    assert summary.bundle.name == "mine"
    assert "mine" in read_manifest(tmp_path / "mine").source["preset"]


def test_a_preset_in_this_folder_is_not_written_over(toy_preset, tmp_path, monkeypatch):
    shutil.copytree(toy_preset, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    for options in ([], ["--force"]):
        line = fails("--preset", "mine", *options)
        assert line == "mine exists and is not a bundle; choose another --output"
    assert listing(tmp_path) == before


def test_missing_parents_are_made(toy_preset, tmp_path):
    code, _, err = run(
        "--preset", toy_preset, "--output", tmp_path / "a" / "b" / "c", "--verify", "none"
    )
    assert code == 0, err
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == {"c"}


def test_the_summary_of_the_function(toy_preset, tmp_path):
    summary = export_bundle(toy_preset, tmp_path / "b")
    assert summary.bundle == tmp_path / "b"
    assert summary.size_bytes == read_manifest(tmp_path / "b").total_bytes
    assert summary.seconds > 0
    assert summary.peak_memory_bytes > 50e6
    counts = {"fuse_layer_norm": 5, "fuse_tied_head": 1}
    assert summary.rewrites == {Phase.PREFILL: counts, Phase.DECODE: counts}
    assert summary.comparison.difference < 1e-4
    assert summary.comparison.peak_memory_bytes > 10e6


@pytest.mark.parametrize(
    "options", [["--precision", "int3"], ["--target", "tpu"], ["--verify", "some"], ["--preset"]]
)
def test_bad_options(options):
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as raised:
        main(["--preset", "x", *options])
    assert raised.value.code == 2
    assert options[0] in err.getvalue()


@pytest.mark.parametrize("name", ["precision", "target", "verify"])
def test_bad_options_of_the_function(toy_preset, tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*; got 'other'"):
        export_bundle(toy_preset, tmp_path / "b", **{name: "other"})
    assert list(tmp_path.iterdir()) == []


# === Where the output is not free ===


def test_an_existing_bundle_stays_without_force(old_bundle, toy_preset):
    before = listing(old_bundle.parent)
    line = fails("--preset", toy_preset, "--output", old_bundle)
    assert line == f"{old_bundle} exists; replace it with --force or choose another --output"
    assert listing(old_bundle.parent) == before


def test_force_replaces_a_bundle_as_a_whole(old_bundle, plain_hf_folder):
    (old_bundle / "notes.txt").write_text("of the old one", encoding="utf-8")
    code, _, err = run(
        "--preset", plain_hf_folder, "--output", old_bundle, "--force", "--verify", "graph"
    )
    assert code == 0, err
    assert {p.name for p in old_bundle.iterdir()} == FILES - {"vocabulary.json", "merges.txt"}
    assert read_manifest(old_bundle).source["preset"] == "plain_hf"
    assert {p.name for p in old_bundle.parent.iterdir()} == {"bundle", "plain_hf"}


@pytest.mark.parametrize("options", [[], ["--force"]])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_bundle_is_never_replaced(toy_preset, tmp_path, kind, options):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine", encoding="utf-8")
    elif kind == "folder":
        target.mkdir()
        (target / "mine.txt").write_text("mine", encoding="utf-8")
    else:
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / "elsewhere")
    before = listing(tmp_path)
    what = "a bundle" if kind == "folder" else "a folder"
    line = fails("--preset", toy_preset, "--output", target, *options)
    assert line == f"{target} exists and is not {what}; choose another --output"
    assert listing(tmp_path) == before


def test_an_empty_folder_is_free(toy_preset, tmp_path):
    (tmp_path / "b").mkdir()
    code, _, err = run("--preset", toy_preset, "--output", tmp_path / "b", "--verify", "none")
    assert code == 0, err
    assert {p.name for p in (tmp_path / "b").iterdir()} == FILES


def test_a_disk_that_is_too_small(toy_preset, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("nothing may be traced or written")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    monkeypatch.setattr(export, "trace", never)
    monkeypatch.setattr(export, "write_weights", never)
    line = fails("--preset", toy_preset, "--output", tmp_path / "b")
    assert line == (
        f"the disk of {tmp_path} has 0.00 GB free and the bundle takes 0.00 GB; free some room or "
        "choose an --output on another disk"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_just_large_enough(toy_preset, tmp_path, monkeypatch):
    weights = 0
    with contextlib.closing(CheckpointWeights(read_preset(toy_preset))) as source:
        weights = sum(int(np.prod(shape)) * 4 for shape in source.shapes.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=weights))
    with pytest.raises(ExportError, match="free some room"):
        export_bundle(toy_preset, tmp_path / "b", verify="none")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=weights + 10**6))
    export_bundle(toy_preset, tmp_path / "b", verify="none")
    assert sum(p.stat().st_size for p in (tmp_path / "b").iterdir()) < weights + 10**6


# === Failing midway ===


def raising(error):
    def step(*args, **kwargs):
        raise error

    return step


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("broken here"), 2, "broken here"),
        (OSError(28, "No space left on device"), 2, "[Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was left behind"),
    ],
    ids=["error", "full", "interrupt"],
)
def test_nothing_is_left_of_a_failed_export(
    toy_preset, tmp_path, monkeypatch, step, error, code, message
):
    monkeypatch.setattr(export, step, raising(error))
    assert fails("--preset", toy_preset, "--output", tmp_path / "b", code=code) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [RuntimeError("broken here"), KeyboardInterrupt()], ids=repr)
def test_the_old_bundle_survives_a_failed_export(old_bundle, toy_preset, monkeypatch, step, error):
    before = listing(old_bundle.parent)
    monkeypatch.setattr(export, step, raising(error))
    code = 130 if isinstance(error, KeyboardInterrupt) else 2
    fails("--preset", toy_preset, "--output", old_bundle, "--force", code=code)
    assert listing(old_bundle.parent) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=repr)
def test_failing_in_the_middle_of_the_weights(
    toy_preset, old_bundle, tmp_path, monkeypatch, error, force
):
    blocks, calls = CheckpointWeights.blocks, []

    def few_blocks(self, name):
        calls.append(name)
        if len(calls) > 6:
            raise error
        return blocks(self, name)

    monkeypatch.setattr(CheckpointWeights, "blocks", few_blocks)
    before = listing(tmp_path)
    target = old_bundle if force else tmp_path / "new"
    code = 130 if isinstance(error, KeyboardInterrupt) else 2
    fails("--preset", toy_preset, "--output", target, *["--force"] * force, code=code)
    assert len(calls) == 7
    assert listing(tmp_path) == before


@pytest.mark.parametrize("error", [OSError("cannot rename"), KeyboardInterrupt()], ids=repr)
def test_failing_between_the_two_renames_brings_the_old_bundle_back(
    old_bundle, toy_preset, monkeypatch, error
):
    path_type = type(old_bundle)
    rename, before = path_type.rename, listing(old_bundle.parent)

    def rename_once(self, target):
        if ".partial-" in self.name:
            raise error
        return rename(self, target)

    monkeypatch.setattr(path_type, "rename", rename_once)
    code = 130 if isinstance(error, KeyboardInterrupt) else 2
    fails("--preset", toy_preset, "--output", old_bundle, "--force", "--verify", "none", code=code)
    assert listing(old_bundle.parent) == before


def test_leftovers_of_a_killed_export_do_not_disturb(toy_preset, tmp_path):
    import os

    leftover = tmp_path / f".b.partial-{os.getpid()}"
    leftover.mkdir()
    (leftover / "weights.bin").write_bytes(b"half")
    export_bundle(toy_preset, tmp_path / "b", verify="none")
    assert {p.name for p in tmp_path.iterdir()} == {"b"}
    assert {p.name for p in (tmp_path / "b").iterdir()} == FILES


# === Verification ===


class Altered:
    """A weight source one of whose weights is not the checkpoint's."""

    def __init__(self, source, name, alter):
        self._source, self._name, self._alter = source, name, alter

    @property
    def shapes(self):
        return self._source.shapes

    def blocks(self, name):
        for block in self._source.blocks(name):
            altered = self._alter(block.copy()) if name == self._name else block
            yield np.ascontiguousarray(altered, np.float32)


def swap_query_and_key(kernel):
    kernel[:, :64] = np.roll(kernel[:, :64], 32, axis=1)
    return kernel


def write_altered(monkeypatch, name, alter):
    """Makes the export write another weight than the checkpoint has."""
    write = export.write_weights

    def write_other(source, *args):
        return write(Altered(source, name, alter), *args)

    monkeypatch.setattr(export, "write_weights", write_other)


@pytest.mark.parametrize(
    ("name", "alter"),
    [
        ("embeddings/position_embedding/embeddings", lambda table: np.roll(table, 2, axis=0)),
        ("transformer_layer_0/attention/qkv/kernel", swap_query_and_key),
        ("transformer_layer_1/output/bias", lambda bias: bias[::-1]),
        ("layer_norm/gamma", np.ones_like),
        ("transformer_layer_1/attention_norm/beta", np.zeros_like),
        ("transformer_layer_0/intermediate/kernel", lambda kernel: kernel * np.nan),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_weights_are_caught(toy_preset, tmp_path, monkeypatch, name, alter):
    write_altered(monkeypatch, name, alter)
    line = fails("--preset", toy_preset, "--output", tmp_path / "b")
    assert line.startswith("the written bundle failed verification: its logits differ from Keras's by")
    assert "of their standard deviation; at most 0.001 is allowed" in line
    assert list(tmp_path.iterdir()) == []


def test_one_wrong_token_row_in_a_later_block_is_caught(toy_preset, tmp_path, monkeypatch):
    from exporter.checkpoints import weight_map

    monkeypatch.setattr(weight_map, "BLOCK_BYTES", 50 * 32 * 4)  # six blocks of the token table

    def alter(block):
        if len(block) == 288 % 50:
            block[-1] += 1
        return block

    write_altered(monkeypatch, "embeddings/token_embedding/embeddings", alter)
    with pytest.raises(ExportError, match="its logits differ from Keras's"):
        export_bundle(toy_preset, tmp_path / "b")
    monkeypatch.undo()


def test_blocks_of_any_size_make_the_same_bundle(toy_preset, tmp_path, monkeypatch, toy_bundle_of_ours):
    from exporter.checkpoints import weight_map

    monkeypatch.setattr(weight_map, "BLOCK_BYTES", 50 * 32 * 4)
    summary = export_bundle(toy_preset, tmp_path / "b")
    assert summary.comparison.difference < 1e-4
    expected = read_manifest(toy_bundle_of_ours.folder).weights
    assert read_manifest(tmp_path / "b").weights == expected


def test_graph_verification_does_not_look_at_logits(toy_preset, tmp_path, monkeypatch):
    write_altered(monkeypatch, "layer_norm/gamma", np.ones_like)
    code, out, _ = run("--preset", toy_preset, "--output", tmp_path / "b", "--verify", "graph")
    assert code == 0
    assert "Logits       not compared (--verify full does)" in out
    monkeypatch.setattr(export, "SMALL_ENOUGH_BYTES", 0)  # a model too large to compare unasked
    assert export_bundle(toy_preset, tmp_path / "c").comparison is None
    with pytest.raises(ExportError, match="its logits differ"):
        export_bundle(toy_preset, tmp_path / "d", verify="full")


def break_graph(change):
    """`write_bound_graph` with a change to the file."""
    write = export.write_bound_graph

    def write_broken(program, extents, weights_name, path):
        write(program, extents, weights_name, path)
        model = onnx.load(path, load_external_data=False)
        change(model.graph)
        onnx.save(model, path)
        return export.FileEntry.of(path)

    return write_broken


def rename_output(graph):
    for node in graph.node:
        node.output[:] = ["scores" if n == "logits" else n for n in node.output]
    graph.output[0].name = "scores"


def fix_batch(graph):
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def drop_node(graph):
    del graph.node[3]


@pytest.mark.parametrize("change", [rename_output, fix_batch, drop_node])
def test_graph_verification_catches_broken_graphs(toy_preset, tmp_path, monkeypatch, change):
    monkeypatch.setattr(export, "write_bound_graph", break_graph(change))
    with pytest.raises(ExportError, match="the written bundle failed verification: "):
        export_bundle(toy_preset, tmp_path / "b", verify="graph")
    assert list(tmp_path.iterdir()) == []
    export_bundle(toy_preset, tmp_path / "b", verify="none")  # which asks nothing
    assert {p.name for p in (tmp_path / "b").iterdir()} == FILES


def test_graph_verification_catches_a_truncated_file(toy_preset, tmp_path, monkeypatch):
    write = export.write_weights

    def write_less(source, extents, path, progress):
        entry = write(source, extents, path, progress)
        path.write_bytes(path.read_bytes()[:-1])
        return entry

    monkeypatch.setattr(export, "write_weights", write_less)
    with pytest.raises(ExportError, match=r"weights\.bin was altered: it has"):
        export_bundle(toy_preset, tmp_path / "b", verify="graph")


def test_a_bundle_that_does_not_run_is_caught(toy_preset, tmp_path, monkeypatch):
    def unknown_operator(graph):
        graph.node[3].domain, graph.node[3].op_type = "com.example", "NoSuchOperator"

    monkeypatch.setattr(export, "write_bound_graph", break_graph(unknown_operator))
    monkeypatch.setattr(export, "verify_graphs", lambda folder: None)
    with pytest.raises(ExportError, match=r"it does not run\. (?s:.*)NoSuchOperator"):
        export_bundle(toy_preset, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_no_longer_matches_is_an_error(toy_preset, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "rewrite", lambda program: {"fuse_layer_norm": 4, "fuse_tied_head": 1})
    line = fails("--preset", toy_preset, "--output", tmp_path / "b")
    assert line.startswith("the prefill graph was rewritten as {'fuse_layer_norm': 4, ")
    assert list(tmp_path.iterdir()) == []


# === Presets that cannot be exported ===


def copy_preset(preset, tmp_path):
    return shutil.copytree(preset, tmp_path / "preset")


def rewrite_weights(folder, change):
    """Changes the tensors of a Keras weights file by name."""
    import h5py

    with h5py.File(folder / "model.weights.h5", "a") as file:
        change(file)


def test_an_unknown_preset(tmp_path):
    line = fails("--preset", "opt_13b_en", "--output", tmp_path / "b")
    assert line.startswith("no preset 'opt_13b_en'; give a built-in name (opt_tiny_en, ")
    with pytest.raises(PresetError):
        export_bundle("opt_13b_en", tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_config(tmp_path):
    (tmp_path / "empty").mkdir()
    line = fails("--preset", tmp_path / "empty", "--output", tmp_path / "b")
    assert "is not a preset folder: it has no config.json" in line


def test_a_model_that_is_not_opt(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    line = fails("--preset", tmp_path, "--output", tmp_path / "b")
    assert line == f"{tmp_path} holds a 'gpt2' model, not 'opt'"


def test_tensors_that_do_not_fit(toy_preset, tmp_path):
    folder = copy_preset(toy_preset, tmp_path)

    def change(file):
        del file["layers/layer_normalization/vars/1"]
        file["layers/extra/vars/0"] = np.zeros(3)
        del file["layers/transformer_decoder/_feedforward_output_dense/vars/1"]
        file["layers/transformer_decoder/_feedforward_output_dense/vars/1"] = np.zeros(64)

    rewrite_weights(folder, change)
    line = fails("--preset", folder, "--output", tmp_path / "b")
    assert line == (
        f"the tensors of {folder} do not fit its configuration; "
        "1 missing: layers/layer_normalization/vars/1; "
        "1 mis-shaped: layers/transformer_decoder/_feedforward_output_dense/vars/1 is (64,), "
        "expected (32,); 1 surplus: layers/extra/vars/0"
    )
    with pytest.raises(CheckpointError):
        export_bundle(folder, tmp_path / "b")
    assert {p.name for p in tmp_path.iterdir()} == {"preset"}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_keras_weights(toy_preset, tmp_path, share):
    folder = copy_preset(toy_preset, tmp_path)
    weights = folder / "model.weights.h5"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(len(data) * share)])
    line = fails("--preset", folder, "--output", tmp_path / "b")
    assert line.startswith(f"{weights} is truncated or not an HDF5 file: ")
    assert {p.name for p in tmp_path.iterdir()} == {"preset"}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_truncated_safetensors(plain_hf_folder, tmp_path, share):
    weights = plain_hf_folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(len(data) * share)])
    line = fails("--preset", plain_hf_folder, "--output", tmp_path / "b")
    assert line.startswith(f"{weights} is truncated")
    assert {p.name for p in tmp_path.iterdir()} == {"plain_hf"}


def test_weights_that_cannot_be_read_to_the_end(toy_preset, tmp_path):
    """Damage that shows when half of the bundle is written."""
    folder = copy_preset(toy_preset, tmp_path)
    name = "layers/transformer_decoder_1/_feedforward_output_dense/vars/0"
    place = {}

    def change(file):
        values = file[name][()]
        del file[name]
        file.create_dataset(name, data=values, chunks=values.shape, compression="gzip")
        place["offset"] = file[name].id.get_chunk_info(0).byte_offset

    rewrite_weights(folder, change)
    weights = folder / "model.weights.h5"
    data = bytearray(weights.read_bytes())
    data[place["offset"] : place["offset"] + 32] = bytes(32)
    weights.write_bytes(data)
    line = fails("--preset", folder, "--output", tmp_path / "b")
    assert line.startswith(f"{weights} is truncated at tensor '{name}'")
    assert {p.name for p in tmp_path.iterdir()} == {"preset"}


def test_a_tokenizer_without_its_special_tokens(toy_preset, tmp_path):
    folder = copy_preset(toy_preset, tmp_path)
    path = folder / "assets" / "tokenizer" / "vocabulary.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    del vocabulary["<pad>"]
    path.write_text(json.dumps(vocabulary), encoding="utf-8")
    line = fails("--preset", folder, "--output", tmp_path / "b")
    assert "Cannot find special token '<pad>'" in line


def test_a_preset_of_an_odd_shape_is_one_line_too(toy_preset, tmp_path):
    folder = copy_preset(toy_preset, tmp_path)
    (folder / "preprocessor.json").write_text(
        json.dumps({"config": {"sequence_length": "long"}}), encoding="utf-8"
    )
    fails("--preset", folder, "--output", tmp_path / "b")
