"""Trains a preset here and in keras-hub on the same batches: `python -m bench.training`.

Both begin with the preset's weights, without dropout, and take the same batches of packed text in the
same order by Adam. Each runs in a process of its own, and they train in short turns, so that a slow
minute of the machine hits both. Prints how far the losses are apart and how many steps a second each
made; the first turn, which traces, is not timed.
"""

from __future__ import annotations

import argparse
import importlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.command import check_counts, print_progress, write_json
from bench.keras_process import KerasProcess
from bench.measure import Spread
from bench.system import describe_hardware
from graphs.versions import package_versions
from runtime.command import CommandParser
from runtime.system.output_file import check_output

SYSTEMS = {"opt-onnx": "exporter", "keras-hub": "keras_hub.models"}  # where the models are
COMPARED_STEPS = 20
LEARNING_RATE = 3e-4
PACKAGES = ("opt-onnx", "keras", "keras-hub", "tensorflow", "numpy")


@dataclass(frozen=True)
class Turn:
    """Some steps of one system: the loss of each, and seconds for all."""

    losses: list[float]
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """What a run found.

    Attributes:
        steps, rows, length: steps, rows of a batch and tokens of a row.
        first_loss, last_loss: of this project.
        first_difference: greatest absolute loss difference in the first `COMPARED_STEPS` steps.
        difference: the same in all steps.
        steps_per_second: of each system, over its turns.
        ratio: this project's steps per second over keras-hub's, median of the turns.
    """

    steps: int
    rows: int
    length: int
    first_loss: float
    last_loss: float
    first_difference: float
    difference: float
    steps_per_second: dict[str, Spread]
    ratio: float


def load(system: str, preset: str, token_ids: Any, labels: Any, rows: int) -> Callable[..., Turn]:
    """A model in its own process, and the handler that trains it on a run of batches."""
    import keras

    models: Any = importlib.import_module(SYSTEMS[system])
    model = models.OPTCausalLM(models.OPTBackbone.from_preset(preset, dropout=0.0), preprocessor=None)
    model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE))

    def train(first: int, steps: int) -> Turn:
        import tensorflow as tf

        chosen = slice(first * rows, (first + steps) * rows)
        x = {"token_ids": token_ids[chosen], "padding_mask": np.ones_like(token_ids[chosen])}
        data = tf.data.Dataset.from_tensor_slices((x, labels[chosen])).batch(rows)
        record = _step_record()
        model.fit(data, shuffle=False, verbose=0, callbacks=[record])
        return Turn(record.losses, record.seconds)

    return train


def _step_record() -> Any:
    """A Keras callback that notes each step's loss and the seconds of all."""
    import keras

    class StepRecord(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []
            self.started: float | None = None
            self.seconds = 0.0

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.reset_metrics()  # else the loss is the mean since the turn began
            self.started = self.started or time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.losses.append(float(logs["loss"]))
            self.seconds = time.perf_counter() - (self.started or 0.0)

    return StepRecord()


def packed_text(preset: str, length: int) -> tuple[Any, Any]:
    """Token ids and labels of the training documents, int32 [rows, length], in a shuffled order."""
    from exporter.presets.corpus import split_documents
    from exporter.presets.folder import read_preset
    from exporter.presets.text_rows import pack_rows
    from runtime.tokenization.tokenizer import Tokenizer

    folder = read_preset(Path(preset))
    if folder.tokenizer_files is None:
        raise ValueError(f"{preset} has no tokenizer; give a preset that has one")
    tokenizer = Tokenizer.from_files(folder.tokenizer_files)
    token_ids, labels = pack_rows(tokenizer, split_documents()[0], length)
    order = np.random.default_rng(0).permutation(len(labels))
    return token_ids[order].astype(np.int32), labels[order].astype(np.int32)


def compare(preset: str, options: argparse.Namespace) -> Comparison:
    """Trains both in turns."""
    token_ids, labels = packed_text(preset, options.length)
    steps = min(options.steps or math.inf, len(labels) // options.batch)
    turns: dict[str, list[Turn]] = {system: [] for system in SYSTEMS}
    workers = {
        system: KerasProcess(load, (system, preset, token_ids, labels, options.batch), options.threads)
        for system in SYSTEMS
    }
    with workers["opt-onnx"], workers["keras-hub"]:
        for first in range(0, int(steps), options.turn):
            count = min(options.turn, int(steps) - first)
            print_progress(f"step {first} of {steps}")
            for system, worker in workers.items():
                turns[system].append(worker.ask(first, count))
    losses = {system: np.concatenate([t.losses for t in ts]) for system, ts in turns.items()}
    difference = np.abs(losses["opt-onnx"] - losses["keras-hub"])
    speeds = {s: [len(t.losses) / t.seconds for t in ts[1:]] for s, ts in turns.items()}
    ratios = [a / b for a, b in zip(speeds["opt-onnx"], speeds["keras-hub"], strict=True)]
    return Comparison(
        steps=int(steps),
        rows=options.batch,
        length=options.length,
        first_loss=float(losses["opt-onnx"][0]),
        last_loss=float(losses["opt-onnx"][-1]),
        first_difference=float(difference[:COMPARED_STEPS].max()),
        difference=float(difference.max()),
        steps_per_second={system: Spread.of(values) for system, values in speeds.items()},
        ratio=Spread.of(ratios).median,
    )


def main() -> None:
    """The command."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--preset", default="opt_tiny_en", help="in keras-hub's format, tokenizer too")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch")
    parser.add_argument("--steps", type=int, help="at most; by default one pass over the text")
    parser.add_argument("--turn", type=int, default=10, help="steps before the other's turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="file to write the figures to; - for standard output")
    options = parser.parse_args()
    try:
        check_counts(options, length=1, batch=1, steps=1, turn=1, threads=1)
        if options.steps is not None and options.steps <= options.turn:
            raise ValueError(f"--steps must be more than one --turn of {options.turn}, which warms up")
        check_output("--json", options.json)
    except ValueError as error:
        parser.error(str(error))
    from exporter.presets.handles import resolve_preset

    found = compare(str(resolve_preset(options.preset)), options)
    print(
        f"{found.steps} steps of {found.rows} x {found.length} tokens, loss {found.first_loss:.4f} to "
        f"{found.last_loss:.4f}\ngreatest loss difference: {found.first_difference:.2e} in the first "
        f"{COMPARED_STEPS} steps, {found.difference:.2e} in all"
    )
    for system, spread in found.steps_per_second.items():
        print(f"{system}: {spread.median:.2f} steps/s ({spread.minimum:.2f} to {spread.maximum:.2f})")
    print(f"ratio: {found.ratio:.2f}\n{describe_hardware()}")
    if options.json:
        versions = package_versions(PACKAGES)
        hardware = asdict(describe_hardware())
        write_json({**asdict(found), "versions": versions, "hardware": hardware}, options.json)


if __name__ == "__main__":
    main()
