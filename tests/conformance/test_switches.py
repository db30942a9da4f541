"""Models with other switches than OPT's own say what transformers says, in Keras and from a bundle.

Each case is one random checkpoint that transformers writes, loaded and exported once. Weights are so
large that every prompt has a continuation of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exporter.conftest import quick_tracing  # noqa: F401

pytestmark = pytest.mark.reference

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "max_position_embeddings": 48,
}
LENGTH = 36  # prompt and new tokens
PROMPT_LENGTHS = (6, 1, 3, 5)
TOLERANCE = 1e-4  # of the logits' standard deviation


@dataclass(frozen=True)
class Case:
    """Switches, and how the weights lie on disk.

    Attributes:
        switches: of transformers' `OPTConfig`.
        seed: of the weights; one whose model does not fall into a short loop.
        rewrites: norms that an export fuses.
        dtype: the weights are stored in it.
        shard: size of a shard; by default there is one file.
    """

    switches: dict[str, Any]
    seed: int
    rewrites: int = 5
    dtype: str = "float32"
    shard: str | None = None


# Galactica with biases and scales, and without: its paper (https://arxiv.org/abs/2211.09085) has none.
GALACTICA = {"activation_function": "gelu"}
CASES = {
    "opt-350m": Case(
        {"do_layer_norm_before": False, "word_embed_proj_dim": 16}, 23, rewrites=4, dtype="float16"
    ),
    "galactica with biases": Case(GALACTICA, 6, dtype="bfloat16"),
    "galactica without biases": Case(
        {**GALACTICA, "enable_bias": False, "layer_norm_elementwise_affine": False}, 4, dtype="float16"
    ),
    "untied head, no final norm, tanh gelu": Case(
        {
            "tie_word_embeddings": False,
            "_remove_final_layer_norm": True,
            "activation_function": "gelu_new",
        },
        16,
        rewrites=4,
        shard="20KB",
    ),
    "narrow embedding, untied head, silu, no biases": Case(
        {
            "word_embed_proj_dim": 16,
            "tie_word_embeddings": False,
            "activation_function": "silu",
            "enable_bias": False,
        },
        19,
        dtype="bfloat16",
    ),
    "wide embedding, post-norm, plain norms with biases": Case(
        {
            "word_embed_proj_dim": 48,
            "do_layer_norm_before": False,
            "layer_norm_elementwise_affine": False,
        },
        2,
        rewrites=4,
    ),
}


@dataclass(frozen=True)
class Subject:
    """One checkpoint in each form.

    Attributes:
        case: what it is a case of.
        folder: where transformers wrote it.
        theirs: transformers' model, loaded from there in float32.
        ours: our Keras model of it.
        summary: what the export did.
        prompts: token ids of each row.
        tokens: transformers' greedy continuation of every prompt alone, the prompt first.
    """

    case: Case
    folder: Path
    theirs: Any
    ours: Any
    summary: Any
    prompts: list[list[int]]
    tokens: list[list[int]]


def write_checkpoint(case: Case, folder: Path) -> None:
    """A random model as transformers writes it; biases and norms are not at their start either."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(case.seed)
    model = OPTForCausalLM(OPTConfig(**SIZES, **case.switches))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            deviation = 1.0 if "embed_positions" in name else 0.5
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(deviation * torch.randn_like(parameter) + is_scale)
    options = {"max_shard_size": case.shard} if case.shard else {}
    model.to(getattr(torch, case.dtype)).save_pretrained(folder, **options)


def greedy_tokens(model: Any, prompt: list[int]) -> list[int]:
    import torch

    ids = torch.tensor([prompt])
    answer = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_length=LENGTH,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=1,
    )
    return answer[0].tolist()


# Most switches are in one of these; tanh GELU and wide embeddings wait for `--slow`.
QUICK = (
    "opt-350m",
    "galactica without biases",
    "narrow embedding, untied head, silu, no biases",
)


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES],
)
def subject(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    quick_tracing: None,  # noqa: F811
) -> Subject:
    import torch
    from transformers import OPTForCausalLM

    from exporter import OPTCausalLM, export_bundle

    case, folder = CASES[request.param], tmp_path_factory.mktemp("switches")
    write_checkpoint(case, folder / "theirs")
    theirs = OPTForCausalLM.from_pretrained(folder / "theirs", dtype=torch.float32).eval()
    ours = OPTCausalLM.from_preset(str(folder / "theirs"))
    ours.compile(sampler="greedy")
    summary = export_bundle(folder / "theirs", folder / "bundle", verify="full")
    generator = np.random.default_rng(4)
    prompts = [generator.integers(4, SIZES["vocab_size"], n).tolist() for n in PROMPT_LENGTHS]
    tokens = [greedy_tokens(theirs, prompt) for prompt in prompts]
    return Subject(case, folder / "theirs", theirs, ours, summary, prompts, tokens)


def pack(rows: list[list[int]]) -> dict[str, np.ndarray]:
    """A token dictionary of ragged rows."""
    token_ids = np.ones((len(rows), LENGTH), np.int32)
    mask = np.zeros((len(rows), LENGTH), bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)], mask[i, : len(row)] = row, True
    return {"token_ids": token_ids, "padding_mask": mask}


def assert_says(model: Any, subject: Subject) -> None:
    """Greedy tokens of each prompt alone, and of all in one ragged batch."""
    for prompt, expected in zip(subject.prompts, subject.tokens, strict=True):
        found = model.generate(pack([prompt]), stop_token_ids=None)["token_ids"]
        assert found.tolist() == [expected]
    found = model.generate(pack(subject.prompts), stop_token_ids=None)["token_ids"]
    assert found.tolist() == subject.tokens


def their_logits(subject: Subject, token_ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return subject.theirs(torch.from_numpy(token_ids.astype(np.int64))).logits.numpy()


# === The checkpoint ===


def test_the_checkpoint_is_the_case(subject: Subject) -> None:
    """What transformers wrote has the switches, the dtype and the shards that are to be tested."""
    from safetensors.numpy import load_file

    config = json.loads((subject.folder / "config.json").read_text("utf-8"))
    assert {name: config[name] for name in subject.case.switches} == subject.case.switches
    assert config["dtype"] == subject.case.dtype
    files = list(subject.folder.glob("*.safetensors"))
    assert len(files) > 2 if subject.case.shard else len(files) == 1
    tensors = {name: value for file in files for name, value in load_file(file).items()}
    assert {value.dtype.name for value in tensors.values()} == {subject.case.dtype}
    has = {
        part: any(part in name for name in tensors) for part in ("lm_head", "project_in", "fc1.bias")
    }
    assert has["lm_head"] is not config["tie_word_embeddings"]
    assert has["project_in"] is (config["word_embed_proj_dim"] != config["hidden_size"])
    assert has["fc1.bias"] is config["enable_bias"]
    norms = [name for name in tensors if "layer_norm.weight" in name]
    assert len(norms) == subject.case.rewrites * config["layer_norm_elementwise_affine"]


def test_the_continuations_differ(subject: Subject) -> None:
    """Otherwise equal tokens would prove little."""
    new = [row[len(p) :] for row, p in zip(subject.tokens, subject.prompts, strict=True)]
    assert min(len(row) for row in new) >= 30
    assert min(len(set(row)) for row in new) >= 8
    assert len({tuple(row[:5]) for row in new}) == len(new)


# === In Keras ===


def test_keras_logits(subject: Subject) -> None:
    token_ids = np.array(subject.tokens)
    expected = their_logits(subject, token_ids)
    mask = np.ones_like(token_ids)
    found = subject.ours.predict({"token_ids": token_ids, "padding_mask": mask}, verbose=0)
    assert np.abs(found - expected).max() <= TOLERANCE * expected.std()


def test_keras_generates_the_same_tokens(subject: Subject) -> None:
    assert_says(subject.ours, subject)


def test_the_number_of_parameters(subject: Subject) -> None:
    count = subject.ours.backbone.count_params()
    assert subject.ours.backbone.model_config.num_parameters == count
    theirs = {id(p): p.numel() for p in subject.theirs.parameters()}
    assert sum(theirs.values()) == count + 2 * SIZES["hidden_size"]  # two rows of positions unused


# === From a bundle ===


def test_the_export(subject: Subject) -> None:
    from graphs.manifest import read_manifest
    from graphs.passes import expected_counts

    counts = expected_counts(subject.ours.backbone.model_config, "cpu")
    assert counts["fuse_layer_norm"] == subject.case.rewrites
    assert subject.summary.rewrites == {"model": counts}
    assert subject.summary.comparison.difference < 1e-4
    assert read_manifest(subject.summary.bundle).model == subject.ours.backbone.model_config


def test_bundle_logits(subject: Subject) -> None:
    """After the prompts and along the whole continuation, from the cache."""
    from runtime.bundle import load_bundle
    from runtime.probe import teacher_forced_logits
    from runtime.session import SessionDecoder

    decoder = SessionDecoder(load_bundle(subject.summary.bundle), threads=1)
    token_ids = np.array(subject.tokens)
    expected = their_logits(subject, token_ids)
    lengths = np.array(PROMPT_LENGTHS, np.int32)
    steps = LENGTH - max(PROMPT_LENGTHS)
    found = teacher_forced_logits(decoder, token_ids, lengths, steps)
    wanted = np.stack([row[n - 1 : n + steps] for row, n in zip(expected, lengths, strict=True)])
    assert found.shape == wanted.shape == (len(lengths), steps + 1, SIZES["vocab_size"])
    assert np.abs(found - wanted).max() <= TOLERANCE * expected.std()


def test_the_bundle_generates_the_same_tokens(subject: Subject) -> None:
    from runtime import Generator

    generator = Generator.from_bundle(subject.summary.bundle, device="cpu", threads=1)
    generator.compile(sampler="greedy")
    assert_says(generator, subject)
