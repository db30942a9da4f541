"""Descriptions compiled by llguidance, once each."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from graphs.shown import cut, shown
from runtime.structured.description import StructuredOutput
from runtime.structured.library import import_llguidance
from runtime.structured.vocabulary import GrammarVocabulary
from runtime.tokenization.tokenizer import Tokenizer

MAX_GRAMMARS = 16  # that a compiler keeps; each takes up to some 10 MB

# Bounds of llguidance's on what a grammar takes: a second to compile, some 20 ms a mask, 0.5 to 2 kB a
# state. Of Lark's grammars a row of 500 items is an ambiguous one; a schema has as many properties.
LIMITS = {"initial_lexer_fuel": 500_000, "max_lexer_states": 20_000, "verbose_errors": False}
GRAMMAR_LIMITS = {**LIMITS, "max_items_in_row": 500}

WHITE_SPACE = r" |\n[ \t]{0,32}"  # of JSON, where it may have any: a model may take to it for good

# Calls follow references through a schema and take kilobytes for each: 64 KiB of it need 40 MB at most.
STACK_BYTES = 2**28
_STACK_LOCK = threading.Lock()


class Grammar:
    """A compiled description.

    All matchers share the states of one lexer, which are made as texts need them.

    Args:
        description: what a text is to be.
        vocabulary: the tokens.

    Raises:
        ValueError: if llguidance does not support it, it takes too much, or no text is like it.
    """

    def __init__(self, description: StructuredOutput, vocabulary: GrammarVocabulary) -> None:
        self.description = description
        self.vocabulary = vocabulary
        self._source = _source(description)
        self._lock = threading.Lock()
        self._start = self._compile()

    @property
    def start(self) -> Any:
        """The `LLMatcher` before the first token, of which copies are used."""
        return self._start

    def renewed(self, start: Any) -> Any:
        """Another `start` with a new lexer; the one that there is where `start` is an older one."""
        with self._lock:
            if self._start is start:
                self._start = self._compile()
            return self._start

    def _compile(self) -> Any:
        llguidance = import_llguidance()
        kind = self.description.kind
        limits = llguidance.LLParserLimits(**(GRAMMAR_LIMITS if kind == "grammar" else LIMITS))

        def make() -> Any:
            return llguidance.LLMatcher(
                self.vocabulary.backend, self._source, log_level=0, limits=limits
            )

        matcher = _on_large_stack(make)
        # What takes too much often shows at the first token.
        error = matcher
        if not matcher.is_error():
            first = np.frombuffer(matcher.compute_bitmask(), "<u4") & self.vocabulary.allowed
            if not matcher.is_error() and not first.any():
                raise ValueError(f"{kind} allows no text of this tokenizer's tokens, but the empty one")
            error = matcher if matcher.is_error() else matcher.deep_copy()
            error.consume_token(int(np.unpackbits(first.view(np.uint8), bitorder="little").argmax()))
        if error.is_error():
            raise ValueError(
                f"{kind} is {shown(getattr(self.description, kind))}, which is not valid, not "
                f"supported or takes too much: {error_text(error)}"
            )
        return matcher


def error_text(matcher: Any) -> str:
    """What an `LLMatcher` says is wrong, in one line."""
    told = matcher.get_error().partition("\n<")[0]
    return cut(" ".join(told.split()))


def _on_large_stack(work: Callable[[], Any]) -> Any:
    """What `work` gives, done in a thread of its own."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, name="grammar", daemon=True)
    with _STACK_LOCK:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def _source(description: StructuredOutput) -> str:
    """A description in the language that llguidance's matchers take."""
    value = getattr(description, description.kind)
    match description.kind:
        case "regex":
            matcher = import_llguidance().LLMatcher
            return str(matcher.grammar_from_regex(value))
        case "grammar":
            grammar: dict[str, Any] = {"lark_grammar": value}
        case "choice":
            matcher = import_llguidance().LLMatcher
            return str(matcher.grammar_from_regex("|".join(map(_escaped, dict.fromkeys(value)))))
        case "json_object":
            grammar = {"json_schema": _with_white_space({"type": "object"})}
        case "json_schema":
            grammar = {"json_schema": _with_white_space(json.loads(value))}
    return json.dumps({"grammars": [grammar]}, ensure_ascii=False)


def _escaped(text: str) -> str:
    """A regular expression for one text."""
    return "".join(
        char if char.isalnum() or char == " " or ord(char) > 127 else f"\\x{{{ord(char):x}}}"
        for char in text
    )


def _with_white_space(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "x-guidance": {"whitespace_pattern": WHITE_SPACE}}


class GrammarCompiler:
    """Compiles descriptions for one tokenizer and keeps the grammars that were last used.

    llguidance is imported, and the vocabulary made, for the first of them. Threads may share it: one
    compiles a description, the others wait for that.

    Args:
        tokenizer: turns tokens into text.
        size: rows of the model's logits.
        most: grammars that are kept.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, most: int = MAX_GRAMMARS) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._most = most
        self._vocabulary: GrammarVocabulary | None = None
        self._vocabulary_lock = threading.Lock()
        self._kept: OrderedDict[StructuredOutput, _Once] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[GrammarCompiler], tuple[Tokenizer, int, int]]:
        return type(self), (self._tokenizer, self._size, self._most)

    def compile(self, description: StructuredOutput) -> Grammar:
        """The grammar of a description.

        Raises:
            ImportError: without llguidance.
            ValueError: see `Grammar`.
        """
        with self._lock:
            once = self._kept.setdefault(description, _Once())
            self._kept.move_to_end(description)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        try:
            return once.get(lambda: Grammar(description, self._get_vocabulary()))
        except BaseException:
            with self._lock:
                if self._kept.get(description) is once:
                    del self._kept[description]
            raise

    def __len__(self) -> int:
        return len(self._kept)

    def _get_vocabulary(self) -> GrammarVocabulary:
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = GrammarVocabulary(self._tokenizer, self._size)
            return self._vocabulary


class _Once:
    """One grammar that several threads may ask for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grammar: Grammar | None = None

    def get(self, make: Callable[[], Grammar]) -> Grammar:
        with self._lock:
            if self._grammar is None:
                self._grammar = make()
            return self._grammar
