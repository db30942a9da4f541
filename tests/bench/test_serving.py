"""Closed loops, their figures, and the commands that measure serving in process."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from bench import stalls
from bench.serving import Served, main
from bench.workers.closed_loop import closed_loop, static_batches


@dataclass
class Counting:
    """Serves requests one token a step each, and sees how many there are at a time."""

    running: list[Any] = field(default_factory=list)
    most: int = 0

    def start(self, prompt: list[int], count: int) -> Any:
        request = Request(prompt, count)
        self.running.append(request)
        return request

    def step(self) -> None:
        self.most = max(self.most, len(self.running))
        for request in self.running:
            request.ids.append(request.prompt[0] + len(request.ids))
        self.running = [r for r in self.running if len(r.ids) < r.count]


@dataclass
class Request:
    """One of them."""

    prompt: list[int]
    count: int
    ids: list[int] = field(default_factory=list)

    def token_ids(self) -> list[int]:
        return self.ids


@pytest.mark.parametrize("in_flight", [1, 3, 9])
def test_so_many_requests_run_at_a_time(in_flight: int) -> None:
    system = Counting()
    found = closed_loop([[10 * i] for i in range(7)], 4, in_flight, system.start, system.step)
    assert system.most == min(in_flight, 7)
    assert [request["token_ids"] for request in found] == [
        [10 * i + j for j in range(4)] for i in range(7)
    ]
    for request in found:
        assert len(request["times"]) == 4
        assert request["times"] == sorted(request["times"])
        assert request["start"] <= request["times"][0]


def test_static_batches_show_their_end_only() -> None:
    sizes = []

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        sizes.append(len(prompts))
        return [[prompt[0]] * count for prompt in prompts]

    found = static_batches([[i] for i in range(5)], 3, 2, generate)
    assert sizes == [2, 2, 1]
    assert [request["token_ids"] for request in found] == [[i] * 3 for i in range(5)]
    assert all(len(set(request["times"])) == 1 for request in found)
    assert found[0]["times"] == found[1]["times"] < found[2]["times"]


def test_figures_of_a_trial() -> None:
    requests = [{"start": 1.0, "times": [2.0, 2.5, 3.0]}, {"start": 1.5, "times": [2.0, 4.0, 5.0]}]
    served = Served.of(requests)
    assert served.tokens_per_second == 6 / 4
    assert served.first_token_seconds == [1.0, 0.5]
    assert served.between_seconds == [0.5, 0.5, 2.0, 1.0]


@pytest.mark.slow
def test_the_command(toy_bundle: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompt-tokens", "20", "--shared-tokens", "8", "--new-tokens", "4", "--rounds", "1"]
    options = [*sizes, "--in-flight", "1,2", "--trials", "1", "--threads", "1"]
    path = tmp_path / "figures.json"
    assert main(["--in-process", "--bundle", str(toy_bundle), *options, "--json", str(path)]) == 0
    table = capsys.readouterr().out
    for name in ("opt-onnx-fp32", "opt-onnx-fp32 static", "opt-onnx-fp32 without prefixes"):
        assert f" {name} " in table
    values = json.loads(path.read_text())["in_flight"]
    assert {len(trials) for row in values.values() for trials in row.values()} == {1}
    assert list(values) == ["1", "2"]
    versions = json.loads(path.read_text())["versions"]
    assert "onnxruntime" in " ".join(versions["opt-onnx-fp32 static"])
    assert "- opt-onnx-fp32: " in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--in-flight", "0"], "--in-flight"),
        (["--prompt-tokens", "62"], "more than the model's"),
        (["--systems", "transformers"], "transformers cannot serve here"),
        (["--systems", "openvino-int8"], "--systems needs --checkpoint"),
    ],
)
def test_bad_options(
    toy_bundle: Any, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    sizes = ["--prompt-tokens", "12", "--new-tokens", "4"]
    assert main(["--in-process", "--bundle", str(toy_bundle), *sizes, *options]) == 2
    assert message in capsys.readouterr().err


# === Stalls ===


def test_the_command_for_stalls(toy_bundle: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--streams", "2", "--prompt-tokens", "5", "--new-tokens", "30", "--arriving-tokens", "40"]
    assert stalls.main([str(toy_bundle), *sizes, "--every", "0.002", "--json", "-"]) == 0
    gaps = json.loads(capsys.readouterr().out)["between_seconds"]
    assert list(gaps) == ["none", "every 0.002 s"]
    assert [len(seconds) for seconds in gaps.values()] == [2 * 28] * 2
    assert stalls.main([str(toy_bundle), *sizes, "--every", "0.002"]) == 0
    assert "x at 99 %" in capsys.readouterr().out
