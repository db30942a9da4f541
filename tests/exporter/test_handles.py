"""Names, handles and folders to local folders; what is said where that fails."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from exporter.errors import PresetError
from exporter.presets import handles
from exporter.presets.handles import (
    BuiltinHandle,
    FolderHandle,
    HuggingFaceHandle,
    KaggleHandle,
    parse_handle,
    preset_name,
    resolve_preset,
)
from exporter.presets.hubs.failure import HubFailure
from exporter.presets.table import BUILTIN_PRESETS

FORMS = (
    "a built-in name (opt_tiny_en, opt_125m_en, opt_1.3b_en, opt_2.7b_en, opt_6.7b_en), ",
    "kaggle://user/model/framework/variation[/version]",
    "hf://user/repository[@revision]",
    "the path of a local folder",
)


class Downloads:
    """Stands in for a hub: records what it is asked for, and gives a folder or fails."""

    def __init__(self, folder):
        self.calls, self.answer = [], folder

    def __call__(self, *arguments, **options):
        self.calls.append((*arguments, options["weights"]))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    hub = Downloads(tmp_path / "from_kaggle")
    monkeypatch.setattr(handles, "download_model", hub)
    return hub


@pytest.fixture
def hugging_face(monkeypatch, tmp_path):
    hub = Downloads(tmp_path / "from_hugging_face")
    monkeypatch.setattr(handles, "download_repository", hub)
    return hub


# === Parsing ===


@pytest.mark.parametrize(
    ("text", "handle", "name"),
    [
        ("opt_1.3b_en", BuiltinHandle(BUILTIN_PRESETS["opt_1.3b_en"]), "opt_1.3b_en"),
        ("kaggle://me/opt/keras/mine", KaggleHandle("me/opt/keras/mine"), "mine"),
        ("kaggle://me/opt/keras/mine/", KaggleHandle("me/opt/keras/mine"), "mine"),
        ("kaggle://me/opt/keras/mine/12", KaggleHandle("me/opt/keras/mine", 12), "mine"),
        ("kaggle://me/opt/keras/mine/12/", KaggleHandle("me/opt/keras/mine", 12), "mine"),
        ("hf://facebook/opt-125m", HuggingFaceHandle("facebook/opt-125m"), "opt-125m"),
        ("hf://facebook/opt-125m/", HuggingFaceHandle("facebook/opt-125m"), "opt-125m"),
        ("hf://me/opt@v1.0", HuggingFaceHandle("me/opt", "v1.0"), "opt"),
        ("hf://me/opt@refs/pr/1", HuggingFaceHandle("me/opt", "refs/pr/1"), "opt"),
        ("hf://me/opt@refs/pr/1/", HuggingFaceHandle("me/opt", "refs/pr/1"), "opt"),
    ],
)
def test_a_handle_is_read(text, handle, name):
    assert parse_handle(text) == handle
    assert preset_name(text) == name


def test_a_path_is_a_folder_whether_it_exists_or_not(tmp_path):
    assert parse_handle(tmp_path / "none") == FolderHandle(tmp_path / "none")
    assert parse_handle("models/mine/") == parse_handle("models/mine")
    assert preset_name("models/mine/") == "mine"


@pytest.mark.parametrize(
    "preset",
    [
        "kaggle://",
        "kaggle://me/opt",
        "kaggle://me/opt/keras",
        "kaggle://me/opt/keras/mine/4/more",
        "kaggle://me/opt/keras/mine/latest",
        "kaggle://me/opt/keras/mine/0",
        "kaggle://me/opt/keras/mine//",
        "kaggle://me//keras/mine",
        "kaggle:///opt/keras/mine",
        "hf://",
        "hf://opt-125m",
        "hf://facebook/opt-125m/more",
        "hf://facebook/opt-125m@",
        "hf://facebook/opt-125m@/",
        "hf://facebook/",
        "hf:///opt-125m",
        "hf://@main",
    ],
)
def test_a_bad_handle_is_refused_before_any_download(kaggle, hugging_face, preset):
    with pytest.raises(PresetError) as raised:
        resolve_preset(preset)
    assert str(raised.value).startswith(f"cannot read the handle {preset!r}; give {FORMS[0]}")
    for form in FORMS:
        assert form in str(raised.value)
    assert kaggle.calls == hugging_face.calls == []


# === Names and folders ===


@pytest.mark.parametrize("preset", ["opt_13b_en", "no/such/folder", "opt_125M_en", "http://host/opt"])
def test_what_is_neither_a_name_nor_a_folder(tmp_path, monkeypatch, preset):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PresetError) as raised:
        resolve_preset(preset)
    assert str(raised.value).startswith(f"no preset {preset!r}; give {FORMS[0]}")
    for form in FORMS:
        assert form in str(raised.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(PresetError, match="no preset"):
        resolve_preset(tmp_path / "model.safetensors")


def test_a_folder_is_itself(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    assert resolve_preset(tmp_path / "mine") == tmp_path / "mine"
    assert resolve_preset(str(tmp_path / "mine")) == tmp_path / "mine"
    assert resolve_preset(f"{tmp_path / 'mine'}/") == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert resolve_preset("mine").samefile(tmp_path / "mine")


def test_a_built_in_name_comes_before_a_folder_of_that_name(tmp_path, monkeypatch, kaggle):
    (tmp_path / "opt_125m_en").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_preset("opt_125m_en") == tmp_path / "from_kaggle"
    assert resolve_preset("./opt_125m_en").samefile(tmp_path / "opt_125m_en")


def test_the_embedded_preset_is_in_the_package(kaggle, hugging_face):
    folder = resolve_preset("opt_tiny_en")
    assert folder == BUILTIN_PRESETS["opt_tiny_en"].folder
    assert folder.parent.name == "presets"
    assert kaggle.calls == hugging_face.calls == []


def test_the_embedded_preset_of_a_package_in_a_zip_file(tmp_path, monkeypatch):
    packed = replace(BUILTIN_PRESETS["opt_tiny_en"], folder=tmp_path / "package.zip" / "opt_tiny_en")
    monkeypatch.setitem(BUILTIN_PRESETS, "opt_tiny_en", packed)
    with pytest.raises(PresetError, match="is no folder; install opt-onnx with pip, which unpacks it"):
        resolve_preset("opt_tiny_en")


# === Hubs ===


@pytest.mark.parametrize("weights", [True, False])
def test_each_hub_is_asked_for_what_the_handle_says(kaggle, hugging_face, weights):
    assert resolve_preset("kaggle://me/opt/keras/mine/4", weights) == kaggle.answer
    assert resolve_preset("kaggle://me/opt/keras/mine", weights) == kaggle.answer
    assert kaggle.calls == [
        ("me/opt/keras/mine", 4, weights),
        ("me/opt/keras/mine", None, weights),
    ]
    assert hugging_face.calls == []
    assert resolve_preset("hf://me/opt@v2", weights) == hugging_face.answer
    assert resolve_preset("hf://me/opt", weights) == hugging_face.answer
    assert hugging_face.calls == [("me/opt", "v2", weights), ("me/opt", None, weights)]


@pytest.mark.parametrize("name", ["opt_125m_en", "opt_1.3b_en", "opt_2.7b_en", "opt_6.7b_en"])
def test_a_built_in_preset_comes_from_kaggle(kaggle, hugging_face, name):
    assert resolve_preset(name) == kaggle.answer
    assert kaggle.calls == [(f"keras/opt/keras/{name}", 3, True)]
    assert hugging_face.calls == []


@pytest.mark.parametrize("name", ["opt_125m_en", "opt_1.3b_en", "opt_2.7b_en", "opt_6.7b_en"])
def test_a_built_in_preset_comes_from_hugging_face_otherwise(kaggle, hugging_face, caplog, name):
    kaggle.answer = HubFailure("no route")
    assert resolve_preset(name, weights=False) == hugging_face.answer
    assert hugging_face.calls == [(f"keras/{name}", None, False)]
    assert caplog.messages == [
        f"Kaggle model keras/opt/keras/{name}/3: no route; trying the next source of {name}"
    ]


def test_a_built_in_preset_that_no_hub_gives(kaggle, hugging_face):
    kaggle.answer, hugging_face.answer = HubFailure("no route"), HubFailure("a token is needed")
    with pytest.raises(PresetError) as raised:
        resolve_preset("opt_125m_en")
    assert str(raised.value).splitlines() == [
        "cannot download preset 'opt_125m_en':",
        "  Kaggle model keras/opt/keras/opt_125m_en/3: no route",
        "  Hugging Face repository keras/opt_125m_en: a token is needed",
        "Or put a copy into a local folder and give its path as the preset: config.json, the weights "
        "and the tokenizer's files, as Keras or Hugging Face writes them",
    ]
    assert raised.value.__cause__ is hugging_face.answer


def test_a_handle_has_one_source(kaggle, hugging_face):
    kaggle.answer = HubFailure("no route")
    with pytest.raises(PresetError) as raised:
        resolve_preset("kaggle://me/opt/keras/mine")
    lines = str(raised.value).splitlines()
    assert lines[:2] == [
        "cannot download preset 'kaggle://me/opt/keras/mine':",
        "  Kaggle model me/opt/keras/mine: no route",
    ]
    assert len(lines) == 3
    assert hugging_face.calls == []


def test_without_the_clients(monkeypatch):
    for module in ("kagglehub", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PresetError) as raised:
        resolve_preset("opt_125m_en")
    lines = str(raised.value).splitlines()
    assert lines[1].endswith(": kagglehub is not installed: pip install 'opt-onnx[export]'")
    assert lines[2].endswith(": huggingface_hub is not installed: pip install 'opt-onnx[export]'")


def test_ctrl_c_is_no_failure_of_a_source(monkeypatch, hugging_face):
    import kagglehub

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(kagglehub, "model_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resolve_preset("opt_125m_en")
    assert hugging_face.calls == []


def test_reading_a_handle_loads_no_framework_and_no_client(repository):
    heavy = "'keras', 'tensorflow', 'h5py', 'kagglehub', 'huggingface_hub', 'requests'"
    code = f"import sys, exporter.presets.handles; print({{{heavy}}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


# === The hubs themselves ===


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("preset", ["opt_125m_en", "hf://keras/opt_125m_en", "hf://facebook/opt-125m"])
def test_the_smallest_published_preset_loads_without_weights(preset):
    from exporter import OPTCausalLM

    model = OPTCausalLM.from_preset(preset, load_weights=False)
    assert model.backbone.count_params() == 125_237_760
    assert model.preprocessor.tokenizer.vocabulary_size() >= 50265


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("preset", ["opt_125m_en", "hf://facebook/opt-125m"])
def test_the_smallest_published_preset_writes_what_it_is_known_to_write(preset):
    """The texts are those of the tests of transformers (`OPTGenerationTest`)."""
    from exporter import OPTCausalLM

    model = OPTCausalLM.from_preset(preset)
    model.compile(sampler="greedy")
    prompts = [
        "Today is a beautiful day and I want",
        "In the city of",
        "Paris is the capital of France and",
        "Computers and mobile phones have taken",
    ]
    assert model.generate(prompts, max_length=10) == [
        "Today is a beautiful day and I want to",
        "In the city of New York, the city",
        "Paris is the capital of France and the capital",
        "Computers and mobile phones have taken over the",
    ]
