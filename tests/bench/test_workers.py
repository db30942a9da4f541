"""Workers: both ends of the conversation, conversions, and this project's own worker."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bench.workers import process
from bench.workers.ctranslate2 import _tokenizer_of_ids
from bench.workers.padding import with_room
from bench.workers.process import Worker, WorkerError, convert
from bench.workers.protocol import Conversion, RefusalError
from bench.workers.systems import System, bundle_system
from graphs.versions import package_versions

EXPECTED = Path(__file__).parents[1] / "data" / "toy_expected.json"


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch):
    monkeypatch.setattr(process, "SETTLE_SECONDS", 0)


# === Generating ===


def fake(**options):
    return System("fake", "tests.bench.fake_worker", "keras", options=options)


def test_worker_answers_whatever_it_prints():
    with Worker(fake(), Path("somewhere"), 2) as worker:
        assert worker.versions == package_versions(["numpy"])
        assert worker.load_seconds >= 0
        assert worker.peak_memory_bytes > 1_000_000
        first = worker.generate(np.array([[1, 2, 3], [4, 5, 6]]), 3)
        assert first.token_ids.tolist() == [[6, 7, 8], [15, 16, 17]]
        second = worker.generate(np.array([[7]]), 1)
        assert second.token_ids.tolist() == [[7]]


def test_worker_runs_with_the_interpreter_it_is_given():
    with pytest.raises(FileNotFoundError, match="no/such/python"):
        Worker(fake(), Path("somewhere"), 1, "no/such/python")


def test_worker_that_cannot_do_it_says_so_and_lives_on():
    with Worker(fake(fault="refuse"), Path("somewhere"), 1) as worker:
        with pytest.raises(RefusalError, match="one row at a time"):
            worker.generate(np.array([[1], [2]]), 2)
        assert worker.generate(np.array([[1]]), 2).token_ids.tolist() == [[1, 2]]


def test_worker_times_the_generation_alone():
    with Worker(fake(sleep=0.05), Path("somewhere"), 1) as worker:
        assert 0.05 <= worker.generate(np.array([[1]]), 2).seconds < 5


def test_worker_that_cannot_load_tells_why():
    with pytest.raises(WorkerError) as raised:
        Worker(fake(fault="load"), Path("some/where"), 3)
    message = str(raised.value)
    assert message.startswith("fake ended with exit code 1 when loading:\n")
    assert message.endswith("OSError: cannot read some/where with 3 threads")
    assert "Traceback" in message


@pytest.mark.parametrize(
    ("fault", "beginning", "end"),
    [
        ("generate", "fake ended with exit code 1 when generating 4 tokens after 2:\n", "out of room"),
        ("quiet", "fake ended with exit code 3 when generating 4 tokens after 2:\n", "output"),
        ("kill", "fake was killed by signal 9 when generating 4 tokens after 2:\n", "output"),
        ("short", "fake gave tokens of shape (1, 3) when generating 4 tokens after 2", "for 1 rows"),
    ],
)
def test_worker_that_fails_tells_why(fault, beginning, end):
    with Worker(fake(fault=fault), Path("s"), 1) as worker, pytest.raises(WorkerError) as raised:
        worker.generate(np.array([[1, 2]]), 4)
    assert str(raised.value).startswith(beginning)
    assert str(raised.value).endswith(end)


def test_dead_worker_stays_dead():
    with Worker(fake(fault="quiet"), Path("somewhere"), 1) as worker:
        for _ in range(2):
            with pytest.raises(WorkerError, match="exit code 3"):
                worker.generate(np.array([[1]]), 1)


def test_worker_ends_with_its_input():
    with Worker(fake(), Path("somewhere"), 1) as worker:
        running = worker._process
        assert running.poll() is None
    assert running.returncode == 0


def test_worker_sees_no_gpu_and_no_hub(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.abspath("kept"), "not kept", ""]))
    environment = process.worker_environment(3)
    assert environment["CUDA_VISIBLE_DEVICES"] == "-1"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PYTHONPATH"] == os.path.abspath("kept")


def test_room_for_new_tokens():
    inputs = with_room([[5, 6], [7, 8]], 3)
    assert inputs["token_ids"].tolist() == [[5, 6, 0, 0, 0], [7, 8, 0, 0, 0]]
    assert inputs["padding_mask"].tolist() == [[1, 1, 0, 0, 0]] * 2


# === Logits ===


def test_logits_keep_their_shape_and_values():
    with Worker(fake(logits=0.1), Path("somewhere"), 1) as worker:
        assert worker.gives_logits
        logits = worker.logits(np.array([[1, 2, 3], [4, 5, 6]]), 2)
    assert logits.dtype == np.float32
    expected = np.eye(8, dtype=np.float32)[[[2, 3], [5, 6]]] * np.float32(0.1)
    np.testing.assert_array_equal(logits, expected)


def test_worker_without_logits():
    with Worker(fake(), Path("somewhere"), 1) as worker:
        assert not worker.gives_logits


def test_wrong_number_of_logits():
    message = r"fake gave logits of shape \(1, 1, 8\) when telling logits after 3 tokens"
    with (
        Worker(fake(logits=1, fault="few places"), Path("s"), 1) as worker,
        pytest.raises(WorkerError, match=message),
    ):
        worker.logits(np.array([[1, 2, 3]]), 2)


# === Converting ===


def test_conversion_in_a_process_of_its_own(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "config.json").touch()
    convert(fake(bits=4), Conversion(str(source), str(target), {"bits": 4}))
    assert (target / "converted.txt").read_text() == "['config.json'] {'bits': 4}"


def test_failing_conversion_tells_why(tmp_path):
    conversion = Conversion("some/where", str(tmp_path), {"fault": "convert"})
    with pytest.raises(WorkerError) as raised:
        convert(fake(), conversion)
    message = str(raised.value)
    assert message.startswith("fake failed to convert some/where:\nTraceback")
    assert message.endswith("OSError: cannot convert some/where")


def test_ids_are_ctranslate2_s_tokens():
    config = {"vocab_size": 4, "bos_token_id": 2, "eos_token_id": 2}
    tokenizer = _tokenizer_of_ids(config)
    assert tokenizer.get_vocab() == {"0": 0, "1": 1, "2": 2, "3": 3}
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("2", "2", "3")


# === This project's ===


def test_this_project_s_worker_generates_greedily(toy_bundle):
    case = json.loads(EXPECTED.read_text(encoding="utf-8"))["cases"][3]
    with Worker(bundle_system("fp32"), toy_bundle, 1) as worker:
        answer = worker.generate(np.array([case["prompt"]] * 2), len(case["continuation"]))
        assert answer.token_ids.tolist() == [case["continuation"]] * 2
        assert set(worker.versions) >= {"python", "onnxruntime", "numpy", "tokenizers"}


def test_this_project_s_logits_are_those_after_each_token(toy_bundle, decoder):
    tokens = np.random.default_rng(0).integers(0, 300, (2, 9))
    with Worker(bundle_system("fp32"), toy_bundle, 1) as worker:
        logits = worker.logits(tokens, 4)
        whole = worker.logits(tokens, 9)
    np.testing.assert_allclose(whole[:, 5:], logits, atol=1e-5)
    for place, length in enumerate(range(6, 10)):
        cache = decoder.new_cache(2, length)
        lengths = np.full(2, length, np.int32)
        expected = decoder.append(cache, tokens[:, :length], lengths).logits
        np.testing.assert_allclose(logits[:, place], expected, atol=1e-5)
