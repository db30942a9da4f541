"""The options of a command that choose a sampler."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from runtime import samplers
from runtime.samplers import Sampler

_OPTIONS = {
    "--k": "k",
    "--p": "p",
    "--temperature": "temperature",
    "--num-beams": "num_beams",
    "--all-beams": "return_all_beams",
    "--alpha": "alpha",
    "--seed": "seed",
}

SAMPLERS_HELP = """\
samplers, and the options that each takes:
  greedy        the most probable token, always (--temperature, without effect)
  random        drawn from all tokens (--temperature --seed)
  top_k         drawn from the --k most probable (--k --temperature --seed)
  top_p         drawn from the most probable that together exceed --p (--p --k --temperature --seed)
  beam          the most probable text that a search over --num-beams finds
                (--num-beams --all-beams --temperature)
  contrastive   probable tokens unlike those before: little repetition (--k --alpha --temperature)
"""


def add_sampler_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--sampler` and the options of all samplers."""
    group = parser.add_argument_group("choice of tokens")
    group.add_argument("--sampler", choices=samplers.NAMES, help="default: the bundle's; see below")
    group.add_argument(
        "--k", type=int, metavar="N", help="tokens to choose among (default: 5; for top_p: all)"
    )
    group.add_argument(
        "--p", type=float, metavar="X", help="probability that the tokens exceed (default: 0.1)"
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="divides the logits (default: 1.0); 0 takes the most probable token",
    )
    group.add_argument(
        "--num-beams", type=int, metavar="N", help="continuations to follow (default: 5)"
    )
    group.add_argument(
        "--all-beams",
        dest="return_all_beams",
        action="store_true",
        default=None,
        help='give all beams with their scores, best first; with --input as "beams"',
    )
    group.add_argument(
        "--alpha", type=float, metavar="X", help="weight of unlikeness, 0 to 1 (default: 0.6)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same text")


def given_sampler(options: argparse.Namespace) -> list[str]:
    """What a command line gives of a sampler, beside what drawing has too."""
    own = {option: key for option, key in _OPTIONS.items() if key not in ("temperature", "seed")}
    given = {"--sampler": "sampler", **own}
    return [option for option, key in given.items() if getattr(options, key) is not None]


def named_sampler(options: argparse.Namespace) -> Sampler | None:
    """The sampler that the options name, `None` for the bundle's own."""
    return None if options.sampler is None else _build(options.sampler, {}, options)


def changed_sampler(default: Sampler, options: argparse.Namespace) -> Sampler:
    """A bundle's own sampler with what the options change."""
    return _build(type(default).__name__, default.get_config(), options)


def _build(name: str, values: Mapping[str, Any], options: argparse.Namespace) -> Sampler:
    given = {option: getattr(options, key) for option, key in _OPTIONS.items()}
    given = {option: value for option, value in given.items() if value is not None}
    cls = samplers.find_class(name)
    assert cls is not None
    taken = [option for option, key in _OPTIONS.items() if key in samplers.parameters(cls)]
    surplus = [option for option in given if option not in taken]
    if surplus:
        raise ValueError(
            f"the sampler {name} does not take {', '.join(surplus)}; it takes {', '.join(taken)}; "
            "another is chosen with --sampler"
        )
    changes = {_OPTIONS[option]: value for option, value in given.items()}
    try:
        return cls.from_config({**values, **changes})
    except ValueError as error:
        source = f" (from {', '.join(given)})" if given else ""
        raise ValueError(f"{error}{source}") from None
