"""The options of `opt-generate` that choose a sampler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator, cli, samplers
from runtime.samplers import BeamSampler, GreedySampler, Sampler
from tests.runtime.test_cli import Run, assert_error, greedy_text, run  # noqa: F401
from tests.runtime.toy import edit_manifest


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("TopKSampler", {"k": 3, "temperature": 0.5, "seed": 7})),
        (["--k", "4"], ("TopKSampler", {"k": 4, "temperature": 0.5, "seed": 7})),
        (["--temperature", "2"], ("TopKSampler", {"k": 3, "temperature": 2.0, "seed": 7})),
        (["--seed", "0"], ("TopKSampler", {"k": 3, "temperature": 0.5, "seed": 0})),
        (["--sampler", "greedy"], ("GreedySampler", {"temperature": 1.0})),
        (["--sampler", "top_k"], ("TopKSampler", {"k": 5, "temperature": 1.0, "seed": None})),
        (
            ["--sampler", "top_k", "--k", "2", "--temperature", "0.7", "--seed", "1"],
            ("TopKSampler", {"k": 2, "temperature": 0.7, "seed": 1}),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sampler_options_change_those_of_the_bundle(
    run: Run,  # noqa: F811
    toy_bundle_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: Any,
) -> None:
    config = {"k": 3, "temperature": 0.5, "seed": 7}
    sampler = {"class_name": "TopKSampler", "config": config}
    edit_manifest(toy_bundle_copy, lambda values: values["generation"].update(sampler=sampler))
    seen: list[Any] = []

    def stream(self: Generator, prompt: str, **_: Any) -> Iterator[str]:
        seen.append((type(self.sampler).__name__, self.sampler.get_config()))
        return iter([])

    monkeypatch.setattr(Generator, "stream", stream)
    assert run("the", *options, bundle=toy_bundle_copy)[0] == 0
    assert seen == [expected]


def test_a_greedy_bundle_stays_greedy(
    run: Run,  # noqa: F811
    toy_bundle_copy: Path,
    generator: Generator,
) -> None:
    sampler = {"class_name": "GreedySampler", "config": {}}
    edit_manifest(toy_bundle_copy, lambda values: values["generation"].update(sampler=sampler))
    assert run("the", bundle=toy_bundle_copy)[1] == greedy_text(generator, "the") + "\n"
    assert isinstance(generator.sampler, GreedySampler)
    assert_error(
        run("the", "--k", "3", "--seed", "1", bundle=toy_bundle_copy),
        "the sampler GreedySampler does not take --k, --seed; it takes --temperature; another is",
    )


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (["random", "--temperature", "2", "--seed", "3"], {"temperature": 2.0, "seed": 3}),
        (
            ["top_p", "--p", "0.9", "--k", "7", "--seed", "0"],
            {"p": 0.9, "k": 7, "temperature": 1.0, "seed": 0},
        ),
        (["top_p"], {"p": 0.1, "k": None, "temperature": 1.0, "seed": None}),
        (
            ["beam", "--num-beams", "3", "--temperature", "0.5"],
            {"num_beams": 3, "return_all_beams": False, "temperature": 0.5},
        ),
        (["contrastive", "--k", "4", "--alpha", "0"], {"k": 4, "alpha": 0.0, "temperature": 1.0}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_each_sampler(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    config: dict[str, Any],
) -> None:
    seen: list[Sampler] = []

    def stream(self: Generator, prompt: str, **_: Any) -> Iterator[str]:
        seen.append(self.sampler)
        return iter([])

    monkeypatch.setattr(Generator, "stream", stream)
    assert run("the", "--sampler", *options)[0] == 0
    assert type(seen[0]) is type(samplers.get(options[0]))
    assert seen[0].get_config() == config


@pytest.mark.parametrize("name", samplers.NAMES)
def test_every_sampler_writes_text(run: Run, generator: Generator, name: str) -> None:  # noqa: F811
    seed = ["--seed", "5"] if "seed" in samplers.parameters(type(samplers.get(name))) else []
    status, out, error = run("the", "--sampler", name, "--max-length", "15", *seed)
    assert (status, error) == (0, "")
    generator.compile({"class_name": name, "config": {"seed": 5} if seed else {}})
    assert out == generator.generate("the", max_length=15) + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--sampler", "greedy", "--k", "5"],
            "the sampler greedy does not take --k; it takes --temperature; another is chosen with",
        ),
        (
            ["--sampler", "beam", "--seed", "1", "--p", "0.5"],
            "the sampler beam does not take --p, --seed; it takes --temperature, --num-beams, --all-",
        ),
        (["--num-beams", "2"], "the sampler TopKSampler does not take --num-beams; it takes --k, --"),
        (["--all-beams"], "the sampler TopKSampler does not take --all-beams"),
        (["--sampler", "top_k", "--alpha", "0"], "the sampler top_k does not take --alpha"),
        (
            ["--sampler", "top_p", "--p", "0"],
            "p must be a number above 0 and at most 1, got 0.0 (from --p)",
        ),
        (
            ["--sampler", "contrastive", "--alpha", "2"],
            "alpha must be a number from 0 to 1, got 2.0 (from --alpha)",
        ),
        (
            ["--sampler", "beam", "--num-beams", "0"],
            "num_beams must be a whole number of at least 1, got 0 (from --num-beams)",
        ),
        (
            ["--sampler", "beam", "--num-beams", "301"],
            "num_beams=301 is larger than the vocabulary of 300 tokens; give num_beams a value from 1",
        ),
        (
            ["--sampler", "contrastive", "--k", "301"],
            "k=301 is larger than the vocabulary of 300 tokens; give k a value from 1 to 300",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit(
    run: Run,  # noqa: F811
    options: list[str],
    message: str,
) -> None:
    assert_error(run("the", *options, "--strip-prompt"), message)


def test_all_beams_are_printed_best_first(run: Run, generator: Generator) -> None:  # noqa: F811
    options = ("--sampler", "beam", "--num-beams", "3", "--max-length", "6")
    status, out, _ = run("the", "a", *options, "--all-beams")
    generator.compile(BeamSampler(num_beams=3, return_all_beams=True))
    lines = []
    for prompt in ("the", "a"):
        texts, scores = generator.generate(prompt, max_length=6)
        lines += [f"{score:.4f}\t{text}\n" for score, text in zip(scores, texts, strict=True)]
    assert (status, out) == (0, "".join(lines))
    assert len(lines) == 6


def test_beams_in_json_lines(run: Run, generator: Generator) -> None:  # noqa: F811
    prompts = ["the", "in the inn"]
    text = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    options = ("--input", "-", "--sampler", "beam", "--num-beams", "2", "--max-length", "16")
    status, out, _ = run(*options, "--all-beams", stdin=text)
    assert status == 0
    generator.compile(BeamSampler(num_beams=2, return_all_beams=True))
    found = [json.loads(line) for line in out.splitlines()]
    for line, result in zip(found, generator.generate_results(prompts, max_length=16), strict=True):
        assert result.beams is not None
        assert [beam["text"] for beam in line["beams"]] == [beam.text for beam in result.beams]
        assert [beam["score"] for beam in line["beams"]] == [beam.score for beam in result.beams]
        assert line["text"] == line["beams"][0]["text"]
    assert "beams" not in json.loads(run(*options, stdin=text)[1].splitlines()[0])


def test_help_tells_what_each_sampler_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    section = out[out.index("samplers, and the options that each takes:") : out.index("examples:")]
    entries = section.replace("\n                ", " ").splitlines()[1:]
    found = {line.split()[0]: line for line in entries if line.strip()}
    assert tuple(found) == samplers.NAMES
    spelled = {"return_all_beams": "--all-beams", "num_beams": "--num-beams"}
    for name, line in found.items():
        for parameter in samplers.parameters(type(samplers.get(name))):
            assert spelled.get(parameter, f"--{parameter}") in line
