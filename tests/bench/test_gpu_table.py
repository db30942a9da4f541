"""The table of `bench.gpu` from figures that are easy to follow, and the arithmetic of rooflines."""

from __future__ import annotations

import pytest

from bench.gpu_plan import GPU_SHAPES
from bench.gpu_table import Line, Results, decode_bytes, format_table, record_lines
from bench.roofline import Rates, step_bytes, token_flops

CONFIG = GPU_SHAPES["opt_6.7b"]
WEIGHTS = 13_000_000_000
# Layers, keys and values, hidden, two bytes each; 128 prompt tokens and half of 64 new ones.
CACHE_BYTES = 32 * 2 * 4096 * 2 * 160
RATES = {"copy_bytes": 3e12, "matrix_flops": 600e12, "versions": {"card": "H", "torch": "2"}}


def record(step, shape="opt_6.7b", section=None, **outcome):
    return {"section": section or shape, "shape": shape, "step": step, **outcome}


def decode(seconds, batch=1, peers=None, errors=None, outside=20e-6):
    return {
        "batch": batch,
        "prompt_tokens": 128,
        "new_tokens": 64,
        "seconds": {"median": seconds},
        "outside_seconds": {"median": outside},
        "peers": {name: {"median": value} for name, value in (peers or {}).items()},
        "peer_errors": errors or {},
        "weight_bytes": WEIGHTS,
        "cache_itemsize": 2,
    }


def lines(found, *others):
    return record_lines(found, Results([record("rates", "", values=RATES), found, *others]))


def test_roofline():
    rates = Rates(copy_bytes=2e12, matrix_flops=500e12)
    assert rates.seconds(4e12, 500e12) == 2.0  # bound by bytes
    assert rates.seconds(1e12, 1500e12) == 3.0  # bound by products
    assert step_bytes(CONFIG, WEIGHTS, 1, 160, 2) == WEIGHTS + CACHE_BYTES
    assert step_bytes(CONFIG, WEIGHTS, 32, 160, 2) == WEIGHTS + 32 * CACHE_BYTES
    assert token_flops(CONFIG, 2048) == 2 * 6_658_465_792 * 2048
    assert decode_bytes(record("decode", values=decode(1.0))) == WEIGHTS + CACHE_BYTES


def test_decode_of_the_largest_shape():
    seconds = (WEIGHTS + CACHE_BYTES) / 3e12 / 0.75  # three quarters of the bandwidth
    values = decode(seconds, peers={"eager": 4 * seconds, "compiled": 1.25 * seconds}, outside=51e-6)
    found = lines(record("decode", values=values))
    assert found == [
        Line("decode fp16", "5.815 ms a token"),
        Line("decode fp16, bandwidth", "75.0%", "at least 80.0%", False),
        Line(
            "decode fp16, beside transformers eager",
            "4.00 times as fast (23.260 ms)",
            "at least 3 times",
            True,
        ),
        Line(
            "decode fp16, beside transformers compiled",
            "1.25 times as fast (7.269 ms)",
            "at least 1.5 times",
            False,
        ),
        Line("decode fp16, outside", "51 µs a step", "at most 50 µs", False),
    ]


def test_the_bandwidth_of_smaller_shapes_has_no_goal():
    small = record(
        "decode", "opt_125m", values=decode(0.01, errors={"eager": "no", "compiled": "E: x"})
    )
    found = lines(small, record("prefill", skipped="late"))
    assert found[1].what == "decode fp16, bandwidth"
    assert (found[1].goal, found[1].reached) == ("", None)
    assert found[3] == Line("decode fp16, beside transformers compiled", "not measured: error: E: x")


def test_decode_of_many_rows():
    size = WEIGHTS + 32 * CACHE_BYTES
    found = lines(record("decode_batch", values=decode(size / 3e12 * 2, batch=32)))
    seconds = size / 3e12 * 2
    assert found == [
        Line("decode fp16", f"batch 32: {32 / seconds:.0f} tokens/s, {seconds * 1e3:.3f} ms a step"),
        Line("decode fp16, share of the roofline", "50.0%"),
    ]


def test_prefill():
    seconds = token_flops(CONFIG, 2048) / 600e12 / 0.625
    values = {"tokens": 2048, "seconds": {"median": seconds}}
    assert lines(record("prefill", values=values)) == [
        Line("prefill fp16", f"2048 tokens: {seconds * 1e3:.1f} ms"),
        Line("prefill fp16, matrix rate", "62.5%", "at least 60.0%", True),
    ]


def test_int4_beside_fp16():
    half = record("decode", values=decode(0.006))
    found = record("decode_int4", section="opt_6.7b int4", values=decode(0.003))
    assert lines(found, half) == [
        Line("decode int4", "3.000 ms a token"),
        Line("decode int4, beside fp16", "2.00 times as fast", "at least 2.00 times as fast", True),
    ]
    assert lines(found, record("decode", error="E: x")) == [Line("decode int4", "3.000 ms a token")]


@pytest.mark.parametrize(
    ("maximum", "finite", "reached"), [(0.01, True, True), (0.011, True, False), (0.001, False, False)]
)
def test_logits(maximum, finite, reached):
    values = {"maximum": maximum, "mean": 0.0002, "finite": finite}
    (line,) = lines(record("parity_fp16", values=values))
    told = "all finite" if finite else "NaN or infinite ones among them"
    assert line.measured == f"{maximum:.3%} of the deviation, mean 0.020%; {told}"
    assert (line.goal, line.reached) == ("at most 1%, finite", reached)
    (int4,) = lines(record("parity_int4", values=values))
    assert (int4.measured, int4.goal, int4.reached) == (line.measured, "", None)


@pytest.mark.parametrize(("identical", "reached"), [(8, True), (7, False)])
def test_tokens(identical, reached):
    values = {"identical": identical, "prompts": 8, "new_tokens": 32, "distinct_tokens": 9}
    assert lines(record("parity_fp32", values=values)) == [
        Line(
            "fp32, greedy tokens as transformers'",
            f"{identical} of 8 prompts, 32 tokens each (9 different ones)",
            "all",
            reached,
        )
    ]


def test_the_whole_table():
    table = format_table(
        [
            record("rates", "", section="rates", values=RATES),
            record("prefill", error="RuntimeError: a|b"),
            record("process", error="exit code -11"),
            record("decode", "opt_1.3b", skipped="needs about 60 s of the 20 s left"),
        ]
    ).splitlines()
    cells = [[cell.strip() for cell in line.split(" | ")] for line in table[2:7]]
    assert [[row[0].strip("| "), *row[1:3]] for row in cells] == [
        ["rates", "copy bandwidth", "3.000 TB/s"],
        ["rates", "float16 matrix rate", "600.0 TFLOP/s"],
        ["opt_6.7b", "prefill fp16", "not measured: error: RuntimeError: a\\|b"],
        ["opt_6.7b", "the process", "not measured: error: exit code -11"],
        ["opt_1.3b", "decode fp16", "not measured: skipped: needs about 60 s of the 20 s left"],
    ]
    assert table[8] == "On: card H, torch 2."


def test_a_table_without_rates():
    found = record("decode", values=decode(0.005, errors={"eager": "a", "compiled": "b"}))
    names = [
        line.what for line in record_lines(found, Results([record("rates", "", error="x"), found]))
    ]
    assert "decode fp16, bandwidth" not in names
    assert (
        format_table([record("rates", "", error="no driver")]).splitlines()[4] == "On: nothing known."
    )
