"""What the embedded preset writes under 200 schemas, drawn from all tokens that these allow."""

from __future__ import annotations

import json
import re

import pytest

from tests.runtime.structured.schemas import all_schemas
from tests.runtime.structured.test_json_schemas import validator

pytestmark = pytest.mark.slow

NEW = 200
PATTERNS = {
    r"[A-Z][a-z]{2,8}( [a-z]{1,6}){0,4}\.": 6,
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])": 6,
    r"(red|green|blue)(, (red|green|blue)){0,3}": 6,
    "[äöüß€😀]{1,5}": 6,
    r"0x[0-9a-f]{1,16}": 6,
}


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """The preset on ONNX Runtime, drawing from all tokens."""
    from exporter import export_bundle
    from runtime import Generator, samplers

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle("opt_tiny_en", folder)
    generator = Generator.from_bundle(folder, threads=2)
    generator.compile(samplers.RandomSampler(seed=7))
    return generator


def write(generator, prompts, options):
    return generator.generate_results(prompts, strip_prompt=True, options=options)


def test_complete_texts_are_valid_under_their_schemas(generator, capsys):
    from runtime import GenerationOptions

    schemas = all_schemas(200)
    options = [
        GenerationOptions(json_schema=s, max_new_tokens=NEW, seed=i) for i, s in enumerate(schemas)
    ]
    prompts = [f"A value {i}: " for i in range(200)]
    results = []
    for first in range(0, 200, 20):
        results += write(generator, prompts[first : first + 20], options[first : first + 20])
    complete = 0
    for schema, result in zip(schemas, results, strict=True):
        assert result.finish_reason in ("stop", "length")
        if result.finish_reason == "stop":
            complete += 1
            validator(schema).validate(json.loads(result.text))
    with capsys.disabled():
        print(f"\n{complete} of 200 texts complete and valid, {200 - complete} cut at {NEW} tokens")
    assert complete >= 100


@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_match_their_regular_expressions(generator, pattern):
    from runtime import GenerationOptions

    count = PATTERNS[pattern]
    options = [GenerationOptions(regex=pattern, max_new_tokens=NEW, seed=i) for i in range(count)]
    for result in write(generator, ["It is "] * count, options):
        assert result.finish_reason == "stop"
        assert re.fullmatch(pattern, result.text)


def test_texts_are_one_of_their_choices(generator):
    from runtime import GenerationOptions

    choices = ["yes", "no", "yes and no", "perhaps: ünsicher", "no way"]
    options = [GenerationOptions(choice=choices, max_new_tokens=NEW, seed=i) for i in range(30)]
    found = {result.text for result in write(generator, ["Is it? "] * 30, options)}
    assert found <= set(choices)
    assert len(found) > 1
