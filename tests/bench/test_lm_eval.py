"""Bundles in lm-evaluation-harness: what each kind of request gives, and its metrics beside `hf`."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the extra eval")

from lm_eval.api.instance import Instance

from bench.lm_eval import register
from bench.lm_eval_model import OptOnnxLM
from tests.runtime.toy import POSITIONS, START

TEXT = "the quick king ate in the inn"
LONG = " ".join([TEXT] * 12)


@pytest.fixture(scope="module")
def model(toy_bundle):
    return OptOnnxLM(str(toy_bundle), threads=1)


@pytest.fixture(scope="module")
def generator(model):
    return model._generator


def instances(kind, *arguments):
    return [Instance(kind, {}, values, number) for number, values in enumerate(arguments)]


def score(model, *pairs):
    return model.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)


def roll(model, *texts):
    requests = instances("loglikelihood_rolling", *[(text,) for text in texts])
    return model.loglikelihood_rolling(requests, disable_tqdm=True)


def generate(model, *pairs):
    return model.generate_until(instances("generate_until", *pairs), disable_tqdm=True)


def close(value):
    return pytest.approx(value, abs=1e-4)


# === Scoring ===


def test_continuations_are_scored_after_their_contexts(model, generator):
    pairs = [("the quick", " king ate"), ("the", " inn"), ("the quick king", " ate in the inn")]
    for (context, text), (total, _) in zip(pairs, score(model, *pairs), strict=True):
        assert total == close(generator.score(text, context).total)


def test_spaces_that_end_a_context_belong_to_the_continuation(model):
    assert score(model, ("the quick ", "king")) == score(model, ("the quick", " king"))


def test_an_empty_context_is_the_start_token(model, generator):
    assert score(model, ("", TEXT))[0][0] == close(generator.score(TEXT).total)


def test_a_start_token_that_a_text_has_is_not_put_before_it_again(model):
    ids = model.tokenizer.encode(TEXT)
    assert model.tok_encode(TEXT) == model.tok_encode(f"</s>{TEXT}") == [START, *ids]
    assert model.tok_encode(TEXT, add_special_tokens=False) == ids


def test_what_greedy_search_would_give_is_told(model, generator):
    pairs = [("the", f" {word}") for word in ("king", "inn", "ate", "quick", "the")]
    ids = [model.tok_encode("the" + text)[-1] for _, text in pairs]
    (result,) = generator.generate_results("the", max_length=len(model.tok_encode("the")) + 1)
    likeliest = model.tokenizer.decode(result.token_ids)
    assert model.tok_encode("the" + likeliest) == [*result.prompt_token_ids, *result.token_ids]
    found = score(model, *pairs, ("the", likeliest), ("the", f"{likeliest} king"))
    assert [greedy for _, greedy in found[:-1]] == [i == result.token_ids[0] for i in ids] + [True]
    assert found[-2][0] == max(total for total, _ in found)


def test_long_contexts_are_cut_from_the_left(model, generator):
    ids = [START, *model.tokenizer.encode(LONG)]
    assert len(ids) > POSITIONS + 10
    whole = [START, *model.tokenizer.encode(f"{LONG} king")]
    last = whole[len(ids) :]
    kept = ids[-(POSITIONS + 1 - len(last)) :]
    assert score(model, (LONG, " king"))[0][0] == close(generator.score(last, kept).total)


def test_texts_longer_than_the_model_are_scored_in_windows(model, generator):
    ids = model.tok_encode(LONG)
    total = generator.score(ids[:POSITIONS], [START]).total
    for start in range(POSITIONS, len(ids), POSITIONS):
        stop = min(start + POSITIONS, len(ids))
        total += generator.score(ids[start:stop], ids[stop - POSITIONS - 1 : start]).total
    found = roll(model, LONG, TEXT)
    assert found[0] == close(total)
    assert found[1] == close(generator.score([START, *model.tokenizer.encode(TEXT)], [START]).total)


# === Generating ===


def test_texts_are_continued_greedily(model, generator):
    kwargs = {"until": [], "max_gen_toks": 8}
    (expected,) = generator.generate_results(TEXT, max_length=len(model.tok_encode(TEXT)) + 8)
    assert generate(model, (TEXT, kwargs)) == [
        model.tokenizer.decode(expected.token_ids, skip_special_tokens=True)
    ]


def test_texts_end_before_the_first_stop_string(model):
    whole = generate(model, (TEXT, {"until": [], "max_gen_toks": 20}))[0]
    assert len(whole) > 8
    for stops in ([whole[4:6]], [whole[7], whole[4:6]], whole[5]):
        cuts = [whole.index(stop) for stop in ([stops] if isinstance(stops, str) else stops)]
        assert generate(model, (TEXT, {"until": stops, "max_gen_toks": 20})) == [whole[: min(cuts)]]


def test_contexts_leave_room_for_the_new_tokens(model, generator):
    kept = model.tok_encode(LONG)[-(POSITIONS - 30) :]
    prompt = {
        "token_ids": np.array([kept + [0] * 30]),
        "padding_mask": np.arange(POSITIONS)[None] < len(kept),
    }
    (expected,) = generator.generate_results(prompt)
    text = model.tokenizer.decode(expected.token_ids, skip_special_tokens=True)
    assert generate(model, (LONG, {"until": [], "max_gen_toks": 30})) == [text]


def test_draws_follow_the_harness_s_seed(model):
    request = (TEXT, {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 1.5})
    found = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        found.append(generate(model, request, request))
    assert found[0] == found[1] != found[2]
    assert found[0][0] != found[0][1]


def test_options_of_drawing_change_nothing_of_what_is_greedy(model):
    plain = {"until": [], "max_gen_toks": 10}
    asked = {**plain, "do_sample": False, "temperature": 0.7, "top_p": 0.5, "num_beams": 1}
    assert generate(model, (TEXT, plain)) == generate(model, (TEXT, asked))


# === As the harness uses it ===


def test_the_number_of_requests_at_a_time_changes_nothing(model, toy_bundle):
    pairs = [(text, end) for text in (TEXT, "the", LONG) for end in (" king", " inn", " ate in")]
    one = OptOnnxLM(str(toy_bundle), threads=1, batch_size=1)
    assert [total for total, _ in score(one, *pairs)] == close(
        [total for total, _ in score(model, *pairs)]
    )
    requests = [(text, {"until": ["i"], "max_gen_toks": n}) for text in (TEXT, "the") for n in (4, 9)]
    assert generate(one, *requests) == generate(model, *requests)


def test_answers_are_given_to_the_cache(model):
    class Hook:
        def __init__(self):
            self.found = []

        def add_partial(self, *values):
            self.found.append(values)

    model.set_cache_hook(hook := Hook())
    kwargs = {"until": ["x"], "max_gen_toks": 3}
    scored, rolled = score(model, ("the", " inn")), roll(model, TEXT)
    generated = generate(model, ("the", kwargs))
    assert hook.found == [
        ("loglikelihood", ("the", " inn"), scored[0]),
        ("loglikelihood_rolling", (TEXT,), rolled[0]),
        ("generate_until", ("the", {"until": ["x"], "max_gen_toks": 3}), generated[0]),
    ]


def test_the_harness_s_defaults_are_no_choices(toy_bundle):
    harness = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    arguments = f"bundle={toy_bundle},threads=1"
    model = OptOnnxLM.create_from_arg_string(arguments, harness)
    assert (model.batch_size, model.get_model_info()["model_device"]) == (64, "cpu")
    asked = {"batch_size": "auto:4", "max_batch_size": 8, "device": "cpu"}
    assert OptOnnxLM.create_from_arg_string(arguments, asked).batch_size == 8
    assert OptOnnxLM.create_from_arg_string(f"{arguments},batch_size=1", asked).batch_size == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "bundle is missing: --model_args bundle=FOLDER"),
        ({"bundle": "/nowhere"}, "/nowhere"),
        ({"pretrained": "x"}, "there is no model argument 'pretrained'; there are batch_size, bundle"),
        ({"batch_size": "many"}, "batch_size must be a whole number"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_length": 65}, "max_length is 65, more than the model's 64 positions"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda"),
        ({"prefix_token_id": 1000}, "token id 1000 is not in the vocabulary"),
    ],
)
def test_bad_arguments(toy_bundle, arguments, message):
    bundle = {} if not arguments else {"bundle": str(toy_bundle)}
    with pytest.raises(ValueError, match=message):
        OptOnnxLM.create_from_arg_obj({**bundle, **arguments})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_gen_toks": 64}, "max_gen_toks is 64, and must be below the 64 tokens"),
        ({"max_gen_toks": 4, "num_beams": 2}, "there is no option 'num_beams'"),
        ({"max_gen_toks": 4, "do_sample": True, "temperature": -1}, "temperature must be a number"),
    ],
)
def test_bad_generation_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        generate(model, ("the", {"until": [], **kwargs}))


def test_what_cannot_be_scored(model):
    with pytest.raises(ValueError, match="a continuation of 0 tokens after"):
        score(model, ("the", ""))
    with pytest.raises(ValueError, match="cannot be scored: it must have 1 to 64"):
        score(model, ("the", LONG))
    with pytest.raises(ValueError, match="no chat template"):
        model.chat_template(True)


# === Whole runs ===

TASKS = {
    "local_choice": """
        output_type: multiple_choice
        doc_to_text: "{{name}} is documented so:"
        doc_to_target: "{{answer}}"
        doc_to_choice: "{{choices}}"
        metric_list: [{metric: acc}, {metric: acc_norm}]
        """,
    "local_perplexity": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
        """,
    "local_generation": """
        output_type: generate_until
        doc_to_text: "{{start}}"
        doc_to_target: "{{rest}}"
        generation_kwargs: {until: [".", "\\n\\n"], max_gen_toks: 24, do_sample: false}
        metric_list: [{metric: chrf}]
        """,
}
MODULES = (
    *("argparse", "ast", "base64", "calendar", "collections", "csv", "datetime", "difflib", "email"),
    *("fractions", "functools", "glob", "heapq", "inspect", "io", "json", "locale", "os", "pathlib"),
    *("pickle", "random", "re", "shutil", "statistics", "string", "tempfile", "textwrap", "zipfile"),
)


def write_tasks(folder: Path, most: int) -> None:
    """Three tasks of documents from the docstrings of Python's own library."""
    texts, entries = [], []
    for module in map(__import__, MODULES):
        texts.append(inspect.getdoc(module) or "")
        for name, value in sorted(vars(module).items()):
            text = inspect.getdoc(value) if inspect.isfunction(value) or inspect.isclass(value) else ""
            if text and "\n\n" in text and getattr(value, "__module__", "") == module.__name__:
                entries.append((f"{module.__name__}.{name}", text))
    entries = entries[:: max(1, len(entries) // most)][:most]
    texts = [text for text in texts if text]
    lines = [text.partition("\n\n")[0] for _, text in entries]
    documents = {
        "local_choice": [
            {
                "name": name,
                "choices": [f" {lines[(place + step) % len(lines)]}" for step in (0, 3, 7, 11)],
                "answer": 0,
            }
            for place, (name, _) in enumerate(entries)
        ],
        "local_perplexity": [
            {"text": text} for text in [*texts, *(text for _, text in entries)][:most]
        ],
        "local_generation": [
            {"start": text[: len(text) // 2], "rest": text[len(text) // 2 :]} for _, text in entries
        ],
    }
    for name, rows in documents.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        body = "test_split: test\n" + textwrap.dedent(TASKS[name]).strip()
        (folder / f"{name}.yaml").write_text(head + body + "\n", encoding="utf-8")


# A run in an environment that has neither of these, whatever this one has.
WITHOUT = """\
import sys
from importlib.machinery import PathFinder

class Finder:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in ("torch", "transformers"):
            return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from bench.lm_eval import main
code = main()
assert not {"torch", "transformers"} & set(sys.modules)
raise SystemExit(code)
"""


def run_command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HF_DATASETS_OFFLINE": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "home"),
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_the_command_without_torch_and_transformers(toy_bundle, tmp_path):
    write_tasks(tmp_path, 4)
    (tmp_path / "local_generation.yaml").unlink()  # its documents are too long for 64 positions
    done = run_command(
        tmp_path,
        *("--model", "opt-onnx", "--model_args", f"bundle={toy_bundle},threads=1"),
        *("--tasks", "local_perplexity", "--include_path", str(tmp_path), "--limit", "2"),
        *("--use_cache", str(tmp_path / "cache"), "--output_path", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert "|local_perplexity|" in done.stdout
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text("utf-8"))
    assert results["config"]["model"] == "opt-onnx"
    assert results["config"]["model_dtype"] == "fp32"
    assert results["n-samples"]["local_perplexity"]["effective"] == 2
    assert (tmp_path / "cache_rank0.db").is_file()


@pytest.mark.slow
def test_the_command_s_errors_are_sentences(tmp_path):
    write_tasks(tmp_path, 2)
    done = run_command(
        tmp_path,
        *("--model", "opt-onnx", "--model_args", "bundle=nowhere"),
        *("--tasks", "local_perplexity", "--include_path", str(tmp_path)),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("lm_eval: nowhere")


def answers(results, task):
    return [[answers[0] for answers in sample["resps"]] for sample in results["samples"][task]]


@pytest.mark.slow
@pytest.mark.reference
def test_metrics_are_those_of_hf_on_the_same_weights(tmp_path, monkeypatch):
    pytest.importorskip("keras")
    pytest.importorskip("accelerate", reason="lm_eval's hf model needs it")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from exporter import OPTCausalLM, export_bundle

    export_bundle("opt_tiny_en", tmp_path / "bundle", precision="fp32", verify="none")
    OPTCausalLM.from_preset("opt_tiny_en").export_to_transformers(tmp_path / "hf")
    write_tasks(tmp_path, 60)
    register()

    def evaluate(name, arguments):
        return simple_evaluate(
            name,
            model_args=arguments,
            tasks=list(TASKS),
            device="cpu",
            batch_size=8,
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        )

    ours = evaluate("opt-onnx", {"bundle": str(tmp_path / "bundle"), "threads": 2})
    theirs = evaluate("hf", {"pretrained": str(tmp_path / "hf"), "dtype": "float32"})
    for name in TASKS:
        results = ours["results"][name]
        found = {key: value for key, value in results.items() if isinstance(value, float)}
        assert found
        assert found == pytest.approx({key: theirs["results"][name][key] for key in found}, rel=1e-4)
    texts = answers(ours, "local_generation")
    assert texts == answers(theirs, "local_generation")
    assert len({text for (text,) in texts}) > 10
    for found, expected in zip(
        answers(ours, "local_choice"), answers(theirs, "local_choice"), strict=True
    ):
        assert [float(total) for total, _ in found] == close([float(total) for total, _ in expected])
        assert [str(greedy) for _, greedy in found] == [str(greedy) for _, greedy in expected]
