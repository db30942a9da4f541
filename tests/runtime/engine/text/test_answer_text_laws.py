"""Random tokens and stop strings: texts, pieces, offsets and matches against a plain implementation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime.engine.text.answer_text import AnswerText
from runtime.engine.text.stop_strings import StopStrings, cut_at_stop
from runtime.tokenization.tokenizer import Tokenizer
from tests.fuzz.tokenizer_seeds import SPECIAL_IDS, seeds
from tests.runtime.engine.text.plain_text import first_match, held, joined_bytes, known

KINDS = ["GPT-2", "Galactica", "cl100k", "lower case", "BERT's texts"]
LETTERS = ["a", "b", "ab", "he", "hello", "the", " ", "\n", "\n\n", "###"]
WORDS = [*LETTERS, "é", "ü", "€", "😀", "👩\u200d👧", "</s>", "[x]"]


class Case(NamedTuple):
    """One sequence."""

    ids: list[int]
    stops: list[str]
    include: bool
    prompt: list[int]
    min_tokens: int


def seed_tokenizer(kind: str) -> Tokenizer:
    files = {"tokenizer.json": json.dumps(seeds()[kind])}
    return Tokenizer.from_files({**files, "special_tokens.json": json.dumps(SPECIAL_IDS)})


@pytest.fixture(scope="module", params=["opt_tiny_en", "toy", *KINDS])
def tokenizer(request: pytest.FixtureRequest, repository: Path, toy_bundle: Path) -> Tokenizer:
    folders = {
        "opt_tiny_en": repository / "exporter/presets/opt_tiny_en/assets/tokenizer",
        "toy": toy_bundle,
    }
    folder = folders.get(request.param)
    return seed_tokenizer(request.param) if folder is None else Tokenizer.from_folder(folder)


def random_case(tokenizer: Tokenizer, rng: random.Random) -> Case:
    def ids(most: int) -> list[int]:
        words = "".join(rng.choices(WORDS, k=rng.randint(0, most)))
        found = []
        for token_id in tokenizer.encode(words):
            # Some tokens as those of their bytes, so that borders lie anywhere.
            part = [token_id]
            if rng.random() < 0.4 and token_id not in tokenizer.added_token_ids:
                part = [tokenizer.token_to_id(c) for c in tokenizer.id_to_token(token_id)]
            found += part
        for _ in range(rng.choice([0, 0, 0, 1, 5])):
            found.insert(rng.randint(0, len(found)), rng.randrange(tokenizer.vocabulary_size() + 3))
        return found

    answer = ids(8)
    text = tokenizer.decode(answer, skip_special_tokens=True).replace("\ufffd", "")
    stops = []
    for _ in range(rng.randint(0, 5)):
        start = rng.randint(0, len(text))
        stop = text[start : start + rng.randint(1, 6)] + rng.choice(["", "", "", "b", "\n", "€"])
        stops.append(stop or rng.choice(WORDS))
    prompt = ids(3) if rng.random() < 0.5 else []
    if prompt and rng.random() < 0.5:  # one that ends within a character
        prompt.append(next(i for i in range(300) if tokenizer.token_bytes(i) == b"\xe2"))
    least = rng.choice([0, 0, 0, 1, 4])
    return Case(answer, stops, rng.random() < 0.5, prompt, least)


def check(tokenizer: Tokenizer, case: Case) -> bool:
    """Asserts all laws of one case; returns whether a stop string was found."""
    ids, stops, include, prompt, least = case
    compiled = StopStrings(stops, include=include)
    answer = AnswerText(tokenizer, compiled, prompt, min_tokens=least)
    before, data = joined_bytes(tokenizer, prompt), b""
    pieces, offsets, after = [answer.take()], answer.offsets[:], 0
    assert pieces[0] == known(before)
    for count, token_id in enumerate(ids, start=1):
        offsets.append(len(known(before + data)))
        answer.push(token_id)
        data += joined_bytes(tokenizer, [token_id])
        assert answer.offsets == offsets
        alone, whole = known(data), known(before + data)
        if count <= least:
            after = len(alone)
        elif match := first_match(alone, stops, after):
            end, stop = match
            start = end - len(stop)
            whole = whole[: len(whole) - (len(alone) - (end if include else start))]
            pieces.append(answer.take())
            assert answer.match is not None
            assert (answer.match.stop, answer.match.tokens) == (stop, count)
            assert answer.match.end - answer.match.start == len(stop)
            assert "".join(pieces) == answer.text == whole
            break
        assert answer.match is None
        assert answer.text == whole
        assert answer.held == held(alone, stops)
        pieces.append(answer.take())
        assert "".join(pieces) == whole[: len(whole) - answer.held]
    else:
        answer.finish()
        whole = (before + data).decode(errors="replace")
        pieces.append(answer.take())
        assert "".join(pieces) == answer.text == whole
    at_once = AnswerText(tokenizer, compiled, prompt, min_tokens=least)
    for token_id in ids:
        at_once.push(token_id)
    at_once.finish()
    assert (at_once.text, at_once.offsets) == (whole, answer.offsets)
    assert at_once.match == answer.match
    if not prompt and not least:
        cut = cut_at_stop(tokenizer.decode(ids, skip_special_tokens=True), compiled)
        assert cut == (whole, answer.match.stop if answer.match else None)
    return answer.match is not None


@pytest.mark.parametrize(
    "count", [pytest.param(150, id="few"), pytest.param(10_000, id="many", marks=pytest.mark.slow)]
)
def test_streamed_or_not_a_text_is_the_finished_one_cut_at_its_first_stop_string(
    tokenizer: Tokenizer, count: int
) -> None:
    rng = random.Random(count)
    found = sum(check(tokenizer, random_case(tokenizer, rng)) for _ in range(count))
    assert count / 5 < found < count * 4 / 5


@pytest.mark.parametrize("kind", sorted(set(seeds()) - set(KINDS)))
def test_tokenizers_whose_texts_are_not_their_tokens_bytes_are_refused(kind: str) -> None:
    """So nothing but bytes is put together here."""
    with pytest.raises(ValueError, match="is not byte-level BPE"):
        seed_tokenizer(kind)
