"""The table of `bench.gpu`: what was measured, beside what is aimed at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.gpu_plan import GPU_SHAPES
from bench.markdown import markdown_table
from bench.roofline import Rates, step_bytes, token_flops
from graphs.contract import ModelConfig

HEADER = ("section", "what", "measured", "goal", "reached")
NOTES = """\
Random weights in the published shapes, stored as float16. Parity: a ragged batch of prompts here, one
prompt at a time in transformers. Decode: greedy by the generation loop, from one token on the host to
the next, median of all steps; transformers in turns with it, on the same weights in float16.
Bandwidth: bytes of weights and cache that a step reads over its time, as a share of the measured copy.
Outside: the part of a step that is not within run_with_iobinding. Prefill: 2 x parameters x tokens
operations. The speed of int4 is measured with random codes; its logits with codes that were searched
without calibration."""

LEAST_BANDWIDTH = 0.80  # of the largest model, at batch 1
LEAST_OVER_EAGER, LEAST_OVER_COMPILED = 3.0, 1.5
MOST_LOGIT_ERROR = 0.01  # over the logits' standard deviation
LEAST_MATRIX_RATE = 0.60
LEAST_INT4_SPEED = 2.0  # over float16
MOST_OUTSIDE = 50e-6  # seconds of a step

Values = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A figure of the table.

    Attributes:
        what: was measured.
        measured: for people.
        goal: for people; empty where there is none.
        reached: whether it was; `None` where there is no goal or no figure.
    """

    what: str
    measured: str
    goal: str = ""
    reached: bool | None = None


@dataclass(frozen=True)
class Results:
    """The records of all sections, as `bench.gpu_section` writes them."""

    records: Sequence[Values]

    def values(self, step: str, shape: str) -> Values | None:
        """What a step measured of a shape; `None` if it did not."""
        found = [r for r in self.records if (r["step"], r["shape"]) == (step, shape)]
        return found[0].get("values") if found else None

    @property
    def rates(self) -> Rates | None:
        """What the card reaches; `None` if that was not measured."""
        values = self.values("rates", "")
        return Rates(values["copy_bytes"], values["matrix_flops"]) if values else None

    @property
    def largest(self) -> str:
        """The largest shape, which the goal of the bandwidth is set for."""
        shapes = {record["shape"] for record in self.records if record["shape"]}
        return max(shapes, key=lambda shape: GPU_SHAPES[shape].num_parameters, default="")


def format_table(records: Sequence[Values]) -> str:
    """All records as Markdown, with what they were measured on."""
    results = Results(records)
    rows = [
        (record["section"], line.what, line.measured.replace("|", "\\|"), line.goal, _yes(line))
        for record in records
        for line in record_lines(record, results)
    ]
    versions = (results.values("rates", "") or {}).get("versions", {})
    setting = ", ".join(f"{name} {value}" for name, value in versions.items())
    return "\n".join(
        [*markdown_table([HEADER, *rows], names=5), "", f"On: {setting or 'nothing known'}.", NOTES]
    )


def record_lines(record: Values, results: Results) -> list[Line]:
    """The figures of a step, or why there are none."""
    name = _NAMES[record["step"]]
    for outcome in ("error", "skipped"):
        if outcome in record:
            return [Line(name, f"not measured: {outcome}: {record[outcome]}")]
    return _FORMATS[record["step"]](name, record, results)


def _yes(line: Line) -> str:
    return {True: "yes", False: "no", None: ""}[line.reached]


def _at_least(what: str, value: float, least: float, text: str) -> Line:
    return Line(what, text.format(value), f"at least {text.format(least)}", value >= least)


# === Lines of each step ===


def _rates(name: str, record: Values, results: Results) -> list[Line]:
    values = record["values"]
    return [
        Line("copy bandwidth", f"{values['copy_bytes'] / 1e12:.3f} TB/s"),
        Line("float16 matrix rate", f"{values['matrix_flops'] / 1e12:.1f} TFLOP/s"),
    ]


def _tokens(name: str, record: Values, results: Results) -> list[Line]:
    found = record["values"]
    text = (
        f"{found['identical']} of {found['prompts']} prompts, {found['new_tokens']} tokens each "
        f"({found['distinct_tokens']} different ones)"
    )
    return [Line(name, text, "all", found["identical"] == found["prompts"])]


def _logits(name: str, record: Values, results: Results) -> list[Line]:
    found = record["values"]
    finite = "all finite" if found["finite"] else "NaN or infinite ones among them"
    text = f"{found['maximum']:.3%} of the deviation, mean {found['mean']:.3%}; {finite}"
    if record["step"] == "parity_int4":
        return [Line(name, text)]
    reached = found["finite"] and found["maximum"] <= MOST_LOGIT_ERROR
    return [Line(name, text, f"at most {MOST_LOGIT_ERROR:.0%}, finite", reached)]


def _decode(name: str, record: Values, results: Results) -> list[Line]:
    found = record["values"]
    seconds = found["seconds"]["median"]
    lines = [Line(name, f"{seconds * 1e3:.3f} ms a token")]
    if results.rates is not None:
        share = decode_bytes(record) / seconds / results.rates.copy_bytes
        is_largest = record["shape"] == results.largest
        line = _at_least(f"{name}, bandwidth", share, LEAST_BANDWIDTH, "{:.1%}")
        lines.append(line if is_largest else Line(line.what, line.measured))
    for peer, least in (("eager", LEAST_OVER_EAGER), ("compiled", LEAST_OVER_COMPILED)):
        what = f"{name}, beside transformers {peer}"
        if peer in found["peers"]:
            theirs = found["peers"][peer]["median"]
            text = f"{{:.2f}} times as fast ({theirs * 1e3:.3f} ms)"
            line = _at_least(what, theirs / seconds, least, text)
            lines.append(Line(what, line.measured, f"at least {least:g} times", line.reached))
        else:
            lines.append(Line(what, f"not measured: error: {found['peer_errors'][peer]}"))
    outside = found["outside_seconds"]["median"]
    text = f"{outside * 1e6:.0f} µs a step"
    goal = f"at most {MOST_OUTSIDE * 1e6:.0f} µs"
    return [*lines, Line(f"{name}, outside", text, goal, outside <= MOST_OUTSIDE)]


def _decode_batch(name: str, record: Values, results: Results) -> list[Line]:
    found, config = record["values"], _config(record)
    seconds, batch = found["seconds"]["median"], found["batch"]
    lines = [
        Line(name, f"batch {batch}: {batch / seconds:.0f} tokens/s, {seconds * 1e3:.3f} ms a step")
    ]
    if results.rates is not None:
        least = results.rates.seconds(decode_bytes(record), token_flops(config, batch))
        lines.append(Line(f"{name}, share of the roofline", f"{least / seconds:.1%}"))
    return lines


def _prefill(name: str, record: Values, results: Results) -> list[Line]:
    found = record["values"]
    seconds, tokens = found["seconds"]["median"], found["tokens"]
    lines = [Line(name, f"{tokens} tokens: {seconds * 1e3:.1f} ms")]
    if results.rates is not None:
        share = token_flops(_config(record), tokens) / seconds / results.rates.matrix_flops
        lines.append(_at_least(f"{name}, matrix rate", share, LEAST_MATRIX_RATE, "{:.1%}"))
    return lines


def _decode_int4(name: str, record: Values, results: Results) -> list[Line]:
    seconds = record["values"]["seconds"]["median"]
    lines = [Line(name, f"{seconds * 1e3:.3f} ms a token")]
    half = results.values("decode", record["shape"])
    if half is not None:
        ratio = half["seconds"]["median"] / seconds
        lines.append(_at_least(f"{name}, beside fp16", ratio, LEAST_INT4_SPEED, "{:.2f} times as fast"))
    return lines


def decode_bytes(record: Values) -> float:
    """Bytes that a decode step of a record read, halfway between its first and its last."""
    found = record["values"]
    length = found["prompt_tokens"] + found["new_tokens"] / 2
    sizes = (found["weight_bytes"], found["batch"], length, found["cache_itemsize"])
    return step_bytes(_config(record), *sizes)


def _config(record: Values) -> ModelConfig:
    return GPU_SHAPES[record["shape"]]


_Format = Callable[[str, Values, Results], list[Line]]
_FORMATS: dict[str, _Format] = {
    "rates": _rates,
    "parity_fp32": _tokens,
    "parity_fp16": _logits,
    "parity_int4": _logits,
    "decode": _decode,
    "decode_batch": _decode_batch,
    "prefill": _prefill,
    "decode_int4": _decode_int4,
}
_NAMES = {
    "rates": "rates of the card",
    "parity_fp32": "fp32, greedy tokens as transformers'",
    "parity_fp16": "fp16, largest error of logits",
    "parity_int4": "int4, largest error of logits",
    "decode": "decode fp16",
    "decode_batch": "decode fp16",
    "prefill": "prefill fp16",
    "decode_int4": "decode int4",
    "process": "the process",
}
