"""First and following `generate()` of a fresh Keras model: `python -m bench.keras_generate`.

An `OPTCausalLM` of a built-in preset's shape with random weights, here and in keras-hub, each in a
process of its own; greedy, on token dictionaries, with a new prompt each time. The first call of each
traces or compiles; the following ones are asked for in turn.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bench.command import check_counts, write_json
from bench.keras_process import KerasProcess
from bench.measure import Spread, check_room, random_prompts
from bench.system import describe_hardware
from bench.workers.padding import with_room
from graphs.contract import ModelConfig
from graphs.versions import package_versions
from runtime.command import CommandParser
from runtime.system.output_file import check_output

SYSTEMS = {"opt-onnx": "exporter", "keras-hub": "keras_hub.models"}  # where the models are
PACKAGES = ("opt-onnx", "keras", "keras-hub", "tensorflow", "numpy")


def load(system: str, config: ModelConfig) -> Callable[..., float]:
    """A fresh model in its own process, and the handler that times one generation."""
    import keras

    keras.utils.set_random_seed(0)
    models: Any = importlib.import_module(SYSTEMS[system])
    backbone = models.OPTBackbone(
        vocabulary_size=config.vocabulary_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        hidden_dim=config.hidden_dim,
        intermediate_dim=config.intermediate_dim,
        max_sequence_length=config.max_sequence_length,
    )
    model = models.OPTCausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy")

    def generate(prompts: Any, new_tokens: int) -> float:
        inputs = with_room(prompts.tolist(), new_tokens)
        started = time.perf_counter()
        model.generate(inputs, stop_token_ids=None)
        return time.perf_counter() - started

    return generate


def measure(config: ModelConfig, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds of the first call and of the following ones, by system."""
    import numpy as np

    generator = np.random.default_rng(options.seed)
    seconds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    workers = {system: KerasProcess(load, (system, config), options.threads) for system in SYSTEMS}
    with workers["opt-onnx"], workers["keras-hub"]:
        for _ in range(1 + options.trials):
            prompts = random_prompts(
                generator, config.vocabulary_size, options.batch, options.prompt_tokens
            )
            for system, worker in workers.items():
                seconds[system].append(worker.ask(prompts, options.new_tokens))
    return {
        system: {"first": values[0], "following": Spread.of(values[1:])}
        for system, values in seconds.items()
    }


def main() -> None:
    """The command."""
    from bench.shapes import SHAPES

    parser = CommandParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="opt_125m")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1, help="prompts at a time")
    parser.add_argument("--trials", type=int, default=7, help="following calls")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to write the figures to; - for standard output")
    options = parser.parse_args()
    config = SHAPES[options.shape]
    try:
        check_counts(options, prompt_tokens=1, new_tokens=1, batch=1, trials=1, threads=1)
        check_room(config, options.prompt_tokens, options.new_tokens)
        check_output("--json", options.json)
    except ValueError as error:
        parser.error(str(error))
    found = measure(config, options)
    for system, values in found.items():
        spread = values["following"]
        print(
            f"{system}: first {values['first']:.2f} s, following {spread.median:.3f} s "
            f"({spread.minimum:.3f} to {spread.maximum:.3f})"
        )
    print(describe_hardware())
    if options.json:
        figures = {s: {**v, "following": asdict(v["following"])} for s, v in found.items()}
        facts = {"versions": package_versions(PACKAGES), "hardware": asdict(describe_hardware())}
        write_json({"options": vars(options), "systems": figures, **facts}, options.json)


if __name__ == "__main__":
    main()
