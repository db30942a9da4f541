"""What may be asked of a text, and what is refused before anything is generated."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from runtime import GenerationOptions
from runtime.generation_options import read_options

REFUSED = {
    "min_new_tokens=5 must be at most max_new_tokens=3": {"min_new_tokens": 5, "max_new_tokens": 3},
    "best_of=2 must be at least n=3": {"n": 3, "best_of": 2},
    "regex and choice are two structures": {"regex": "a+", "choice": ["a"]},
    "json_schema and json_object are two": {"json_schema": {}, "json_object": True},
    "strings in stop must have 1 to 256 characters, got ''": {"stop": ["a", ""]},
    "choice must be strings that are not empty": {"choice": [""]},
    "regex must be a text that is not empty": {"regex": ""},
    "bad_words_ids must be lists of token ids that are not empty": {"bad_words_ids": [[]]},
    "bad_words_ids must be a list of lists of token ids, got 'word'": {"bad_words_ids": "word"},
    "bad_words_ids must be token ids, whole numbers from 0 on; got 'w'": {"bad_words_ids": [["w"]]},
    "logit_bias[4] must be a number of at least -100 and at most 100, got nan": {
        "logit_bias": {4: float("nan")}
    },
    "logit_bias[4] must be a number of at least -100 and at most 100, got 101": {
        "logit_bias": {4: 101}
    },
    "logit_bias must be a mapping": {"logit_bias": [1, 2]},
    "sequence_bias must have finite numbers": {"sequence_bias": {(1, 2): float("inf")}},
    "stop_token_ids must be token ids, whole numbers from 0 on; got -1": {"stop_token_ids": [-1]},
    "suppress_tokens must be a list of token ids, got None": {"suppress_tokens": None},
    "temperature must be a number of at least 0": {"temperature": -0.1},
    "temperature must be a number of at least 0, got inf": {"temperature": float("inf")},
    "top_p must be a number above 0 and at most 1, got 0": {"top_p": 0},
    "min_p must be a number of at least 0 and at most 1, got 2": {"min_p": 2},
    "epsilon_cutoff must be a number of at least 0 and below 1, got 1": {"epsilon_cutoff": 1},
    "top_k must be a whole number from -1 on, got -2": {"top_k": -2},
    "repetition_penalty must be a number above 0, got 0": {"repetition_penalty": 0},
    "presence_penalty must be a number of at least -2 and at most 2, got 3": {"presence_penalty": 3},
    "n must be a whole number from 1 to 128, got 0": {"n": 0},
    "n must be a whole number from 1 to 128, got True": {"n": True},
    "logprobs must be a whole number from 0 to 1000, got -1": {"logprobs": -1},
    "suppress_tokens must be a list of token ids, got array(3)": {"suppress_tokens": np.array(3)},
    "stop must be a string or a list of strings, got array(3)": {"stop": np.array(3)},
    "ignore_eos must be true or false, got 'yes'": {"ignore_eos": "yes"},
    "processors must be functions": {"processors": [3]},
    "max_new_tokens must be a whole number from 0 on, got 1.5": {"max_new_tokens": 1.5},
    "json_schema must be a JSON Schema as a mapping or as text, got 3": {"json_schema": 3},
}


@pytest.mark.parametrize(("words", "values"), REFUSED.items())
def test_what_is_refused_is_told_with_its_field_and_value(words: str, values: dict) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        GenerationOptions(**values)
    assert "\n" not in str(error.value)


def test_values_are_brought_to_one_form() -> None:
    given = GenerationOptions(
        stop="\n",
        stop_token_ids=np.array([4, 5]),
        temperature=np.float32(0.5),
        top_k=-1,
        bad_words_ids=[[1, 2], (3,)],
        sequence_bias={(1, 2): 3},
        logit_bias={"7": 1},
        processors=len,
    )
    assert given.stop == ("\n",)
    assert given.stop_token_ids == (4, 5)
    assert given.sampling == {"temperature": 0.5}
    assert given.bad_words_ids == ((1, 2), (3,))
    assert given.sequence_bias == (((1, 2), 3.0),)
    assert given.logit_bias == {7: 1.0}
    assert given.processors == (len,)


def test_options_survive_json() -> None:
    given = GenerationOptions(
        max_new_tokens=0,
        stop=["é", "\n"],
        sequence_bias={(1, 2): 3},
        logit_bias={7: -100},
        json_schema={"type": "object"},
        seed=0,
    )
    values = json.loads(json.dumps(given.to_dict()))
    assert set(values) == {
        "max_new_tokens", "stop", "sequence_bias", "logit_bias", "json_schema", "seed",
    }  # fmt: skip
    assert GenerationOptions.from_dict(values) == given
    assert GenerationOptions().to_dict() == {}


def test_null_leaves_an_option_as_it_is() -> None:
    assert GenerationOptions.from_dict({"stop": None, "n": None, "top_p": None}) == GenerationOptions()


def test_unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match="no option 'max_tokens'; there are allowed_token_ids"):
        GenerationOptions.from_dict({"max_tokens": 3})
    with pytest.raises(ValueError, match="no option 'processors'"):
        GenerationOptions.from_dict({"processors": []})
    with pytest.raises(ValueError, match="must be a mapping"):
        GenerationOptions.from_dict([1])  # type: ignore[arg-type]


def test_a_structure_goes_before_another_kind_of_the_base() -> None:
    base = GenerationOptions(regex="a+", seed=1)
    assert GenerationOptions(choice=["b"]).after(base) == GenerationOptions(choice=["b"], seed=1)
    assert GenerationOptions(n=2).after(base) == GenerationOptions(n=2, regex="a+", seed=1)


def test_limits_of_the_base_give_way() -> None:
    base = GenerationOptions(min_new_tokens=3, max_new_tokens=9, n=2, best_of=4)
    for own, wanted in (
        ({"max_new_tokens": 1}, {"min_new_tokens": 1, "max_new_tokens": 1, "n": 2, "best_of": 4}),
        ({"min_new_tokens": 12}, {"min_new_tokens": 12, "max_new_tokens": 12, "n": 2, "best_of": 4}),
        ({"n": 6}, {"min_new_tokens": 3, "max_new_tokens": 9, "n": 6, "best_of": 6}),
        ({"best_of": 1}, {"min_new_tokens": 3, "max_new_tokens": 9, "n": 1, "best_of": 1}),
    ):
        assert GenerationOptions(**own).after(base) == GenerationOptions(**wanted)


def test_functions_have_no_json() -> None:
    with pytest.raises(ValueError, match="processors are functions"):
        GenerationOptions(processors=[len]).to_dict()


def test_one_set_for_all_prompts_or_one_for_each() -> None:
    one, other = GenerationOptions(n=2), GenerationOptions(seed=1)
    assert read_options(one, 2) == [one, one]
    assert read_options([one, other], 2) == [one, other]
    assert read_options(None, 1) == [GenerationOptions()]
    with pytest.raises(ValueError, match="or 3, one for each; got 2"):
        read_options([one, other], 3)
    with pytest.raises(ValueError, match=r"must be GenerationOptions.*got \{'n': 2\}"):
        read_options({"n": 2}, 1)
