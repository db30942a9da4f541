"""keras-hub's test cases for its samplers, against `runtime.samplers`.

`docs/keras_hub_cases.md` lists them; its table names the tests here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from runtime import samplers
from tests.conformance.letters import (
    LENGTH,
    SIZE,
    LetterDecoder,
    WordDecoder,
    certain_of,
    falling,
    ids_of,
    run,
    word,
)

# With the parameters of keras-hub's cases.
SAMPLERS = {
    "greedy": samplers.GreedySampler(temperature=1.0),
    "random": samplers.RandomSampler(temperature=1.0),
    "top_k": samplers.TopKSampler(k=5, temperature=1.0),
    "top_p": samplers.TopPSampler(p=0.1),
    "beam": samplers.BeamSampler(num_beams=5, temperature=1.0),
    "contrastive": samplers.ContrastiveSampler(k=5, alpha=0.2, temperature=1.0),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


# === Every sampler ===


@every_sampler
def test_a_prompt_stays_and_the_certain_token_follows(sampler: samplers.Sampler) -> None:
    assert word(sampler, certain_of("a"), given="zzzzz") == "zzzzzaaaaaaa"


@every_sampler
def test_the_logits_of_each_place_are_followed(sampler: samplers.Sampler) -> None:
    assert word(sampler, WordDecoder(), given="s") == "sequentially"


@every_sampler
def test_a_row_ends_with_its_stop_token(sampler: samplers.Sampler) -> None:
    found = run(sampler, WordDecoder(), given="s", stop="t")
    assert word(sampler, WordDecoder(), given="s", stop="t") == "sequentzzzzz"
    assert found["padding_mask"][0].tolist() == [True] * 7 + [False] * 5


@every_sampler
def test_of_several_stop_tokens_the_first_to_come_ends_the_row(sampler: samplers.Sampler) -> None:
    assert word(sampler, WordDecoder(), given="s", stop="tn") == "sequenzzzzzz"


# === Which tokens can be drawn ===


def letters_drawn(sampler: samplers.Sampler, decoder: LetterDecoder) -> set[str]:
    return set(word(sampler, decoder, given="z")[1:])


def test_greedy_takes_the_likeliest_token_every_time() -> None:
    assert letters_drawn(samplers.GreedySampler(temperature=1.0), falling()) == {"a"}


@pytest.mark.parametrize("seed", range(20))
def test_top_k_draws_among_the_k_likeliest_tokens(seed: int) -> None:
    assert letters_drawn(samplers.TopKSampler(k=5, seed=seed), falling()) <= set("abcde")


def test_top_k_draws_others_than_the_likeliest() -> None:
    flat = LetterDecoder(np.where(np.arange(SIZE) < 5, 1.0, 0.9))
    drawn = [letters_drawn(samplers.TopKSampler(k=5, seed=seed), flat) for seed in range(20)]
    assert set.union(*drawn) == set("abcde")


def test_contrastive_search_chooses_among_the_k_likeliest_tokens() -> None:
    sampler = samplers.ContrastiveSampler(k=5, alpha=0.2)
    assert letters_drawn(sampler, falling()) <= set("abcde")


@pytest.mark.parametrize("seed", range(20))
def test_top_p_with_k_draws_among_the_k_likeliest_tokens(seed: int) -> None:
    assert letters_drawn(samplers.TopPSampler(p=1, k=5, seed=seed), falling()) <= set("abcde")


@pytest.mark.parametrize("seed", range(20))
def test_top_p_draws_among_the_tokens_that_make_up_p(seed: int) -> None:
    three_likeliest = LetterDecoder(np.where(np.arange(SIZE) < 3, 1.0, 0.0))
    drawn = letters_drawn(samplers.TopPSampler(p=2 / SIZE, seed=seed), three_likeliest)
    # Each of the three has 0.087, more than 2 / 26: the first alone exceeds p.
    assert drawn == {"a"}


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.RandomSampler(temperature=1e-5),
        samplers.TopPSampler(p=0.5, temperature=1e-9),
        samplers.TopKSampler(k=5, temperature=1e-5),
    ],
    ids=["random", "top_p", "top_k"],
)
def test_a_temperature_near_zero_leaves_the_likeliest_token(sampler: samplers.Sampler) -> None:
    assert letters_drawn(sampler, falling()) == {"a"}


# === Beams ===


def test_all_beams_come_best_first_with_their_scores() -> None:
    sampler = samplers.BeamSampler(num_beams=5, return_all_beams=True)
    found = run(sampler, WordDecoder(), given="s")
    assert found["token_ids"].shape == (1, 5, LENGTH)
    assert found["padding_mask"].shape == (1, 5, LENGTH)
    scores = found["scores"]
    assert scores.shape == (1, 5)
    assert scores.dtype == np.float32
    assert (np.diff(scores[0]) <= 0).all()
    assert found["token_ids"][0, 0].tolist() == ids_of("sequentially")
    assert scores[0, 0] == 0  # the word is certain


# === Contrastive search's penalty ===


class HeavyLetterDecoder(LetterDecoder):
    """Certain of one letter, whose hidden state is that of the prompt; all others have their own."""

    def __init__(self, letter: str) -> None:
        super().__init__(certain_of(letter).logits(()))
        self._letter = ids_of(letter)[0]

    def state(self, tokens: Sequence[int]) -> np.ndarray:
        if tokens[-1] == self._letter or len(tokens) <= 5:
            return np.ones(self.hidden, np.float32)
        return np.random.default_rng(len(tokens)).random(self.hidden).astype(np.float32)


@pytest.mark.parametrize(("alpha", "has_letter"), [(0.2, True), (1.0, False)])
def test_alpha_weighs_the_penalty(alpha: float, has_letter: bool) -> None:
    sampler = samplers.ContrastiveSampler(k=5, alpha=alpha)
    found = word(sampler, HeavyLetterDecoder("h"), given="zzzzz")
    assert found[:5] == "zzzzz"
    assert found[5:] == "hhhhhhh" if has_letter else "h" not in found


# === Names and configurations ===


def test_a_sampler_goes_through_its_configuration() -> None:
    sampler = samplers.TopKSampler(k=5)
    description = json.loads(json.dumps(samplers.serialize(sampler)))
    again = samplers.deserialize(description)
    assert type(again) is samplers.TopKSampler
    assert again.get_config() == sampler.get_config() == {"k": 5, "seed": None, "temperature": 1.0}


@pytest.mark.parametrize(
    ("identifier", "config"),
    [
        ("top_k", {"k": 5, "seed": None, "temperature": 1.0}),
        (samplers.serialize(samplers.TopKSampler(k=7)), {"k": 7, "seed": None, "temperature": 1.0}),
    ],
    ids=["name", "description"],
)
def test_get_makes_a_sampler(identifier: Any, config: dict[str, Any]) -> None:
    found = samplers.get(identifier)
    assert type(found) is samplers.TopKSampler
    assert found.get_config() == config


def test_get_gives_back_a_sampler_itself() -> None:
    sampler = samplers.TopKSampler(k=7)
    assert samplers.get(sampler) is sampler
