"""Options give the tokens that transformers' own `generate` gives with the same ones.

transformers is asked for one prompt at a time, since penalties see its padding; this project gets the
prompts alone and as one ragged batch. Nothing ends a text but the limit: where beams end, transformers
goes on with others in their place, and Keras's search, which this one is, does not.
"""

from __future__ import annotations

import numpy as np
import pytest

from runtime import GenerationOptions, Generator, samplers
from tests.conformance.test_search_parity import PROMPTS, pack
from tests.exporter.conftest import (  # noqa: F401
    hf_folder,
    hf_model,
    quick_tracing,
    toy_merges,
    toy_vocabulary,
    transformers,
)

pytestmark = pytest.mark.reference

NEW = 12
BEAMS = 4
END = 80  # which most of the greedy texts come to
# By transformers' names, which are this project's.
CASES = {
    "none": {},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "repetition_penalty below 1": {"repetition_penalty": 0.6},
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size 2": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[269], [80, 80], [10, 10, 80], [29, 29, 29]]},
    "suppress_tokens": {"suppress_tokens": [10, 29, 259, 269]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [*range(0, 250)]},
    "sequence_bias": {"sequence_bias": [[[7], 3.5], [[11, 12], -2.0], [[99], -8.0]]},
    "min_new_tokens": {"min_new_tokens": 6},
    "penalty and ngrams": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
    "five at once": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[269], [10, 10]],
        "suppress_tokens": [5, 6, 260],
        "begin_suppress_tokens": [*range(50, 120)],
    },
}


@pytest.fixture(scope="module")
def generator(hf_folder, quick_tracing, tmp_path_factory):  # noqa: F811
    """The transformers model, exported."""
    from exporter import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "hf"
    export_bundle(hf_folder, folder)
    return Generator.from_bundle(folder, device="cpu", threads=1)


def wanted(model, prompt, values, beams):
    """What transformers writes after a prompt."""
    import torch

    given = dict(values)
    if "sequence_bias" in given:
        given["sequence_bias"] = [[list(ids), bias] for ids, bias in given["sequence_bias"]]
    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW,
            num_beams=beams,
            length_penalty=0.0,  # scores are sums, as Keras's
            eos_token_id=END if "min_new_tokens" in given else None,
            pad_token_id=1,
            **given,
        )
    return found[0, len(prompt) :].tolist()


QUICK = ("bad_words_ids", "five at once")  # of the beams, which take ten times as long


def case(name, beams):
    """A parameter, which is slow with beams but for some."""
    marks = () if beams == 1 or name in QUICK else pytest.mark.slow
    return pytest.param(CASES[name], beams, marks=marks, id=f"{name}, {beams}")


@pytest.mark.parametrize(
    ("values", "beams"), [case(name, beams) for beams in (1, BEAMS) for name in CASES]
)
def test_tokens_are_those_of_transformers(generator, hf_model, values, beams):  # noqa: F811
    model = hf_model
    model.generation_config.eos_token_id = None
    ends = None
    if "min_new_tokens" in values:
        ends = [END]
        if beams > 1:  # no end at all, then
            values = {"min_new_tokens": NEW}
    generator.compile("greedy" if beams == 1 else samplers.BeamSampler(num_beams=beams))
    options = GenerationOptions(max_new_tokens=NEW, **values)
    ragged = pack(PROMPTS)
    together = generator.generate_results(ragged, stop_token_ids=ends, options=options)
    for prompt, result in zip(PROMPTS, together, strict=True):
        expected = wanted(model, prompt, values, beams)
        assert list(result.token_ids) == expected, prompt
        row = {"token_ids": np.zeros(64, int), "padding_mask": np.zeros(64, bool)}
        row["token_ids"][: len(prompt)], row["padding_mask"][: len(prompt)] = prompt, True
        (alone,) = generator.generate_results(row, stop_token_ids=ends, options=options)
        assert alone.token_ids == result.token_ids


def test_options_change_the_tokens(generator):
    """Or the cases would show nothing."""
    generator.compile("greedy")

    def tokens(values):
        options = GenerationOptions(max_new_tokens=NEW, **values)
        results = generator.generate_results(pack(PROMPTS), stop_token_ids=[END], options=options)
        return [result.token_ids for result in results]

    plain = tokens({})
    assert [name for name, values in CASES.items() if tokens(values) == plain] == ["none"]


def test_log_probabilities_are_those_of_transformers(generator, hf_model):  # noqa: F811
    """`compute_transition_scores` of greedy texts, and the log-softmax over the prompts."""
    import torch

    generator.compile("greedy")
    options = GenerationOptions(max_new_tokens=NEW, logprobs=5, prompt_logprobs=3)
    results = generator.generate_results(pack(PROMPTS), stop_token_ids=None, options=options)
    hf_model.generation_config.eos_token_id = None
    worst = 0.0
    for prompt, result in zip(PROMPTS, results, strict=True):
        with torch.no_grad():
            found = hf_model.generate(
                torch.tensor([prompt]),
                do_sample=False,
                max_new_tokens=NEW,
                output_scores=True,
                return_dict_in_generate=True,
                pad_token_id=1,
            )
            scores = hf_model.compute_transition_scores(
                found.sequences, found.scores, normalize_logits=True
            )[0]
            logs = torch.log_softmax(hf_model(torch.tensor([prompt])).logits[0], -1)
        assert list(result.token_ids) == found.sequences[0, len(prompt) :].tolist()
        own = [token.log_probability for token in result.logprobs]
        worst = max(worst, np.abs(np.array(own) - scores.numpy()).max())
        for token, row in zip(result.logprobs, found.scores, strict=True):
            best = torch.log_softmax(row[0], -1).topk(5)
            assert [one.token_id for one in token.best] == best.indices.tolist()
            values = [one.log_probability for one in token.best]
            worst = max(worst, np.abs(np.array(values) - best.values.numpy()).max())
        assert result.prompt_logprobs[0] is None
        assert len(result.prompt_logprobs) == len(prompt)
        for place, token in enumerate(result.prompt_logprobs[1:], start=1):
            assert token.token_id == prompt[place]
            worst = max(worst, abs(token.log_probability - logs[place - 1, prompt[place]].item()))
            assert [one.token_id for one in token.best] == logs[place - 1].topk(3).indices.tolist()
    assert worst < 1e-4
