"""`opt-generate`: text from a bundle, on the command line."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runtime.command import CommandParser, run_command
from runtime.option_arguments import add_generation_options, as_options, given_options
from runtime.sampler_options import (
    SAMPLERS_HELP,
    add_sampler_options,
    changed_sampler,
    named_sampler,
)
from runtime.samplers import BeamSampler, Sampler
from runtime.sizes import parse_bytes
from runtime.system.standard_streams import print_out
from runtime.text_arguments import given_texts

if TYPE_CHECKING:
    from runtime.generator import Generator

MOST_LINES = 65_536  # in a batch; they are in memory together

EXAMPLES = """\
examples:
  opt-generate opt_tiny_en "The import statement" --max-length 60
  opt-generate opt_tiny_en "Return a list" --sampler greedy
  opt-generate opt_tiny_en "Return a list" --sampler top_p --p 0.9 --temperature 0.8 --seed 1
  opt-generate opt_tiny_en "Return a list" --sampler beam --num-beams 3 --all-beams
  opt-generate opt_tiny_en "def " --max-new-tokens 40 --stop $'\\n\\n' --repetition-penalty 1.2
  echo "If the argument is" | opt-generate opt_tiny_en --seed 1
      standard input, when piped, is one prompt
  opt-generate opt_tiny_en --input prompts.jsonl --output texts.jsonl
  opt-generate opt_tiny_en --input prompts.jsonl --output texts.jsonl --resume
Make a bundle with: opt-export --preset opt_tiny_en
"""

JOBS_HELP = """\
jobs, which are prompts from a file:
  A line of --input is {"prompt": "..."} and may have other names. Its record, a line of --output in
  the same place, repeats them and adds "text", "finish_reason", token counts and speeds, and what
  the options ask for, such as "beams", "logprobs" or "samples". A line may have "options" of its own,
  as in --options, which go before the command's. Blank lines are left out. Text is UTF-8.
  A line that gives no text (it is not JSON, its prompt is too long) has a record with "error" and
  its number as "line", and the job goes on; with --strict it ends there.
  Records are in the output as soon as their batch is done, and stay whatever happens then. An output
  that is there is replaced when the first record is done. With --resume its records are kept, and
  the job goes on after them; they must be of the same input and options.
exit code:
  0 all texts are there; 1 some records of a job have an "error"; 2 an error ended the command, which
  standard error tells of; 130 Ctrl-C, 143 SIGTERM
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="opt-generate",
        description="Write text with an exported OPT bundle. Text is printed as it comes.",
        epilog=f"{JOBS_HELP}\n{SAMPLERS_HELP}\n{EXAMPLES}",
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
    parser.add_argument(
        "--output", metavar="FILE", help="records as JSON Lines; - is standard output (default: -)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the records that --output has and go on after them"
    )
    parser.add_argument(
        "--strict", action="store_true", help="end at the first line of --input that gives no text"
    )
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
    add_generation_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if a job has errors, 2 on an error and 130 on Ctrl-C."""
    options = build_parser().parse_args(arguments)
    interrupted = "interrupted"
    if options.input is not None and options.output not in (None, "-"):
        interrupted += f"; --resume goes on after what {options.output} has"
    return run_command("opt-generate", _run, options, interrupted)


def _run(options: argparse.Namespace) -> int:
    _check(options)
    given = given_options(options)
    asked = as_options(given)
    named = named_sampler(options)
    if options.input is not None:
        from runtime.jobs.command import run_job_command

        return run_job_command(options, lambda: _open(options, named), settings(options), given)
    if asked is not None and (asked.logprobs is not None or asked.prompt_logprobs is not None):
        raise ValueError("--logprobs and --prompt-logprobs go with --input, whose records have them")
    prompts = given_texts(options.prompts)
    generator = _open(options, named)
    for prompt in prompts:
        _print_text(generator, prompt, settings(options) | ({"options": asked} if asked else {}))
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.input is None:
        for name in ("output", "resume", "strict"):
            if getattr(options, name):
                remedy = "; redirect standard output otherwise" if name == "output" else ""
                raise ValueError(f"--{name} goes with --input{remedy}")
    elif options.prompts:
        raise ValueError("--input gives the prompts: leave out those after BUNDLE, or --input")
    if not 1 <= options.batch_size <= MOST_LINES:
        raise ValueError(f"--batch-size must be from 1 to {MOST_LINES}, got {options.batch_size}")
    if options.max_cache_bytes is not None:
        parse_bytes(options.max_cache_bytes)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Generator.generate` that the options give."""
    return {
        "max_length": options.max_length,
        "stop_token_ids": None if options.no_stop else "auto",
        "strip_prompt": options.strip_prompt,
        "timeout": options.timeout,
    }


def _open(options: argparse.Namespace, named: Sampler | None) -> Generator:
    """The generator that the options describe, its arguments checked."""
    from runtime.generator import Generator

    most = None if options.max_cache_bytes is None else parse_bytes(options.max_cache_bytes)
    with _told_on_stderr():
        generator = Generator.from_bundle(
            options.bundle,
            device=options.device,
            threads=options.threads,
            verify=options.verify,
            packed_weights=not options.no_packed_weights,
            max_cache_bytes=most,
            cuda_graphs=not options.no_cuda_graphs,
            allow_cpu_nodes=options.allow_cpu_nodes,
        )
    generator.compile(named or changed_sampler(generator.sampler, options))
    return generator


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
            if score > -math.inf:  # else the options allow fewer texts than beams
                print_out(f"{score:.4f}\t{text}")
        return
    options = settings.get("options")
    if options is not None and (options.best_of or options.n) > 1:
        texts = generator.generate(prompt, **settings)
        for text in [texts] if isinstance(texts, str) else texts:
            print_out(text)
        return
    for piece in generator.stream(prompt, **settings):
        print_out(piece, end="")
    print_out("")


if __name__ == "__main__":
    sys.exit(main())
