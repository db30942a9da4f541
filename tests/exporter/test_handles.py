"""Names, handles and folders to local folders; what is said where that fails."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from exporter import OPTCausalLM
from exporter.errors import PresetError
from exporter.presets.handles import resolve_preset
from exporter.presets.table import BUILTIN_PRESETS

FORMS = (
    "kaggle://user/model/framework/variation[/version]",
    "hf://user/repository[@revision]",
    "the path of a local folder",
)


@pytest.fixture
def kaggle(monkeypatch):
    """A stand-in for kagglehub; its `model_download` records calls."""
    return stand_in(monkeypatch, "kagglehub", "model_download")


@pytest.fixture
def hugging_face(monkeypatch):
    """A stand-in for huggingface_hub; its `snapshot_download` records calls."""
    return stand_in(monkeypatch, "huggingface_hub", "snapshot_download")


def stand_in(monkeypatch, module_name, function_name):
    module = ModuleType(module_name)
    module.calls, module.answer = [], None

    def download(*args, **kwargs):
        module.calls.append((args, kwargs))
        if isinstance(module.answer, BaseException):
            raise module.answer
        return str(module.answer)

    setattr(module, function_name, download)
    monkeypatch.setitem(sys.modules, module_name, module)
    return module


# === Names and folders ===


def test_an_unknown_name_lists_the_known_ones_and_the_forms():
    with pytest.raises(PresetError) as raised:
        resolve_preset("opt_13b_en")
    message = str(raised.value)
    assert message.startswith("no preset 'opt_13b_en'; give a built-in name (")
    for name in ("opt_tiny_en", "opt_125m_en", "opt_1.3b_en", "opt_2.7b_en", "opt_6.7b_en"):
        assert name in message
    for form in FORMS:
        assert form in message


@pytest.mark.parametrize("preset", ["no/such/folder", "opt_125M_en", "http://host/opt"])
def test_what_is_neither_a_name_nor_a_folder(tmp_path, monkeypatch, preset):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PresetError) as raised:
        resolve_preset(preset)
    assert f"no preset {preset!r}" in str(raised.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(PresetError, match="no preset"):
        resolve_preset(tmp_path / "model.safetensors")


def test_a_folder_is_itself(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    assert resolve_preset(tmp_path / "mine") == tmp_path / "mine"
    assert resolve_preset(str(tmp_path / "mine")) == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert resolve_preset("mine").samefile(tmp_path / "mine")


def test_a_built_in_name_comes_before_a_folder_of_that_name(tmp_path, monkeypatch, kaggle):
    (tmp_path / "opt_125m_en").mkdir()
    monkeypatch.chdir(tmp_path)
    kaggle.answer = tmp_path / "downloaded"
    assert resolve_preset("opt_125m_en") == tmp_path / "downloaded"
    assert resolve_preset("./opt_125m_en").samefile(tmp_path / "opt_125m_en")


def test_the_embedded_preset_is_in_the_package():
    folder = resolve_preset("opt_tiny_en")
    assert folder == BUILTIN_PRESETS["opt_tiny_en"].folder
    assert folder.parent.name == "presets"


# === Kaggle ===


@pytest.mark.parametrize(
    ("preset", "handle"),
    [
        ("opt_125m_en", "keras/opt/keras/opt_125m_en/3"),
        ("opt_6.7b_en", "keras/opt/keras/opt_6.7b_en/3"),
        ("kaggle://me/opt/keras/mine", "me/opt/keras/mine"),
        ("kaggle://me/opt/keras/mine/4", "me/opt/keras/mine/4"),
    ],
)
def test_a_kaggle_model_is_downloaded(tmp_path, kaggle, preset, handle):
    kaggle.answer = tmp_path
    assert resolve_preset(preset) == tmp_path
    assert kaggle.calls == [((handle,), {})]


@pytest.mark.parametrize(
    "preset",
    [
        "kaggle://",
        "kaggle://me/opt",
        "kaggle://me/opt/keras",
        "kaggle://me/opt/keras/mine/4/more",
        "kaggle://me//keras/mine",
        "kaggle:///opt/keras/mine",
        "kaggle://me/opt/keras/mine/",
    ],
)
def test_a_bad_kaggle_handle_is_refused_before_any_download(kaggle, preset):
    with pytest.raises(PresetError) as raised:
        resolve_preset(preset)
    assert f"cannot read the handle {preset!r}; give a built-in name" in str(raised.value)
    for form in FORMS:
        assert form in str(raised.value)
    assert kaggle.calls == []


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nsecond line"), OSError("no route"), RuntimeError("no route")]
)
def test_a_failed_kaggle_download(kaggle, error):
    kaggle.answer = error
    with pytest.raises(PresetError) as raised:
        resolve_preset("opt_125m_en")
    assert str(raised.value) == (
        "cannot download preset 'opt_125m_en' (kaggle.com model keras/opt/keras/opt_125m_en/3): "
        "no route. Check the network and your access, or give the path of a folder that holds a copy"
    )
    assert raised.value.__cause__ is error


def test_an_error_without_words_is_named_by_its_kind(kaggle):
    kaggle.answer = TimeoutError()
    with pytest.raises(PresetError, match=r"\): TimeoutError\. Check the network"):
        resolve_preset("kaggle://me/opt/keras/mine")


def test_ctrl_c_during_a_download_is_no_preset_error(kaggle):
    kaggle.answer = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        resolve_preset("opt_125m_en")


def test_without_kagglehub(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(PresetError, match=r"downloading 'opt_125m_en' needs kagglehub: pip install"):
        resolve_preset("opt_125m_en")


# === Hugging Face ===


@pytest.mark.parametrize(
    ("preset", "repository", "revision"),
    [
        ("hf://facebook/opt-125m", "facebook/opt-125m", None),
        ("hf://facebook/opt-125m@main", "facebook/opt-125m", "main"),
        ("hf://facebook/opt-125m@refs/pr/3", "facebook/opt-125m", "refs/pr/3"),
    ],
)
def test_a_hugging_face_repository_is_downloaded(tmp_path, hugging_face, preset, repository, revision):
    hugging_face.answer = tmp_path
    assert resolve_preset(preset) == tmp_path
    ((args, options),) = hugging_face.calls
    assert args == (repository,)
    assert options["revision"] == revision
    # No pickled weights: they are not read, and loading them would run code.
    assert not [p for p in options["allow_patterns"] if "bin" in p or "pt" in p or "pkl" in p]
    assert {"*.json", "*.txt", "*.safetensors", "*.h5"} <= set(options["allow_patterns"])


@pytest.mark.parametrize(
    "preset",
    [
        "hf://",
        "hf://opt-125m",
        "hf://facebook/opt-125m/more",
        "hf://facebook/opt-125m@",
        "hf://facebook/",
        "hf:///opt-125m",
        "hf://@main",
    ],
)
def test_a_bad_hugging_face_handle_is_refused_before_any_download(hugging_face, preset):
    with pytest.raises(PresetError) as raised:
        resolve_preset(preset)
    assert f"cannot read the handle {preset!r}; give a built-in name" in str(raised.value)
    assert hugging_face.calls == []


def test_a_failed_hugging_face_download(hugging_face):
    hugging_face.answer = ValueError("401 Client Error\nRepository not found")
    with pytest.raises(PresetError) as raised:
        resolve_preset("hf://facebook/opt-9b@v2")
    assert str(raised.value) == (
        "cannot download preset 'hf://facebook/opt-9b@v2' (Hugging Face repository "
        "facebook/opt-9b@v2): 401 Client Error. Check the network and your access, or give the "
        "path of a folder that holds a copy"
    )


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PresetError, match="needs huggingface_hub: pip install"):
        resolve_preset("hf://facebook/opt-125m")


# === Used as presets ===


def test_a_downloaded_folder_loads(hugging_face, kaggle, toy_preset, toy_model, padded_tokens):
    hugging_face.answer = kaggle.answer = toy_preset
    for preset in ("hf://me/toy", "kaggle://me/opt/keras/toy"):
        model = OPTCausalLM.from_preset(preset)
        assert abs(model(padded_tokens) - toy_model(padded_tokens)).numpy().max() == 0


@pytest.mark.network
@pytest.mark.slow
def test_the_smallest_published_preset_loads():
    model = OPTCausalLM.from_preset("opt_125m_en", load_weights=False)
    assert model.backbone.count_params() == 125_237_760
