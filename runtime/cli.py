"""`opt-generate`: text from a bundle, on the command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from runtime.command import run_command
from runtime.sampler_options import (
    SAMPLERS_HELP,
    add_sampler_options,
    changed_sampler,
    named_sampler,
)
from runtime.samplers import BeamSampler
from runtime.sizes import parse_bytes
from runtime.system.interrupts import undone_when_ended

if TYPE_CHECKING:
    from runtime.generator import Generator

EXAMPLES = """\
examples:
  opt-generate opt_tiny_en "The import statement" --max-length 60
  opt-generate opt_tiny_en "Return a list" --sampler greedy
  opt-generate opt_tiny_en "Return a list" --sampler top_p --p 0.9 --temperature 0.8 --seed 1
  opt-generate opt_tiny_en "Return a list" --sampler beam --num-beams 3 --all-beams
  echo "If the argument is" | opt-generate opt_tiny_en --seed 1
      standard input, when piped, is one prompt
  opt-generate opt_tiny_en --input prompts.jsonl --output texts.jsonl
      a line of the input is {"prompt": "..."}; one of the output adds "text", "finish_reason",
      token counts and speeds, and with --all-beams "beams"
Make a bundle with: opt-export --preset opt_tiny_en
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="opt-generate",
        description="Write text with an exported OPT bundle. Text is printed as it comes.",
        epilog=f"{SAMPLERS_HELP}\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle folder that opt-export made")
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="text to continue")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of prompt and answer together"
    )
    parser.add_argument("--strip-prompt", action="store_true", help="print only what is new")
    parser.add_argument(
        "--no-stop", action="store_true", help="go on to --max-length, past the end token"
    )
    parser.add_argument("--input", metavar="FILE", help="prompts as JSON Lines; - is standard input")
    parser.add_argument("--output", metavar="FILE", help="results as JSON Lines (default: printed)")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="prompts at a time with --input"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="time for each prompt, or with --input for each batch of them; texts that are not "
        'complete then end in an error, with --input in "finish_reason": "timeout"',
    )
    parser.add_argument(
        "--max-cache-bytes",
        metavar="SIZE",
        help="refuse a KV cache of more, such as 2GB or 500MB (default: what memory is free)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--verify", action="store_true", help="check the weights' hash first")
    parser.add_argument(
        "--no-packed-weights",
        action="store_true",
        help="pack the weights in memory at every start, instead of once on disk for this CPU",
    )
    parser.add_argument(
        "--no-cuda-graphs",
        action="store_true",
        help="start each of a GPU's kernels anew at every step, instead of replaying a recorded one",
    )
    parser.add_argument(
        "--allow-cpu-nodes",
        action="store_true",
        help="let the CPU run operators that a GPU has no kernel for; a portable bundle needs it there",
    )
    add_sampler_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("opt-generate", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    if options.input is None and options.output is not None:
        raise ValueError("--output goes with --input; redirect standard output otherwise")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    max_cache_bytes = None if options.max_cache_bytes is None else parse_bytes(options.max_cache_bytes)
    requests = _read_requests(options.input) if options.input is not None else []
    prompts = [] if options.input is not None else _prompts(options.prompts)
    sampler = named_sampler(options)

    from runtime.generator import Generator

    with _told_on_stderr():
        generator = Generator.from_bundle(
            options.bundle,
            device=options.device,
            threads=options.threads,
            verify=options.verify,
            packed_weights=not options.no_packed_weights,
            max_cache_bytes=max_cache_bytes,
            cuda_graphs=not options.no_cuda_graphs,
            allow_cpu_nodes=options.allow_cpu_nodes,
        )
    generator.compile(sampler or changed_sampler(generator.sampler, options))
    settings = {
        "max_length": options.max_length,
        "stop_token_ids": None if options.no_stop else "auto",
        "strip_prompt": options.strip_prompt,
        "timeout": options.timeout,
    }
    if options.input is None:
        for prompt in prompts:
            _print_text(generator, prompt, settings)
        return
    with _output(options.output) as file:
        for start in range(0, len(requests), options.batch_size):
            batch = requests[start : start + options.batch_size]
            results = generator.generate_results([r.prompt for r in batch], **settings)
            for request, result in zip(batch, results, strict=True):
                line = {**request.fields, **result.to_dict()}
                print(json.dumps(line, ensure_ascii=False), file=file, flush=True)


@contextlib.contextmanager
def _told_on_stderr() -> Iterator[None]:
    """Prints what the library logs, of work that takes long, and warns of."""
    logger, handler = logging.getLogger("runtime"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: logger.warning("Warning: %s", message)
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _print_text(generator: Generator, prompt: str, settings: dict[str, Any]) -> None:
    """Prints one text as it comes, or its beams with a score before each once they are there."""
    if isinstance(generator.sampler, BeamSampler) and generator.sampler.return_all_beams:
        for text, score in zip(*generator.generate(prompt, **settings), strict=True):
            print(f"{score:.4f}\t{text}", flush=True)
        return
    for piece in generator.stream(prompt, **settings):
        print(piece, end="", flush=True)
    print(flush=True)


def _prompts(given: Sequence[str]) -> list[str]:
    if given:
        return list(given)
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("no prompt: give one after BUNDLE, pipe one in, or use --input FILE")
    return [sys.stdin.read().removesuffix("\n")]


@dataclass(frozen=True)
class _Request:
    prompt: str
    fields: dict[str, Any]


def _read_requests(path: str) -> list[_Request]:
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    requests = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
            raise ValueError(f'{path}, line {number} must be {{"prompt": "..."}}, got {line.strip()}')
        requests.append(_Request(value["prompt"], value))
    return requests


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears when it is complete."""
    if path is None:
        yield sys.stdout
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with (
            undone_when_ended(lambda: temporary.unlink(missing_ok=True)),
            temporary.open("w", encoding="utf-8") as file,
        ):
            yield file
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
