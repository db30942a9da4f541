"""All forms of input, what each gives back, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runtime import Generator
from runtime.inputs import TextBatch, TokenBatch, is_stream_of_batches, iterate_batches, read_batch
from runtime.samplers import TopKSampler
from runtime.session import SessionDecoder
from tests.runtime.toy import CASES, END, FakeDataset, FakeTensor, ScriptedSampler

IDS = [[2, 50, 60, 0, 0], [2, 70, 0, 0, 0]]
MASK = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
KINDS = (
    r"generate\(\) takes a string, a non-empty list of strings, a dictionary of 'token_ids' and "
    r"'padding_mask', or an iterable of these; got "
)


def tokens(ids: Any = IDS, mask: Any = MASK) -> dict[str, Any]:
    return {"token_ids": np.array(ids, np.int32), "padding_mask": np.array(mask)}


# === Text ===

ONE = "Zoë"
STRINGS = [ONE, ONE.encode(), np.str_(ONE), np.array(ONE), np.array(ONE.encode())]
LISTS = [
    ["Zoë", "a"],
    ("Zoë", "a"),
    [b"Zo\xc3\xab", "a"],
    np.array(["Zoë", "a"]),
    np.array(["Zoë", "a"], object),
    np.array(["Zoë".encode(), b"a"]),
    FakeTensor(np.array(["Zoë".encode(), b"a"], object)),
    [FakeTensor("Zoë".encode()), FakeTensor(b"a")],
]


@pytest.mark.parametrize("inputs", [*STRINGS, FakeTensor(ONE.encode())])
def test_one_string(inputs: Any) -> None:
    assert read_batch(inputs) == TextBatch(["Zoë"], single=True)
    assert not is_stream_of_batches(inputs)


@pytest.mark.parametrize("inputs", LISTS)
def test_several_strings(inputs: Any) -> None:
    batch = read_batch(inputs)
    assert batch == TextBatch(["Zoë", "a"], single=False)
    assert isinstance(batch, TextBatch)
    assert {type(text) for text in batch.texts} == {str}
    assert not is_stream_of_batches(inputs)


@pytest.mark.parametrize("inputs", [[], (), np.array([]), None, 5, np.array(3), True])
def test_no_text(inputs: Any) -> None:
    with pytest.raises(ValueError, match=KINDS):
        read_batch(inputs)


@pytest.mark.parametrize("inputs", [[5], ["a", None], [["a"]], np.array([["a"]]), [tokens()]])
def test_lists_of_something_else(inputs: Any) -> None:
    with pytest.raises(ValueError, match="a prompt must be a string, got"):
        read_batch(inputs)


@pytest.mark.parametrize("inputs", ["a\ud800", ["a", "\ud800"]])
def test_half_a_surrogate_pair_is_no_text(generator: Generator, inputs: Any) -> None:
    """JSON can say it, and so can a command line that is not UTF-8."""
    with pytest.raises(ValueError, match=r"ud800|surrogate"):
        generator.generate(inputs)


def test_bytes_that_are_not_utf_8() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        read_batch(b"\xff")


# === Token dictionaries ===


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("wrap", [np.asarray, FakeTensor, list])
def test_ids_and_masks(dtype: Any, wrap: Any) -> None:
    inputs = {"token_ids": wrap(np.array(IDS)), "padding_mask": wrap(np.array(MASK).astype(dtype))}
    batch = read_batch(inputs)
    assert isinstance(batch, TokenBatch)
    assert batch.token_ids.tolist() == IDS
    assert batch.token_ids.dtype == np.int64
    assert batch.padding_mask.tolist() == [[bool(m) for m in row] for row in MASK]
    assert batch.lengths.tolist() == [3, 2]
    assert not batch.single
    assert not is_stream_of_batches(inputs)


def test_one_row() -> None:
    batch = read_batch({"token_ids": [2, 5, 0], "padding_mask": [1, 1, 0]})
    assert isinstance(batch, TokenBatch)
    assert batch.single
    assert batch.token_ids.tolist() == [[2, 5, 0]]


@pytest.mark.parametrize("name", ["token_ids", "padding_mask"])
def test_a_missing_name(name: str) -> None:
    inputs = tokens()
    del inputs[name]
    message = rf"token input needs 'token_ids' and 'padding_mask'; \['{name}'\] is missing"
    with pytest.raises(ValueError, match=message):
        read_batch(inputs)


@pytest.mark.parametrize("ids", [[[1.0, 2.0]], [["a", "b"]], [[True, False]]])
def test_ids_are_whole_numbers(ids: Any) -> None:
    with pytest.raises(ValueError, match="token_ids must be whole numbers, got dtype"):
        read_batch({"token_ids": ids, "padding_mask": [[1, 1]]})


@pytest.mark.parametrize("mask", [[[1, 2]], [[1, -1]], [[1.0, 0.0]], [["1", "0"]]])
def test_masks_are_zero_and_one(mask: Any) -> None:
    with pytest.raises(ValueError, match="padding_mask must hold 0 and 1, or false and true, only"):
        read_batch({"token_ids": [[2, 5]], "padding_mask": mask})


@pytest.mark.parametrize(
    ("ids", "mask", "shapes"),
    [
        ([[2, 5]], [1, 1], r"\(1, 2\) and \(2,\)"),
        ([[2, 5]], [[1, 1, 0]], r"\(1, 2\) and \(1, 3\)"),
        (2, 1, r"\(\) and \(\)"),
        ([[[2]]], [[[1]]], r"\(1, 1, 1\) and \(1, 1, 1\)"),
        (np.zeros((0, 4), int), np.zeros((0, 4), int), r"\(0, 4\) and \(0, 4\)"),
        (np.zeros((2, 0), int), np.zeros((2, 0), int), r"\(2, 0\) and \(2, 0\)"),
    ],
)
def test_shapes(ids: Any, mask: Any, shapes: str) -> None:
    message = rf"must have one shape, \[length\] or \[batch, length\]; got {shapes}"
    with pytest.raises(ValueError, match=message):
        read_batch({"token_ids": ids, "padding_mask": mask})


@pytest.mark.parametrize("row", [[0, 1, 1], [1, 0, 1]])
def test_padding_is_on_the_right(row: list[int]) -> None:
    with pytest.raises(ValueError, match="true on the left and false on the right of each row"):
        read_batch(tokens([[2, 2, 2], [2, 3, 4]], [[1, 1, 1], row]))


def test_rows_have_a_token() -> None:
    with pytest.raises(ValueError, match="row 1 has no token: begin a prompt with the start token"):
        read_batch(tokens([[2, 2], [2, 3]], [[1, 0], [0, 0]]))


@pytest.mark.parametrize("bad", [-1, 300, 50_000])
def test_ids_are_in_the_vocabulary(generator: Generator, bad: int) -> None:
    message = rf"token id {bad} of prompt 1 is not in the model's vocabulary \(ids 0 to 299\)"
    with pytest.raises(ValueError, match=message):
        generator.generate(tokens([[2, 5, 0], [2, bad, 0]], [[1, 1, 0], [1, 1, 0]]))


def test_ids_under_padding_may_be_anything(generator: Generator) -> None:
    generator.compile("greedy")
    found = generator.generate(tokens([[2, 5, 1_000_000]], [[1, 1, 0]]), stop_token_ids=None)
    assert found["token_ids"][0, 2] < 300


# === What token dictionaries give ===


def test_a_dictionary_gives_a_dictionary(generator: Generator) -> None:
    generator.compile(ScriptedSampler([70, 71, 72]))
    inputs = tokens()
    found = generator.generate(inputs, stop_token_ids=None)
    assert sorted(found) == ["padding_mask", "token_ids"]
    assert found["token_ids"].tolist() == [[2, 50, 60, 70, 71], [2, 70, 70, 71, 72]]
    assert found["token_ids"].dtype == np.int32
    assert found["padding_mask"].tolist() == [[True] * 5] * 2
    assert found["padding_mask"].dtype == np.bool_
    assert inputs["token_ids"].tolist() == IDS
    assert inputs["padding_mask"].tolist() == MASK


def test_one_row_gives_one_row(generator: Generator) -> None:
    generator.compile(ScriptedSampler([70, 71, 72]))
    found = generator.generate(
        {"token_ids": [2, 50, 0, 0], "padding_mask": [1, 1, 0, 0]}, stop_token_ids=None
    )
    assert found["token_ids"].tolist() == [2, 50, 70, 71]
    assert found["padding_mask"].tolist() == [True] * 4


def test_the_mask_ends_with_the_stop_token(generator: Generator) -> None:
    generator.compile(ScriptedSampler([70, END]))
    inputs = tokens([[2, 50, 9, 9, 8, 8]], [[1, 1, 0, 0, 0, 0]])
    found = generator.generate(inputs)
    assert found["token_ids"].tolist() == [[2, 50, 70, END, 8, 8]]
    assert found["padding_mask"].tolist() == [[True, True, True, True, False, False]]


def test_strip_prompt_moves_what_is_new_to_the_left(generator: Generator) -> None:
    generator.compile(ScriptedSampler([70, 71, END]))
    found = generator.generate(tokens(), strip_prompt=True)
    assert found["token_ids"][:, :3].tolist() == [[70, 71, 60], [70, 71, END]]
    assert found["padding_mask"].sum(axis=1).tolist() == [2, 3]
    assert found["padding_mask"][:, :2].all()


def test_max_length_is_that_of_the_arrays(generator: Generator) -> None:
    generator.compile("greedy")
    found = generator.generate(tokens(), max_length=64, stop_token_ids=None)
    assert found["token_ids"].shape == (2, 5)
    with pytest.raises(ValueError, match="the length of token_ids is 65, more than the model's 64"):
        generator.generate({"token_ids": [2] * 65, "padding_mask": [1] + [0] * 64})


def test_full_rows_come_back_as_they_are(generator: Generator) -> None:
    generator.compile(ScriptedSampler([]))
    found = generator.generate(tokens([[2, 50], [2, 60]], [[1, 1], [1, 1]]))
    assert found["token_ids"].tolist() == [[2, 50], [2, 60]]


def test_text_and_its_tokens_give_the_same(generator: Generator) -> None:
    generator.compile(TopKSampler(seed=5))
    rows = [case["prompt"] for case in CASES[:5]]
    ids, mask = np.zeros((5, 48), np.int32), np.zeros((5, 48), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    found = generator.generate({"token_ids": ids, "padding_mask": mask}, stop_token_ids=None)
    results = generator.generate_results([case["text"] for case in CASES[:5]], stop_token_ids=None)
    for row, result in zip(found["token_ids"], results, strict=True):
        assert row.tolist() == [*result.prompt_token_ids, *result.token_ids]


def test_results_of_a_dictionary(generator: Generator) -> None:
    generator.compile(ScriptedSampler([70, 71, 72]))
    first, second = generator.generate_results(tokens(), max_length=3, stop_token_ids=None)
    assert (first.prompt_token_ids, first.token_ids) == ((2, 50, 60), (70, 71))
    assert (second.prompt_token_ids, second.token_ids) == ((2, 70), (70, 71, 72))
    assert first.text == generator.tokenizer.decode([50, 60, 70, 71])


# === Without a tokenizer ===


def test_without_a_tokenizer_there_are_tokens_only(decoder: SessionDecoder) -> None:
    bare = Generator(decoder, None, sampler="greedy")
    assert bare.max_length == 64
    found = bare.generate(tokens(), stop_token_ids=None)
    assert found["token_ids"].shape == (2, 5)
    assert [result.text for result in bare.generate_results(tokens(), stop_token_ids=(7,))] == [
        None
    ] * 2
    with pytest.raises(
        ValueError, match=r"text needs a tokenizer and this model has none; give a dict"
    ):
        bare.generate("text")
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        bare.stream("text")
    with pytest.raises(ValueError, match="stop_token_ids='auto' takes the tokenizer's end token, and"):
        bare.generate(tokens())


# === Iterables of batches ===


def texts() -> Iterator[Any]:
    yield ["the", "a"]
    yield "quick"
    yield np.array([b"t"])


def test_what_is_a_stream_of_batches() -> None:
    for inputs in (texts(), iter([]), {"a"}, FakeDataset([]), map(str, [1]), range(2)):
        assert is_stream_of_batches(inputs)
    for inputs in (None, 5, object()):
        assert not is_stream_of_batches(inputs)


def test_batches_of_an_iterable() -> None:
    assert list(iterate_batches(texts())) == [
        TextBatch(["the", "a"], single=False),
        TextBatch(["quick"], single=False),
        TextBatch(["t"], single=False),
    ]


@pytest.mark.parametrize("wrap", [iter, FakeDataset], ids=["iterator", "dataset"])
def test_results_of_text_batches_are_joined(generator: Generator, wrap: Any) -> None:
    generator.compile("greedy")
    found = generator.generate(wrap(list(texts())), max_length=20)
    assert found == generator.generate(["the", "a", "quick", "t"], max_length=20)
    results = generator.generate_results(wrap(list(texts())), max_length=20)
    assert [result.text for result in results] == found


@pytest.mark.parametrize("wrap", [iter, FakeDataset], ids=["iterator", "dataset"])
def test_results_of_token_batches_are_joined(generator: Generator, wrap: Any) -> None:
    generator.compile("greedy")
    single = {"token_ids": [2, 9, 0, 0, 0], "padding_mask": [1, 1, 0, 0, 0]}
    found = generator.generate(wrap([tokens(), single]), stop_token_ids=None)
    assert found["token_ids"].shape == found["padding_mask"].shape == (3, 5)
    whole = generator.generate(tokens(), stop_token_ids=None)
    alone = generator.generate(single, stop_token_ids=None)
    assert found["token_ids"].tolist() == [*whole["token_ids"].tolist(), alone["token_ids"].tolist()]


@pytest.mark.parametrize(
    "make",
    [iter, lambda ids: (i for i in ids), set, np.array],
    ids=["iterator", "generator", "set", "array"],
)
def test_stop_tokens_are_read_once_for_all_batches(generator: Generator, make: Any) -> None:
    generator.compile("greedy")
    batches = [["the", "a"], ["quick"], ["t"]]
    (first,) = generator.generate_results("quick", max_length=20, stop_token_ids=None)
    stops = list(first.token_ids[2:3])
    wanted = generator.generate(iter(batches), max_length=20, stop_token_ids=stops)
    assert generator.generate(iter(batches), max_length=20, stop_token_ids=make(stops)) == wanted
    results = generator.generate_results(iter(batches), max_length=20, stop_token_ids=make(stops))
    assert [result.text for result in results] == wanted
    assert results[2].finish_reason == "stop"
    assert results[2].generated_tokens <= 3


def test_endless_stop_tokens_end_at_the_first_that_is_none(generator: Generator) -> None:
    with pytest.raises(ValueError, match=r"stop_token_ids must be ids from 0 to 299, got 300"):
        generator.generate("a", stop_token_ids=itertools.count())


LONG_VALUES: list[Any] = [
    "x" * 10**6,
    [0.5] * 10**6,
    b"x" * 10**6,
    np.zeros((2, 10**6)),
    {"x": [1] * 10**6},
]


@pytest.mark.parametrize("value", LONG_VALUES, ids=lambda value: type(value).__name__)
def test_errors_do_not_repeat_megabytes(generator: Generator, value: Any) -> None:
    calls: list[Any] = [
        lambda: generator.generate([value, 5]),
        lambda: generator.stream([value]),
        lambda: generator.generate("a", max_length=value),
        lambda: generator.generate("a", stop_token_ids=[value]),
        lambda: generator.generate("a", timeout=value),
        lambda: generator.generate("a", cancel=value),
        lambda: generator.compile([value]),
        lambda: generator.compile({"class_name": value}),
        lambda: generator.compile({"class_name": "top_k", "config": {"k": value}}),
        lambda: generator.compile({"class_name": "top_k", "config": {"x" * 10**6: value}}),
        lambda: generator.generate({"token_ids": [[value]], "padding_mask": [[1]]}),
    ]
    for call in calls:
        with pytest.raises(ValueError) as raised:  # noqa: PT011 (of any kind)
            call()
        assert len(str(raised.value)) < 1000


def test_no_batches(generator: Generator) -> None:
    assert generator.generate(iter([])) == []
    assert generator.generate_results(iter([])) == []


def test_batches_are_read_one_at_a_time(generator: Generator) -> None:
    """An error in the second batch comes after the first was generated."""
    sampler = ScriptedSampler([50, 60])
    generator.compile(sampler)
    with pytest.raises(ValueError, match="a prompt must be a string, got 5"):
        generator.generate(iter([["t"], [5]]), max_length=3, stop_token_ids=None)
    assert sampler.rows_seen == [1]
