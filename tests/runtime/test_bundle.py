"""Loading bundles: good ones, and each way to be a bad one."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphs.contract import Phase
from runtime import BundleError, Generator, session_opener
from runtime import bundle as bundle_module
from runtime.bundle import Bundle, BundleReplacedError, load_bundle
from runtime.generation_options import GenerationOptions
from runtime.session import SessionDecoder
from tests.runtime.toy import HIDDEN, approve, edit_manifest, flip_byte

FILES = ["prefill.onnx", "decode.onnx", "weights.bin", "vocabulary.json", "merges.txt"]


def assert_refused(folder: Path, message: str, *, verify: bool = False) -> None:
    """Both ways to load a bundle give one sentence."""
    with pytest.raises(BundleError, match=message):
        load_bundle(folder, verify=verify)
    with pytest.raises(BundleError, match=message) as caught:
        Generator.from_bundle(folder, device="cpu", verify=verify)
    assert "\n" not in str(caught.value)


def test_a_bundle(toy_bundle: Path) -> None:
    bundle = load_bundle(toy_bundle, verify=True)
    assert bundle.folder == toy_bundle
    assert bundle.manifest.model.num_layers == 2
    assert bundle.tokenizer is not None
    assert [bundle.graph_path(phase) for phase in Phase] == [
        toy_bundle / "prefill.onnx",
        toy_bundle / "decode.onnx",
    ]
    assert load_bundle(str(toy_bundle)).manifest == bundle.manifest


def test_a_bundle_elsewhere_gives_the_same(toy_bundle_copy: Path, generator: Generator) -> None:
    moved = toy_bundle_copy.rename(toy_bundle_copy.with_name("Ünïcode folder"))
    copied = Generator.from_bundle(moved, device="cpu", threads=1)
    for each in (copied, generator):
        each.compile("greedy")
    assert copied.generate("the king") == generator.generate("the king")


# === No bundle at all ===


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(
        tmp_path / "nowhere",
        r"nowhere is no bundle: it does not exist\. Make one with: opt-export --preset NAME --output",
    )


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    assert_refused(tmp_path, r"is no bundle: it has no manifest\.json\. Make one with: opt-export")


def test_a_file(toy_bundle: Path) -> None:
    assert_refused(toy_bundle / "weights.bin", r"weights\.bin is no bundle")


@pytest.mark.parametrize("text", ["", "{", "not json", "\x00"])
def test_a_manifest_that_is_not_json(toy_bundle_copy: Path, text: str) -> None:
    (toy_bundle_copy / "manifest.json").write_text(text, "utf-8")
    assert_refused(toy_bundle_copy, r"manifest\.json is not JSON")


@pytest.mark.parametrize("values", [[], 5, None, {}, {"format": "other"}])
def test_json_that_is_no_manifest(toy_bundle_copy: Path, values: Any) -> None:
    (toy_bundle_copy / "manifest.json").write_text(json.dumps(values), "utf-8")
    message = r"is not the manifest of a bundle \(format 'opt-onnx-bundle'\)|is no object of JSON"
    assert_refused(toy_bundle_copy, message)


@pytest.mark.parametrize("revision", [0, 1, 2, 5, "3", None])
def test_another_contract_revision(toy_bundle_copy: Path, revision: Any) -> None:
    edit_manifest(toy_bundle_copy, lambda values: values.update(contract_revision=revision))
    assert_refused(
        toy_bundle_copy,
        f"follows revision {revision!r} of the graph contract and this runtime knows 3 and 4: export "
        "the model again with this version, or use the version that wrote the bundle",
    )


@pytest.mark.parametrize(
    ("name", "option"),
    [("BeamSampler", "num_beams"), ("ContrastiveSampler", "k"), ("beam", "num_beams")],
)
def test_rows_of_its_own_sampler(toy_bundle_copy: Path, name: str, option: str) -> None:
    """256 candidates are the most; each has a row of the cache."""

    def ask(rows: int) -> None:
        sampler = {"class_name": name, "config": {option: rows}}
        edit_manifest(toy_bundle_copy, lambda values: values["generation"].update(sampler=sampler))

    ask(256)
    assert load_bundle(toy_bundle_copy).manifest.generation.sampler["config"][option] == 256
    ask(257)
    assert_refused(toy_bundle_copy, "its sampler asks for 257 rows for each prompt, of at most 256")


# === Options of its own ===


def give_options(folder: Path, options: Any) -> None:
    edit_manifest(folder, lambda values: values["generation"].update(options=options))


def test_options_are_the_defaults_of_its_generator(toy_bundle_copy: Path) -> None:
    assert Generator.from_bundle(toy_bundle_copy, "cpu", 1).default_options is None
    give_options(toy_bundle_copy, {"suppress_tokens": [299, 5], "max_new_tokens": 3})
    generator = Generator.from_bundle(toy_bundle_copy, "cpu", 1)
    assert generator.default_options == GenerationOptions(suppress_tokens=(299, 5), max_new_tokens=3)
    assert pickle.loads(pickle.dumps(generator)).default_options == generator.default_options
    generator.default_options = None
    assert pickle.loads(pickle.dumps(generator)).default_options is None


def test_options_are_asked_of_every_text_of_a_call_without_any(toy_bundle_copy: Path) -> None:
    give_options(toy_bundle_copy, {"max_new_tokens": 3, "min_new_tokens": 3})
    generator = Generator.from_bundle(toy_bundle_copy, "cpu", 1)
    for result in generator.generate_results(["the", "a king"]):
        assert len(result.token_ids) == 3
    (result,) = generator.generate_results("the", options=GenerationOptions(max_new_tokens=1))
    assert len(result.token_ids) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suppress_tokens": [300]}, "suppress_tokens must be ids of the model's vocabulary, 0 to 299"),
        ({"bad_words_ids": [[5, 2**70]]}, "bad_words_ids must be ids of the model's vocabulary"),
        ({"sequence_bias": [[[300], 1.0]]}, "sequence_bias must be ids of the model's vocabulary"),
        ({"repetition_penalty": "1"}, "repetition_penalty must be a number above 0, got '1'"),
        ({"bad_words_ids": [[[[[[]]]]]]}, "bad_words_ids must be token ids"),
        ({"min_new_tokens": 4, "max_new_tokens": 3}, "min_new_tokens=4 must be at most max_new_tokens"),
    ],
)
def test_options_that_are_not_valid(toy_bundle_copy: Path, options: Any, message: str) -> None:
    give_options(toy_bundle_copy, options)
    assert_refused(toy_bundle_copy, f"its generation.options are not valid: {message}")


def test_who_has_no_options_imports_none(toy_bundle_copy: Path) -> None:
    program = (
        "import sys\n"
        "from runtime import Generator\n"
        "generator = Generator.from_bundle(sys.argv[1], device='cpu', threads=1)\n"
        "generator.generate('the', max_length=4)\n"
        "print('runtime.generation_options' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(toy_bundle_copy)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


# === Altered files ===


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(toy_bundle_copy: Path, name: str) -> None:
    (toy_bundle_copy / name).unlink()
    assert_refused(toy_bundle_copy, f"{name} is missing or no regular file")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_or_a_link_in_the_place_of_a_file(toy_bundle_copy: Path, name: str) -> None:
    original = (toy_bundle_copy / name).rename(toy_bundle_copy / "elsewhere")
    (toy_bundle_copy / name).symlink_to(original)
    assert_refused(toy_bundle_copy, f"{name} is missing or no regular file")
    (toy_bundle_copy / name).unlink()
    (toy_bundle_copy / name).mkdir()
    assert_refused(toy_bundle_copy, f"{name} is missing or no regular file")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1])
def test_an_altered_size(toy_bundle_copy: Path, name: str, change: int) -> None:
    path = toy_bundle_copy / name
    size = path.stat().st_size
    path.write_bytes((path.read_bytes() + b"x")[: size + change])
    assert_refused(toy_bundle_copy, f"{name} was altered: it has {size + change} bytes, not {size}$")


@pytest.mark.parametrize("name", [name for name in FILES if name != "weights.bin"])
def test_an_altered_byte(toy_bundle_copy: Path, name: str) -> None:
    flip_byte(toy_bundle_copy / name, 20)
    assert_refused(toy_bundle_copy, f"{name} was altered: its SHA-256 is another")


def test_an_altered_byte_of_the_weights_is_found_on_request(toy_bundle_copy: Path) -> None:
    flip_byte(toy_bundle_copy / "weights.bin", 100_000)
    assert load_bundle(toy_bundle_copy).manifest.model.num_layers == 2
    message = r"weights\.bin was altered: its SHA-256 is another"
    assert_refused(toy_bundle_copy, message, verify=True)


@pytest.mark.parametrize("size", [-1, 0])
def test_the_order_of_checks_is_sizes_first(toy_bundle_copy: Path, size: int) -> None:
    """A truncated weights file is told before gigabytes are read, even where a hash differs too."""
    flip_byte(toy_bundle_copy / "prefill.onnx", 20)
    weights = toy_bundle_copy / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:size])
    assert_refused(toy_bundle_copy, r"weights\.bin was altered: it has", verify=True)


# === Hostile and careless manifests ===

Place = Callable[[dict[str, Any]], dict[str, Any]]
PLACES: dict[str, Place] = {
    "graph": lambda values: values["graphs"]["decode"],
    "weights": lambda values: values["weights"],
    "tokenizer": lambda values: values["tokenizer"][1],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name",
    ["../weights.bin", "/etc/passwd", "a/b", "..", ".", "", "..\\x", "C:x", "nul\0", 5, None],
)
def test_names_that_lead_out_of_the_folder(toy_bundle_copy: Path, place: str, name: Any) -> None:
    edit_manifest(toy_bundle_copy, lambda values: PLACES[place](values).update(name=name))
    assert_refused(toy_bundle_copy, r"manifest\.json: a bundle's files have plain names, got")


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: values["graphs"]["decode"].update(name="prefill.onnx"),
        lambda values: values["graphs"].update(decode=values["weights"]),
        lambda values: values.update(weights=values["graphs"]["decode"]),
        lambda values: values["tokenizer"].append(values["tokenizer"][0]),
    ],
    ids=["graph of another hash", "graph and weights", "weights and graph", "tokenizer"],
)
def test_a_file_named_twice(toy_bundle_copy: Path, edit: Place) -> None:
    edit_manifest(toy_bundle_copy, edit)
    assert_refused(toy_bundle_copy, "files are named twice")


def test_both_phases_may_have_one_graph_file(toy_bundle_copy: Path) -> None:
    before = load_bundle(toy_bundle_copy).manifest
    edit_manifest(
        toy_bundle_copy,
        lambda values: values["graphs"].update(decode=values["graphs"]["prefill"]),
    )
    (toy_bundle_copy / "decode.onnx").unlink()
    bundle = load_bundle(toy_bundle_copy, verify=True)
    graph = toy_bundle_copy / "prefill.onnx"
    assert [bundle.graph_path(phase) for phase in Phase] == [graph, graph]
    names = [entry.name for entry in bundle.manifest.files]
    assert names == ["prefill.onnx", "weights.bin", "vocabulary.json", "merges.txt"]
    assert bundle.manifest.total_bytes == before.total_bytes - before.graphs[Phase.DECODE].size
    bundle.manifest.write(toy_bundle_copy)
    assert load_bundle(toy_bundle_copy).manifest == bundle.manifest
    flip_byte(graph, 20)
    assert_refused(toy_bundle_copy, r"prefill\.onnx was altered: its SHA-256 is another")


@pytest.mark.parametrize("kept", [["vocabulary.json"], ["merges.txt"]])
def test_an_unknown_kind_of_tokenizer(toy_bundle_copy: Path, kept: list[str]) -> None:
    def edit(values: dict[str, Any]) -> None:
        values["tokenizer"] = [entry for entry in values["tokenizer"] if entry["name"] in kept]

    edit_manifest(toy_bundle_copy, edit)
    assert_refused(toy_bundle_copy, rf"unknown kind of tokenizer: \['{kept[0]}'\]")


def test_a_tokenizer_that_is_none(toy_bundle_copy: Path) -> None:
    (toy_bundle_copy / "vocabulary.json").write_text("{}", "utf-8")
    approve(toy_bundle_copy, "vocabulary.json")
    tokenizer = load_bundle(toy_bundle_copy).tokenizer  # read when it is first used
    assert tokenizer is not None
    with pytest.raises(BundleError, match=r"bundle.*: Cannot find special token '</s>' in the voc.* 0"):
        tokenizer.encode("text")


@pytest.mark.parametrize(
    "sampler",
    [
        {"class_name": "Nucleus", "config": {}},
        {"class_name": "TopKSampler", "config": {"k": 0}},
        {"class_name": "TopKSampler", "config": {"kk": 3}},
        {"class_name": "TopKSampler", "config": 3},
        "nucleus",
        7,
        None,
    ],
)
def test_a_sampler_that_the_runtime_lacks(toy_bundle_copy: Path, sampler: Any) -> None:
    edit_manifest(toy_bundle_copy, lambda values: values["generation"].update(sampler=sampler))
    with pytest.raises(ValueError, match=r"sampler|k must be"):
        Generator.from_bundle(toy_bundle_copy, device="cpu")


def test_a_graph_that_wants_other_weights(toy_bundle_copy: Path) -> None:
    """A manifest may say so; the graph then asks for a file that is not there."""
    (toy_bundle_copy / "weights.bin").rename(toy_bundle_copy / "other.bin")
    edit_manifest(toy_bundle_copy, lambda values: values["weights"].update(name="other.bin"))
    with pytest.raises(
        BundleError, match=r"decode\.onnx has the weight .* in 'weights\.bin', and only"
    ):
        Generator.from_bundle(toy_bundle_copy, device="cpu")


# === Without a tokenizer ===


def test_a_bundle_without_a_tokenizer(toy_bundle_copy: Path) -> None:
    edit_manifest(toy_bundle_copy, lambda values: values.update(tokenizer=[]))
    for name in ("vocabulary.json", "merges.txt"):
        (toy_bundle_copy / name).unlink()
    loaded = Generator.from_bundle(toy_bundle_copy, device="cpu", threads=1)
    assert loaded.tokenizer is None
    loaded.compile("greedy")
    inputs = {"token_ids": [[2, 5, 0, 0]], "padding_mask": [[1, 1, 0, 0]]}
    assert loaded.generate(inputs, stop_token_ids=None)["token_ids"].shape == (1, 4)
    with pytest.raises(ValueError, match="text needs a tokenizer and this model has none"):
        loaded.generate("text")


def test_token_ids_start_without_what_only_text_and_draws_need(toy_bundle: Path) -> None:
    """Tenths of a second of a process's start: the tokenizer, and imports of random generators."""
    program = (
        "import sys\n"
        "from runtime import Generator\n"
        "generator = Generator.from_bundle(sys.argv[1], device='cpu', threads=1)\n"
        "generator.compile('greedy')\n"
        "inputs = {'token_ids': [[2, 5, 0, 0]], 'padding_mask': [[1, 1, 0, 0]]}\n"
        "generator.generate(inputs, stop_token_ids=None)\n"
        "print([name for name in ('tokenizers', 'numpy.random') if name in sys.modules])\n"
        "generator.compile('top_k')\n"
        "generator.generate('the', max_length=4)\n"
        "print([name for name in ('tokenizers', 'numpy.random') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", program, str(toy_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n['tokenizers', 'numpy.random']\n"


def test_other_files_in_the_folder_do_not_matter(toy_bundle_copy: Path) -> None:
    (toy_bundle_copy / "README.md").write_text("notes", "utf-8")
    SessionDecoder(load_bundle(toy_bundle_copy, verify=True))


# === Replaced while it is loaded ===


def swap(folder: Path, other: Path) -> None:
    """What `opt-export --force` does."""
    folder.rename(folder.with_name("old"))
    shutil.copytree(other, folder)


def other_bundle(toy_bundle: Path, place: Path) -> Path:
    """A bundle with another embedding of token 5, and another default length."""
    other = Path(shutil.copytree(toy_bundle, place / "other"))
    flip_byte(other / "weights.bin", 4 * HIDDEN * 5 + 3)
    approve(other, "weights.bin")
    edit_manifest(other, lambda values: values["generation"].update(max_length=20))
    return other


@pytest.mark.parametrize("moment", ["before the graphs", "before the sessions", "after the sessions"])
def test_a_bundle_that_is_replaced_is_loaded_anew(
    toy_bundle_copy: Path, toy_bundle: Path, tmp_path: Path, monkeypatch: Any, moment: str
) -> None:
    other = other_bundle(toy_bundle, tmp_path)
    calls: list[str] = []

    def then_swap(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def wrapped(*arguments: Any) -> Any:
            if moment.startswith("before") and not calls:
                swap(toy_bundle_copy, other)
            calls.append(name)
            result = function(*arguments)
            if moment.startswith("after") and len(calls) == 2:
                swap(toy_bundle_copy, other)
            return result

        monkeypatch.setattr(owner, name, wrapped)

    if moment == "before the graphs":
        then_swap(bundle_module, "_check_graphs")
    else:
        then_swap(session_opener.SessionOpener, "unpacked")
    loaded = Generator.from_bundle(toy_bundle_copy, device="cpu", threads=1)
    assert (
        len(calls)
        == {"before the graphs": 2, "before the sessions": 4, "after the sessions": 4}[moment]
    )
    assert loaded.max_length == 20
    prompt = {"token_ids": [[2, 5, 0, 0, 0]], "padding_mask": [[1, 1, 0, 0, 0]]}
    wanted = Generator.from_bundle(other, device="cpu", threads=1)
    for each in (loaded, wanted):
        each.compile("greedy")
    found, right = (g.generate(prompt, stop_token_ids=None)["token_ids"] for g in (loaded, wanted))
    assert found.tolist() == right.tolist()


def test_a_bundle_that_is_loaded_anew_is_verified_too(
    toy_bundle_copy: Path, toy_bundle: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    other = other_bundle(toy_bundle, tmp_path)
    flip_byte(other / "weights.bin", 4 * HIDDEN * 6 + 3)
    check = bundle_module._check_graphs

    def replaced(*arguments: Any) -> Any:
        if other.exists():
            toy_bundle_copy.rename(tmp_path / "old")
            other.rename(toy_bundle_copy)
        return check(*arguments)

    monkeypatch.setattr(bundle_module, "_check_graphs", replaced)
    with pytest.raises(BundleError, match=r"weights\.bin was altered: its SHA-256 is another"):
        Generator.from_bundle(toy_bundle_copy, device="cpu", threads=1, verify=True)
    assert not other.exists()


def test_a_bundle_that_is_replaced_again_and_again(toy_bundle_copy: Path, monkeypatch: Any) -> None:
    check = bundle_module._check_graphs
    lengths = iter(range(10, 20))

    def replaced(*arguments: Any) -> None:
        edit_manifest(toy_bundle_copy, lambda v: v["generation"].update(max_length=next(lengths)))
        check(*arguments)

    monkeypatch.setattr(bundle_module, "_check_graphs", replaced)
    with pytest.raises(BundleReplacedError, match="was replaced while it was loaded; load it again"):
        Generator.from_bundle(toy_bundle_copy, device="cpu", threads=1)
    assert next(lengths) == 12


def test_the_tokenizer_is_that_of_the_loaded_bundle(toy_bundle_copy: Path, bundle: Bundle) -> None:
    """It is parsed when it is first used, maybe after the bundle was replaced."""
    loaded = load_bundle(toy_bundle_copy)
    (toy_bundle_copy / "vocabulary.json").write_text("{}", "utf-8")
    assert loaded.tokenizer is not None
    assert bundle.tokenizer is not None
    assert loaded.tokenizer.encode("the quick") == bundle.tokenizer.encode("the quick")
