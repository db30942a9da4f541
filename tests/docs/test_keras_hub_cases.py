"""The table of keras-hub's test cases is whole, and names tests that exist."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from tests.docs.markdown import DOCS

ROOT = DOCS.parent
PAGE = DOCS / "keras_hub_cases.md"
_SAMPLER = "stateless_call stateful_call early_stopping"
# What keras-hub's files hold, less the `test_` that every name begins with.
CASES = {
    "models/opt/opt_backbone_test.py": "backbone_basics saved_model smallest_preset all_presets",
    "models/opt/opt_causal_lm_test.py": (
        "causal_lm_basics generate early_stopping generate_compilation saved_model litert_export "
        "all_presets"
    ),
    "models/opt/opt_causal_lm_preprocessor_test.py": (
        "preprocessor_basics no_start_end_token generate_preprocess generate_postprocess all_presets"
    ),
    "models/opt/opt_tokenizer_test.py": (
        "tokenizer_basics errors_missing_special_tokens smallest_preset all_presets"
    ),
    "models/backbone_test.py": (
        "preset_accessors from_preset from_preset_with_kwargs from_preset_errors save_to_preset "
        "export_supported_model export_unsupported_model"
    ),
    "models/task_test.py": (
        "preset_accessors from_preset from_preset_with_kwargs from_preset_errors "
        "summary_with_preprocessor summary_without_preprocessor quantized_preset_loading_and_saving "
        "load_quantized_preset_with_dtype_override save_to_preset "
        "save_to_preset_custom_backbone_and_preprocessor export_attached "
        "export_attached_with_lm_head export_detached export_missing_tokenizer"
    ),
    "models/causal_lm_preprocessor_test.py": (
        "preset_accessors from_preset from_preset_with_sequence_length from_preset_errors "
        "export_supported_preprocessor export_missing_tokenizer"
    ),
    "samplers/greedy_sampler_test.py": f"{_SAMPLER} multitoken_early_stopping is_greedy",
    "samplers/random_sampler_test.py": f"{_SAMPLER} temperature",
    "samplers/top_k_sampler_test.py": f"{_SAMPLER} outputs_in_top_k",
    "samplers/top_p_sampler_test.py": (
        f"{_SAMPLER} only_sample_from_top_k_tokens outputs_in_top_p temperature"
    ),
    "samplers/beam_sampler_test.py": f"{_SAMPLER} return_all_beams",
    "samplers/contrastive_sampler_test.py": f"{_SAMPLER} outputs_in_top_k alpha_penalty",
    "samplers/serialization_test.py": "serialization get",
    "samplers/speculative_sampler_test.py": (
        "stateless_call all_accepted partial_acceptance early_stopping requires_draft_next "
        "serialization output_shape batched_call short_circuit_rejection"
    ),
}
HELPERS = {
    "run_backbone_test",
    "run_task_test",
    "run_preprocessing_layer_test",
    "run_preprocessor_test",
    "run_model_saving_test",
    "run_preset_test",
    "run_litert_export_test",
}
OUTCOMES = ("same", "deviates", "not here")
_ROW = re.compile(r"^\| `(\w+)` \| (.*) \| (.*) \|$", re.MULTILINE)


def sections():
    """The text below each second-level heading."""
    parts = re.split(r"^## (.*)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return {title.strip("`"): text for title, text in zip(parts[::2], parts[1::2], strict=True)}


def functions_of(path):
    """Names of the test functions in a file."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def assert_exists(reference, default):
    """A test by its name alone in the default file, or with a file before it."""
    path, _, name = reference.rpartition("::")
    path = path or default
    path = path if "/" in path else f"tests/conformance/{path}"
    assert name in functions_of(path), reference


def named_tests(text):
    return re.findall(r"`((?:[\w/.]+::)?test_\w+)`", text)


@pytest.mark.parametrize("file", CASES)
def test_every_case_is_listed_once_with_its_outcome(file):
    rows = _ROW.findall(sections()[file])
    expected = [f"test_{name}" for name in CASES[file].split()]
    assert [name for name, _, _ in rows] == expected
    for name, checked, outcome in rows:
        kind = next((kind for kind in OUTCOMES if outcome.startswith(kind)), None)
        assert kind is not None, name
        assert bool(named_tests(checked)) == (kind != "not here"), name
        # A deviation says why.
        assert kind == "same" or len(outcome) > len(kind) + 20, name


@pytest.mark.parametrize("file", CASES)
def test_every_named_test_exists(file):
    text = sections()[file]
    default = re.search(r"In `(tests/conformance/\w+\.py)`", text).group(1)
    for _, checked, _ in _ROW.findall(text):
        assert Counter(named_tests(checked)).total() == checked.count("`") / 2
        for reference in named_tests(checked):
            assert_exists(reference, default)


def test_every_check_of_the_helpers_is_listed():
    rows = _ROW.findall(sections()["The helpers' checks"])
    assert {helper for helper, _, _ in rows} == HELPERS
    for _, _, checked in rows:
        assert named_tests(checked)
        for reference in named_tests(checked):
            assert "::" in reference
            assert_exists(reference, "")


def test_the_slips_name_tests_that_exist():
    found = named_tests(sections()["The documentation's own slips"])
    assert len(found) >= 7
    for reference in found:
        assert_exists(reference, "test_documentation_examples.py")


def test_there_are_no_other_sections():
    assert set(sections()) == {*CASES, "The helpers' checks", "The documentation's own slips"}
