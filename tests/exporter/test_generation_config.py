"""What ends a text, and how it is written: from `generation_config.json` to bundles and back."""

from __future__ import annotations

import json
import re
import shutil

import keras
import pytest

from exporter import OPTCausalLM, export_bundle
from exporter.cli import main
from exporter.errors import ExportError, PresetError
from exporter.presets.folder import read_preset
from exporter.presets.generation_config import read_generation
from runtime import Generator
from runtime.bundle import load_bundle
from runtime.generation_options import GenerationOptions
from runtime.samplers import (
    BeamSampler,
    GreedySampler,
    RandomSampler,
    TopKSampler,
    TopPSampler,
    serialize,
)

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


# === How texts are written ===


def read_writing(folder, **values):
    edit(folder, "generation_config.json", **values)
    return read_generation(folder, {}, 100).writing


def described(sampler):
    return sampler and {"name": type(sampler).__name__, **sampler.get_config()}


@pytest.mark.parametrize(
    ("values", "sampler"),
    [
        ({}, None),
        ({"do_sample": False, "temperature": 0.5, "top_k": 7, "top_p": 0.9}, None),
        ({"temperature": "hot", "top_k": 7}, None),  # which transformers does not look at either
        ({"do_sample": True}, TopKSampler(k=50)),
        ({"do_sample": True, "top_k": None, "top_p": 1.0}, TopKSampler(k=50)),
        ({"do_sample": True, "temperature": 0.7, "top_k": 5}, TopKSampler(k=5, temperature=0.7)),
        ({"do_sample": True, "top_k": 0, "temperature": 2}, RandomSampler(temperature=2.0)),
        ({"do_sample": True, "top_k": 100}, RandomSampler()),  # all there are
        ({"do_sample": True, "top_k": 0, "top_p": 0.9}, TopPSampler(p=0.9)),
        (
            {"do_sample": True, "top_p": 0.9, "temperature": 0.7},
            TopPSampler(p=0.9, k=50, temperature=0.7),
        ),
        ({"do_sample": True, "temperature": 0.0}, GreedySampler()),
        ({"num_beams": 4, "top_p": 0.5}, BeamSampler(num_beams=4)),
        ({"num_beams": 1}, None),
        ({"num_beams": 4, "do_sample": True}, TopKSampler(k=50)),
    ],
)
def test_the_sampler_that_is_asked_for(tmp_path, values, sampler):
    assert described(read_writing(tmp_path, **values).sampler) == described(sampler)


OPTIONS = {
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[5, 6], [7]],
    "sequence_bias": [[[5, 6], -2.0]],
    "suppress_tokens": [8],
    "begin_suppress_tokens": [2, 9],
    "min_new_tokens": 1,
    "max_new_tokens": 6,
}


def test_options_are_taken_as_they_are(tmp_path):
    found = read_writing(tmp_path, **OPTIONS)
    assert (found.options, found.notices) == (OPTIONS, ())
    none = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None}
    assert read_writing(tmp_path, **{name: GONE for name in OPTIONS} | none).options == {}


def test_ids_that_the_model_does_not_have_are_left_out_of_options(tmp_path):
    found = read_writing(
        tmp_path,
        suppress_tokens=[-1, 5, 100],
        bad_words_ids=[[5, 100], [6]],
        sequence_bias=[[[7], -200], [[100], 1.5]],
    )
    assert found.options == {
        "bad_words_ids": [[6]],
        "sequence_bias": [[[7], -200.0]],
        "suppress_tokens": [5],
    }
    assert [re.search(r": (\d) of (\w+) are not of", notice).groups() for notice in found.notices] == [
        ("1", "bad_words_ids"),
        ("1", "sequence_bias"),
        ("2", "suppress_tokens"),
    ]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"use_cache": True, "pad_token_id": 1, "transformers_version": "5.0", "top_h": None}, []),
        ({"min_p": 0.1, "typical_p": 0.5, "length_penalty": 2.0}, []),  # greedy search has none
        ({"do_sample": True, "typical_p": 1.0, "min_p": 0.0}, []),
        (
            {"do_sample": True, "typical_p": 0.5, "min_p": 0.1},
            ["'typical_p': 0.5, 'min_p': 0.1, which"],
        ),
        ({"penalty_alpha": 0.6, "top_k": 4}, ["'penalty_alpha': 0.6, which a bundle does not carry"]),
        (
            {"max_length": 50, "unheard_of": {"a": [1]}},
            [r"'max_length': 50, 'unheard_of': {'a': \[1\]}"],
        ),
        ({"num_beams": 4}, ["for 'length_penalty': 1.0, which"]),
        ({"num_beams": 4, "length_penalty": 0.0}, []),
        ({"num_beams": 4, "do_sample": True}, ["for 'num_beams': 4, which"]),
        ({"do_sample": True, "top_p": 0.9}, ["top_p 0.9 is taken of the whole distribution"]),
        ({"x" * 5000 + "\n": "y" * 5000}, ["a bundle does not carry"]),
    ],
)
def test_what_a_bundle_does_not_carry_is_told(tmp_path, values, told):
    edit(tmp_path, "generation_config.json", **values)
    found = read_generation(tmp_path, {}, 100)
    assert len(found.notices) == len(told)
    for notice, part in zip(found.notices, told, strict=True):
        assert re.search(part, notice)
        assert "\n" not in notice
        assert len(notice) < 500


@pytest.mark.parametrize(
    "values",
    [
        {"do_sample": 1},
        {"do_sample": True, "temperature": "hot"},
        {"do_sample": True, "temperature": -1},
        {"do_sample": True, "top_k": 5.0},
        {"do_sample": True, "top_p": 1.5},
        {"num_beams": 101},
        {"num_beams": 0},
        {"repetition_penalty": 0},
        {"no_repeat_ngram_size": -1},
        {"bad_words_ids": [5]},
        {"bad_words_ids": [[]]},
        {"sequence_bias": {"(5, 6)": 1.0}},
        {"sequence_bias": [[]]},
        {"suppress_tokens": "5"},
        {"begin_suppress_tokens": [[[[]]]]},
        {"min_new_tokens": 5, "max_new_tokens": 4},
        {"suppress_tokens": [5] * 10_001},
    ],
    ids=lambda values: str(values)[:60],
)
def test_values_that_are_not_valid_are_refused(tmp_path, values):
    edit(tmp_path, "generation_config.json", **values)
    with pytest.raises(PresetError, match=r"generation_config\.json: ") as raised:
        read_generation(tmp_path, {}, 100)
    assert len(str(raised.value)) < 700


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
    assert load_bundle(tmp_path / "bundle").options is None


@pytest.fixture(scope="module")
def writing(toy_preset, tmp_path_factory):
    """A preset that asks for a sampler and for options."""
    folder = shutil.copytree(toy_preset, tmp_path_factory.mktemp("presets") / "writing")
    drawing = {"do_sample": True, "top_k": 9, "temperature": 0.5, "min_p": 0.1}
    edit(folder, "generation_config.json", **OPTIONS, **drawing)
    return folder


def test_a_bundle_carries_what_the_preset_asks_for(quick_tracing, writing, tmp_path, capsys):
    output = str(tmp_path / "bundle")
    assert main(["--preset", str(writing), "--output", output, "--verify", "graph"]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("Generation   "))
    assert "TopKSampler(k=9, temperature=0.5), max_new_tokens=6, min_new_tokens=1, rep" in line
    assert "Note         generation_config.json asks for 'min_p': 0.1, which" in printed
    loaded = load_bundle(output)
    assert loaded.manifest.generation.sampler == serialize(TopKSampler(k=9, temperature=0.5))
    assert loaded.manifest.generation.options == OPTIONS
    assert loaded.options == GenerationOptions.from_dict(OPTIONS)


def test_a_model_s_own_sampler_and_options_go_into_its_bundle(quick_tracing, writing, tmp_path):
    model = OPTCausalLM.from_preset(str(writing))
    assert model.default_options.to_dict() == OPTIONS
    assert model._generator().default_options is model.default_options
    model.compile(sampler="greedy")
    model.default_options = GenerationOptions(repetition_penalty=1.5)
    summary = export_bundle(model, tmp_path / "bundle", verify="none")
    assert summary.generation == "repetition_penalty=1.5"
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.manifest.generation.sampler == serialize(GreedySampler())
    assert loaded.options == model.default_options


def test_options_come_back_from_every_kind_of_folder(writing, tmp_path):
    model = OPTCausalLM.from_preset(str(writing))
    model.save_to_preset(tmp_path / "keras")
    model.export_to_transformers(tmp_path / "hf")
    model.save(tmp_path / "model.keras")
    for name in ("keras", "hf"):
        assert read_preset(tmp_path / name).generation.writing.options == OPTIONS
    assert keras.saving.load_model(tmp_path / "model.keras").default_options == model.default_options
    model.default_options = None
    model.save_to_preset(tmp_path / "keras")
    assert read_preset(tmp_path / "keras").generation.writing.options == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5, "n": 2}, "temperature, n can be asked for in a call only"),
        ({"suppress_tokens": [288]}, "suppress_tokens must be ids of the model's vocabulary, 0 to 287"),
    ],
)
def test_options_that_files_cannot_carry_are_refused(build_model, tmp_path, options, message):
    model = build_model()
    model.default_options = GenerationOptions(**options)
    with pytest.raises(ExportError, match=f"cannot hold this model's default_options: {message}"):
        export_bundle(model, tmp_path / "bundle")
    for save in (model.save_to_preset, model.export_to_transformers):
        with pytest.raises(ValueError, match=message):
            save(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.reference
def test_a_bundle_writes_what_transformers_does_unasked(quick_tracing, hf_folder, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(hf_folder, tmp_path / "folder")
    text = " the quick brown fox"
    generators = {}
    for name, options in (("without", {}), ("with", OPTIONS | {"max_new_tokens": 12})):
        edit(folder, "generation_config.json", eos_token_id=2, **options)
        export_bundle(folder, tmp_path / name, verify="none")
        generators[name] = Generator.from_bundle(tmp_path / name, "cpu", 1)
        generators[name].compile(sampler="greedy")
    prompt = [2, *generators["with"].tokenizer.encode(text)]
    theirs = AutoModelForCausalLM.from_pretrained(folder).generate(torch.tensor([prompt]))[0].tolist()
    expected = theirs[len(prompt) :]
    (ours,) = generators["with"].generate_results(text)
    assert list(ours.token_ids) == expected
    (free,) = generators["without"].generate_results(text, max_length=len(theirs))
    assert list(free.token_ids) != expected
