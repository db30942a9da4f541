"""`python -m bench.gpu_section`: the process of one section of `bench.gpu`.

A card's error ends all that a process does there, so that each section has its own. Reads an `Order` as
JSON from standard input and writes a line of JSON for each step, as soon as it is known.
"""

from __future__ import annotations

import gc
import importlib
import json
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from bench.gpu_bundles import KINDS, make_bundle, open_bundle
from bench.gpu_checkpoint import write_random_checkpoint
from bench.gpu_measure import compare_logits, compare_tokens, time_decode, time_prefill, told
from bench.gpu_peers import TransformersModel
from bench.gpu_plan import BATCH, DEVIATIONS, GPU_SHAPES, Budget, Section
from bench.gpu_rates import describe_card, measure_rates
from bench.random_weights import OPT_DEVIATION
from bench.step_overhead import SessionClock, session_clock
from bench.traced_graphs import traced_in
from bench.weight_bytes import bundle_weight_bytes
from graphs.contract import CACHE_BYTES
from graphs.manifest import MANIFEST_FILE, read_manifest
from runtime.decoder import Decoder
from runtime.generator import Generator


@dataclass(frozen=True)
class Order:
    """What a section's process is to do.

    Attributes:
        section: fields of the `Section`.
        device: `"cuda"` or `"cpu"`.
        traced, work: folders of traced graphs, and of checkpoints and bundles.
        records: the file that gets the lines.
        seconds: until the process is ended.
    """

    section: dict[str, Any]
    device: str
    traced: str
    work: str
    records: str
    seconds: float


def main() -> None:
    """The process."""
    order = Order(**json.load(sys.stdin))
    section = Section(**{**order.section, "steps": tuple(order.section["steps"])})
    budget = Budget(order.seconds)
    if order.device == "cuda":
        importlib.import_module("torch")  # brings CUDA's libraries, which ONNX Runtime then finds
    with Path(order.records).open("a", encoding="utf-8") as records, session_clock() as clock:
        bench = SectionBench(section, order, clock)
        for step in section.steps:
            seconds = section.step_seconds(step)
            reason = budget.refusal(seconds)
            outcome = {"skipped": reason} if reason else _outcome(bench.steps[step])
            write_record(records, section, step, outcome)


def write_record(file: TextIO, section: Section, step: str, outcome: dict[str, Any]) -> None:
    """Appends what became of a step: `values`, an `error`, or why it was `skipped`."""
    record = {"section": section.name, "shape": section.shape, "step": step, **outcome}
    file.write(json.dumps(record) + "\n")
    file.flush()


def _outcome(step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"values": step()}
    except Exception as error:  # whatever it is belongs in the table, and the rest goes on
        traceback.print_exc()
        return {"error": told(error)}


class SectionBench:
    """The steps of a section, and what they share.

    Args:
        section: which.
        order: device and folders.
        clock: of ONNX Runtime's runs.
    """

    def __init__(self, section: Section, order: Order, clock: SessionClock) -> None:
        self._shape, self._clock, self._device = section.shape, clock, order.device
        self._folder = Path(order.work) / section.shape
        self._kinds = KINDS[order.device]
        if section.shape:
            self._config = GPU_SHAPES[section.shape]
            self._traced = traced_in(Path(order.traced), section.shape, self._config)
        self._opened: tuple[str, Generator, Decoder] | None = None
        self._reference: tuple[str, TransformersModel] | None = None
        self.steps: dict[str, Callable[[], dict[str, Any]]] = {
            "rates": self.rates,
            "parity_fp32": self.parity_fp32,
            "parity_fp16": lambda: self.parity_logits("fp16"),
            "parity_int4": lambda: self.parity_logits("int4"),
            "decode": self.decode,
            "decode_batch": self.decode_batch,
            "prefill": self.prefill,
            "decode_int4": self.decode_int4,
        }

    def rates(self) -> dict[str, Any]:
        """What the card reaches."""
        return {**asdict(measure_rates(self._device)), "versions": describe_card(self._device)}

    def parity_fp32(self) -> dict[str, Any]:
        """Greedy tokens in float32."""
        generator, _ = self._open("fp32")
        return compare_tokens(generator, self._peer("float32"))

    def parity_logits(self, precision: str) -> dict[str, Any]:
        """Logits of a precision beside transformers' in float32."""
        _, decoder = self._open(precision)
        return compare_logits(decoder, self._peer("float32"))

    def decode(self) -> dict[str, Any]:
        """Decoding one row in float16, in turns with transformers."""
        self._close_peer()
        _, decoder = self._open("fp16")
        peer = self._peer("float16")
        contestants = {"eager": peer.time_eager, "compiled": peer.time_compiled}
        found = time_decode(decoder, self._clock, peers=contestants)
        self._close_peer()
        return found | self._sizes("fp16")

    def decode_batch(self) -> dict[str, Any]:
        """Decoding many rows in float16."""
        _, decoder = self._open("fp16")
        return time_decode(decoder, self._clock, batch=BATCH) | self._sizes("fp16")

    def prefill(self) -> dict[str, Any]:
        """Reading a long prompt in float16."""
        _, decoder = self._open("fp16")
        return time_prefill(decoder)

    def decode_int4(self) -> dict[str, Any]:
        """Decoding one row with random int4 codes: searching for codes of billions takes too long."""
        _, decoder = self._open("int4", checkpoint=False)
        return time_decode(decoder, self._clock) | self._sizes("int4", checkpoint=False)

    # === What the steps share ===

    def _checkpoint(self) -> Path:
        folder = self._folder / "checkpoint"
        if not folder.exists():
            deviation = DEVIATIONS.get(self._shape, OPT_DEVIATION)
            partial = folder.with_suffix(".partial")
            write_random_checkpoint(self._config, partial, self._device, deviation)
            partial.rename(folder)
        return folder

    def _bundle(self, precision: str, checkpoint: bool) -> Path:
        """A bundle of a precision, made once for all sections of the shape."""
        folder = self._folder / (precision if checkpoint else f"{precision}-random")
        if not (folder / MANIFEST_FILE).exists():  # which is written last
            shutil.rmtree(folder, ignore_errors=True)  # what an error left
            weights = self._checkpoint() if checkpoint else None
            make_bundle(self._kinds[precision], self._config, self._traced, weights, folder)
        return folder

    def _open(self, precision: str, checkpoint: bool = True) -> tuple[Generator, Decoder]:
        """A bundle's generator and decoder; one bundle is open at a time."""
        if self._opened is None or self._opened[0] != precision:
            self._close_bundle()
            bundle = self._bundle(precision, checkpoint)
            self._opened = (precision, *open_bundle(bundle, self._kinds[precision], self._device))
        return self._opened[1:]

    def _peer(self, dtype: str) -> TransformersModel:
        """transformers' model; the one in float32 is kept for the next comparison."""
        if self._reference is None or self._reference[0] != dtype:
            self._close_peer()
            model = TransformersModel(self._checkpoint(), dtype, self._device)
            self._reference = (dtype, model)
        return self._reference[1]

    def _close_peer(self) -> None:
        if self._reference is not None:
            self._reference[1].close()
            self._reference = None

    def _close_bundle(self) -> None:
        """Gives the card's memory back before other weights are loaded."""
        self._opened = None
        gc.collect()

    def _sizes(self, precision: str, checkpoint: bool = True) -> dict[str, Any]:
        """Bytes that a decode step reads."""
        bundle = self._bundle(precision, checkpoint)
        itemsize = CACHE_BYTES[read_manifest(bundle).cache_dtype]
        return {"weight_bytes": bundle_weight_bytes(bundle), "cache_itemsize": itemsize}


if __name__ == "__main__":
    main()
