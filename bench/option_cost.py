"""`python -m bench.option_cost`: what options add to a decode step."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from bench.command import check_counts, print_progress, write_json
from bench.markdown import markdown_table
from bench.measure import Spread, check_room, random_prompts
from bench.step_overhead import (
    PACKAGES,
    TEXT_SPREAD,
    StepTimes,
    new_engine,
    session_clock,
    temperature_for,
    time_steps,
)
from bench.system import describe_hardware
from graphs.versions import package_versions
from runtime.bundle import load_bundle
from runtime.call_limits import CallLimits
from runtime.command import CommandParser, run_command
from runtime.engine.call import Call
from runtime.generation_options import GenerationOptions
from runtime.request_options import request_options, search_of
from runtime.samplers import RandomSampler
from runtime.structured.description import StructuredOutput
from runtime.structured.grammar import GrammarCompiler
from runtime.system.output_file import check_output
from runtime.system.standard_streams import print_out
from runtime.tokenization.tokenizer import Tokenizer
from runtime.tokenization.vocabulary import byte_alphabet

HEADER = ["options", "step ms", "outside µs", "more, of a step"]

DESCRIPTION = """\
Measure what options cost: of each decode step the whole time, and what is spent outside ONNX Runtime,
for a draw from all tokens with one option after the other. They take turns, trial by trial. A bundle
without a tokenizer gets one of as many tokens, made of one to three characters.
"""


def cases(vocabulary: int) -> dict[str, dict[str, Any]]:
    """What is asked of a text in each case, of a model with so many tokens."""
    some = vocabulary // 5
    hundred = [*range(some, 2 * some)][:100]
    penalties = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    repeats = {"no_repeat_ngram_size": 3, "bad_words_ids": [[i, i + 1] for i in hundred]}
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1000}
    return {
        "none": {},
        **{name: {name: value} for name, value in penalties.items()},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
        "bad_words_ids, 100": {"bad_words_ids": repeats["bad_words_ids"]},
        "suppress_tokens, 1,000": {"suppress_tokens": [*range(some, 2 * some)][:1000]},
        "logit_bias, 100": {"logit_bias": dict.fromkeys(hundred, 1.0)},
        "allowed_token_ids, a fifth": {"allowed_token_ids": [*range(some)]},
        "min_p": {"min_p": 0.05},
        "typical_p": {"typical_p": 0.9},
        "eta_cutoff": {"eta_cutoff": 3e-4},
        "logprobs, 5": {"logprobs": 5},
        "stop, 4 strings": {"stop": ["\n\n", "###", "User:", "</answer>"]},
        "regex": {"regex": "[a-z ,.]+"},
        "json_schema": {"json_schema": schema},
        "five at once": {**penalties, **repeats},
    }


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.option_cost",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle folder that opt-export made")
    for option, default, text in (
        ("--prompt-tokens", 128, "of the prompt"),
        ("--new-tokens", 64, "of each trial"),
        ("--trials", 5, "of each case, after one that warms up"),
        ("--seed", 0, "of prompts and draws"),
    ):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--json", metavar="FILE", help="all figures; - prints JSON and no table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("option_cost", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    from runtime.session import SessionDecoder

    check_counts(options, prompt_tokens=1, new_tokens=3, trials=1, threads=1, seed=0)
    check_output("--json", options.json)
    bundle = load_bundle(options.bundle)
    config = bundle.manifest.model
    check_room(config, options.prompt_tokens, options.new_tokens)
    tokenizer = bundle.tokenizer or synthetic_tokenizer(config.vocabulary_size)
    compiler = GrammarCompiler(tokenizer, config.vocabulary_size)
    asked = cases(config.vocabulary_size)
    found = {name: StepTimes() for name in asked}
    with session_clock() as clock:
        decoder = SessionDecoder(bundle, threads=options.threads)
        engine = new_engine(decoder, 1)
        chance = np.random.default_rng(options.seed)
        prompts = random_prompts(chance, config.vocabulary_size, 1, options.prompt_tokens)
        # As on text: of random weights nearly all tokens are as probable.
        sampler = RandomSampler(options.seed, temperature_for(decoder, prompts, TEXT_SPREAD))
        for trial in range(options.trials + 1):
            print_progress(f"trial {trial} of {options.trials}")
            for name, values in asked.items():
                call = _call(
                    values, sampler, prompts[0], options.new_tokens, config, tokenizer, compiler
                )
                times = time_steps(engine, call, clock)
                if trial:
                    found[name].whole.extend(times.whole)
                    found[name].outside.extend(times.outside)
    if options.json != "-":
        print_out(_format(found, options))
    if options.json is not None:
        values = {
            name: {"step_seconds": asdict(Spread.of(times.whole)), "steps": len(times.whole)}
            | {"outside_seconds": asdict(Spread.of(times.outside))}
            for name, times in found.items()
        }
        facts = {"versions": package_versions(PACKAGES), "hardware": asdict(describe_hardware())}
        write_json({"options": vars(options), "cases": values, **facts}, options.json)


def _call(
    values: Mapping[str, Any],
    sampler: RandomSampler,
    prompt: Any,
    new_tokens: int,
    config: Any,
    tokenizer: Tokenizer,
    compiler: GrammarCompiler,
) -> Call:
    options = GenerationOptions(ignore_eos=True, **values)
    if options.sampling:  # which would go before the sampler's temperature
        options = replace(options, temperature=sampler.temperature)
    brought = request_options(
        options,
        sampler,
        frozenset(),
        config,
        tokenizer,
        lambda structure: compiler.compile(StructuredOutput(**structure)),
    )
    requests = brought.requests(tuple(prompt.tolist()), len(prompt) + new_tokens)
    search = search_of([brought.sampler], requests, config.vocabulary_size)
    return Call(requests, search, CallLimits())


def synthetic_tokenizer(size: int) -> Tokenizer:
    """A tokenizer of so many tokens: all bytes, and printable characters in twos and threes."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = [*byte_alphabet()]
    tokens = [*special, *alphabet]
    merges = []
    printable = [character for character in alphabet if character.isascii()]
    for left, right in itertools.islice(_pairs(printable), max(0, size - len(tokens))):
        merges.append(f"{left} {right}")
        tokens.append(left + right)
    return Tokenizer({token: i for i, token in enumerate(tokens[:size])}, merges)


def _pairs(characters: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from itertools.product(characters, repeat=2)
    for left, middle, right in itertools.product(characters, repeat=3):
        yield left + middle, right


def _format(found: Mapping[str, StepTimes], options: argparse.Namespace) -> str:
    none = found["none"]
    step, least = Spread.of(none.whole).median, Spread.of(none.outside).median
    rows = [HEADER]
    for name, times in found.items():
        whole, outside = Spread.of(times.whole), Spread.of(times.outside)
        cells = [f"{whole.median * 1e3:.2f}", f"{outside.median * 1e6:.0f}"]
        rows.append([name, *cells, f"{(outside.median - least) / step:+.1%}"])
    steps = len(found["none"].whole)
    return "\n".join(
        [
            *markdown_table(rows),
            "",
            f"Medians of {steps} steps; {options.bundle}, after {options.prompt_tokens} prompt tokens. "
            f"{describe_hardware()}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
