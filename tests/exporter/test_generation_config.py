"""What ends a text: `generation_config.json` and `config.json`, through presets, bundles and back."""

from __future__ import annotations

import json
import re
import shutil

import keras
import pytest

from exporter import OPTCausalLM, export_bundle
from exporter.errors import PresetError
from exporter.presets.folder import read_preset
from exporter.presets.generation_config import read_generation
from runtime import Generator
from runtime.bundle import load_bundle

GONE = object()


def edit(folder, name, **values):
    path = folder / name
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    kept = {key: value for key, value in {**old, **values}.items() if value is not GONE}
    path.write_text(json.dumps(kept), encoding="utf-8")


@pytest.mark.parametrize(
    ("generation", "config", "ends", "told"),
    [
        (None, {}, None, []),
        (None, {"eos_token_id": None}, None, []),
        (None, {"eos_token_id": []}, None, []),
        (None, {"eos_token_id": 2}, (2,), []),
        (None, {"eos_token_id": [5, 2, 5]}, (5, 2), []),
        ({"eos_token_id": 2}, {"eos_token_id": 2}, (2,), []),
        ({"eos_token_id": [2, 5]}, {"eos_token_id": [5, 2]}, (2, 5), []),
        (
            {"eos_token_id": [7, 8]},
            {"eos_token_id": 2},
            (7, 8),
            ["gives eos_token_id 7, 8 and config"],
        ),
        ({"eos_token_id": 7}, {}, (7,), []),
        (
            {"eos_token_id": None},
            {"eos_token_id": 2},
            (2,),
            ["names no end: texts end at conf"],
        ),
        ({"top_k": 5}, {"eos_token_id": [2, 3]}, (2, 3), ["names no end"]),
        ({"top_k": 5}, {}, None, []),
        (
            {"eos_token_id": [5, 5000]},
            {},
            (5,),
            [r"lists 5000, which .* \(ids 0 to 99\)"],
        ),
        ({"eos_token_id": [-1, 100]}, {"eos_token_id": 99}, (99,), ["lists -1, 100", "names no end"]),
        (None, {"eos_token_id": 50256}, None, ["config.json: eos_token_id lists 50256"]),
    ],
)
def test_which_ids_count_and_what_is_told(tmp_path, generation, config, ends, told):
    if generation is not None:
        edit(tmp_path, "generation_config.json", **generation)
    found = read_generation(tmp_path, config, 100)
    assert found.end_token_ids == ends
    assert len(found.notices) == len(told)
    for notice, part in zip(found.notices, told, strict=True):
        assert re.search(part, notice)


@pytest.mark.parametrize(
    "value", ["2", 2.0, True, {"a": 1}, [2, "3"], [[2]], [None], list(range(1001))], ids=str
)
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_what_is_no_id_is_refused(tmp_path, name, value):
    config = {"eos_token_id": value} if name == "config.json" else {}
    if not config:
        edit(tmp_path, name, eos_token_id=value)
    with pytest.raises(
        PresetError, match=f"{name}: eos_token_id must be a token id or a list"
    ) as raised:
        read_generation(tmp_path, config, 2000)
    assert len(str(raised.value)) < 500


def test_a_file_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "generation_config.json").write_text("[2]", encoding="utf-8")
    with pytest.raises(PresetError, match="must hold a JSON object"):
        read_generation(tmp_path, {}, 100)


# === All the way ===


@pytest.fixture(scope="module")
def several(hf_folder, tmp_path_factory):
    """A Hugging Face folder whose texts end at three tokens, the tokenizer's the last of them."""
    folder = shutil.copytree(hf_folder, tmp_path_factory.mktemp("presets") / "several")
    edit(folder, "generation_config.json", eos_token_id=[260, 270, 2, 4000])
    return folder


ENDS = (260, 270, 2)


@pytest.mark.reference
def test_a_model_and_a_bundle_of_it_end_where_transformers_does(quick_tracing, several, tmp_path):
    model = OPTCausalLM.from_preset(str(several))
    assert model.end_token_ids == ENDS
    assert model.preprocessor.tokenizer.end_token_id == 2
    summary = export_bundle(several, tmp_path / "bundle")
    assert "texts end at 260, 270, 2" in summary.tokenizer
    assert any("lists 4000" in notice for notice in summary.notices)
    assert load_bundle(tmp_path / "bundle").manifest.generation.end_token_ids == ENDS
    generator = Generator.from_bundle(tmp_path / "bundle", "cpu", 1)
    free = generator_tokens(generator, stop_token_ids=None)
    # Whatever is written fourth is made an end, so that the text does end there.
    ends = (*ENDS, free[3])
    for found in (model, generator):
        found.end_token_ids = ends
        assert generator_tokens(found) == free[: free.index(free[3]) + 1]


def generator_tokens(generator, **options):
    generator.compile(sampler="greedy")
    return list(generator.generate_results(" the quick", max_length=20, **options)[0].token_ids)


@pytest.mark.reference
def test_they_come_back_from_every_kind_of_folder(quick_tracing, several, tmp_path):
    model = OPTCausalLM.from_preset(str(several))
    model.save_to_preset(tmp_path / "keras")
    model.export_to_transformers(tmp_path / "hf")
    model.save(tmp_path / "model.keras")
    for name in ("keras", "hf"):
        assert read_preset(tmp_path / name).generation.end_token_ids == ENDS
        assert OPTCausalLM.from_preset(str(tmp_path / name)).end_token_ids == ENDS
    assert keras.saving.load_model(tmp_path / "model.keras").end_token_ids == ENDS
    export_bundle(model, tmp_path / "live")
    assert load_bundle(tmp_path / "live").manifest.generation.end_token_ids == ENDS
    # A model that says nothing takes away what another has left in the folder.
    model.end_token_ids = None
    model.save_to_preset(tmp_path / "keras")
    assert read_preset(tmp_path / "keras").generation.end_token_ids is None
    model.export_to_transformers(tmp_path / "hf")
    assert read_preset(tmp_path / "hf").generation.end_token_ids == (2,)


def test_without_a_tokenizer_the_configuration_s_ids_end_texts(
    quick_tracing, plain_hf_folder, tmp_path
):
    edit(plain_hf_folder, "config.json", eos_token_id=[7, 9])
    summary = export_bundle(plain_hf_folder, tmp_path / "bundle")
    assert summary.tokenizer == (
        "none: the bundle takes token ids only; --tokenizer FOLDER adds one; texts end at 7, 9"
    )
    generator = Generator.from_bundle(tmp_path / "bundle", "cpu", 1)
    assert generator.end_token_ids == (7, 9)
    tokens = {"token_ids": [[2, 4, 0]], "padding_mask": [[1, 1, 0]]}
    generator.generate(tokens)  # "auto" has something to take


def test_a_preset_says_nothing_where_its_tokenizer_does(quick_tracing, toy_preset, tmp_path):
    assert read_preset(toy_preset).generation.end_token_ids is None
    export_bundle(toy_preset, tmp_path / "bundle", verify="none")
    assert load_bundle(tmp_path / "bundle").manifest.generation.end_token_ids == (2,)
