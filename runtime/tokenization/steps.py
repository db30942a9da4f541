"""The steps of a `tokenizer.json` around its model, and what each may make of a text's size.

A text goes through normalizers, pre-tokenizers, the model and post-processors. Only steps on the lists
here are run, each with a bound on the bytes that it makes of one byte, whatever the text: those of the
Unicode forms and of lower case hold for every character (tests try all of them), those of replacements
and prefixes follow from their texts. Bounds multiply along nested sequences, so what is in memory is at
most their product times the text. `Precompiled`, whose table may map a letter to anything, is
SentencePiece's and goes with no byte-level model. Post-processors may put tokens around a text and not
repeat it. Decoders are not run: bytes of tokens are put together here. What a regular expression takes
in time has no bound but that of a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graphs.shown import shown

MAX_STEPS = 32  # of normalizers, pre-tokenizers and post-processors each; real files have up to five
MAX_GROWTH = 64.0  # bytes that all steps before the model make of a byte
MAX_PATTERN = 2000  # characters of a regular expression; real ones have up to 300

Step = Mapping[str, Any]


@dataclass(frozen=True)
class Effect:
    """What steps may make of a text.

    Attributes:
        growth: most bytes that one byte becomes.
        shrink: most bytes that become one; infinite where any number of them may be left out.
    """

    growth: float = 1.0
    shrink: float = 1.0

    def then(self, other: Effect) -> Effect:
        """The effect of this and then another."""
        return Effect(self.growth * other.growth, self.shrink * other.shrink)


_SAME = Effect()
_DROPS = Effect(shrink=math.inf)


def _replace(step: Step) -> Effect:
    content, pattern = _size(step["content"]), step["pattern"]
    least = _size(pattern.get("String") or "")
    if not least:
        # A regular expression may match the nothing before and after each character.
        _check_pattern(pattern)
        return Effect(1 + 2 * content, math.inf)
    return Effect(max(1.0, content / least), max(1.0, least / content) if content else math.inf)


def _split(step: Step) -> Effect:
    _check_pattern(step["pattern"])
    return _DROPS if step.get("behavior") == "Removed" else _SAME


def _prepend(step: Step) -> Effect:
    return Effect(1 + _size(step["prepend"]))  # of each piece between added tokens


def _byte_level(step: Step) -> Effect:
    return Effect(2.0) if step.get("add_prefix_space", True) else _SAME  # before each piece


def _always(effect: Effect) -> Callable[[Step], Effect]:
    return lambda step: effect


NORMALIZERS: dict[str, Callable[[Step], Effect]] = {
    "NFC": _always(Effect(3, 4)),
    "NFD": _always(Effect(3, 4)),
    "NFKC": _always(Effect(11, 4)),
    "NFKD": _always(Effect(11, 4)),
    "Lowercase": _always(Effect(1.5, 3)),
    "Strip": _always(_DROPS),
    "StripAccents": _always(_DROPS),
    "Nmt": _always(_DROPS),
    "BertNormalizer": _always(Effect(7.5, math.inf)),  # spaces around CJK, NFD, lower case
    "ByteLevel": _always(Effect(2)),
    "Prepend": _prepend,
    "Replace": _replace,
}
PRE_TOKENIZERS: dict[str, Callable[[Step], Effect]] = {
    "ByteLevel": _byte_level,
    "Split": _split,
    "Digits": _always(_SAME),
    "Punctuation": lambda step: _DROPS if step.get("behavior") == "Removed" else _SAME,
    "UnicodeScripts": _always(_SAME),
    "FixedLength": _always(_SAME),
    "Whitespace": _always(_DROPS),
    "WhitespaceSplit": _always(_DROPS),
    "BertPreTokenizer": _always(_DROPS),
    "CharDelimiterSplit": _always(_DROPS),
    "Metaspace": _always(Effect(8)),  # four bytes for a space, and as many before each piece
}
POST_PROCESSORS = ("ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing")


def single_steps(step: Step | None, name: str) -> list[Step]:
    """The single steps of a step that may be a sequence of steps.

    Raises:
        ValueError: if they are too many.
    """
    found: list[Step] = []
    waiting = [] if step is None else [step]
    while waiting:
        step = waiting.pop()
        if step.get("type") == "Sequence":
            waiting += reversed(step[name])
        else:
            found.append(step)
        if len(found) + len(waiting) > MAX_STEPS:
            raise ValueError(f"has more than {MAX_STEPS} {name}")
    return found


def steps_effect(normalizers: list[Step], pre_tokenizers: list[Step]) -> Effect:
    """What the steps before the model may make of a text.

    Raises:
        ValueError: if one is of an unknown kind, or they may make too much of it.
    """
    effect = _SAME
    for steps, known in ((normalizers, NORMALIZERS), (pre_tokenizers, PRE_TOKENIZERS)):
        for step in steps:
            kind = step.get("type")
            if kind not in known:
                raise ValueError(f"has a step {shown(kind)}, and known ones are {', '.join(known)}")
            effect = effect.then(known[kind](step))
    if not effect.growth <= MAX_GROWTH:
        raise ValueError(
            f"makes up to {effect.growth:.3g} bytes of one byte of text, at most {MAX_GROWTH:g}, by "
            f"{len(normalizers)} normalizers and {len(pre_tokenizers)} pre-tokenizers"
        )
    return effect


def check_post_processors(steps: list[Step]) -> None:
    """Raises `ValueError` if a post-processor is of an unknown kind, or repeats the text."""
    for step in steps:
        kind = step.get("type")
        if kind not in POST_PROCESSORS:
            raise ValueError(
                f"has a post-processor {shown(kind)}, and known ones are {', '.join(POST_PROCESSORS)}"
            )
        if kind == "TemplateProcessing":
            texts = [piece["Sequence"]["id"] for piece in step["single"] if "Sequence" in piece]
            if texts != ["A"]:
                raise ValueError(
                    f"has a template with {len(texts)} places for one text, {shown(texts)}"
                )


def _check_pattern(pattern: Any) -> None:
    expression = pattern.get("Regex") or ""
    if len(expression) > MAX_PATTERN:
        raise ValueError(
            f"has a regular expression of {len(expression)} characters, and one may have {MAX_PATTERN}"
        )


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
