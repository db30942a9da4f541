"""Descriptions compiled: kept, shared by threads, refused."""

from __future__ import annotations

import builtins
import pickle
import subprocess
import threading
import time
from typing import Any

import pytest

from runtime.structured import grammar as module
from runtime.structured.description import StructuredOutput
from runtime.structured.grammar import GrammarCompiler
from runtime.system.child_process import python_command, python_environment
from tests.runtime.structured.sampling import ROWS, compiled, tiny_tokenizer


def regex(pattern: str) -> StructuredOutput:
    return StructuredOutput(regex=pattern)


@pytest.fixture(autouse=True)
def _needs_llguidance() -> None:
    pytest.importorskip("llguidance")


def test_the_last_grammars_are_kept() -> None:
    compiler = GrammarCompiler(tiny_tokenizer(), ROWS, most=2)
    a, b = compiler.compile(regex("a")), compiler.compile(regex("b"))
    assert compiler.compile(regex("a")) is a
    compiler.compile(regex("c"))
    assert len(compiler) == 2
    assert compiler.compile(regex("a")) is a
    assert compiler.compile(regex("b")) is not b
    assert a.vocabulary is b.vocabulary


def test_threads_compile_a_description_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[StructuredOutput] = []
    original = module.Grammar

    def make(description: StructuredOutput, vocabulary: Any) -> Any:
        made.append(description)
        time.sleep(0.01)
        return original(description, vocabulary)

    monkeypatch.setattr(module, "Grammar", make)
    compiler = GrammarCompiler(tiny_tokenizer(), ROWS)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(compiler.compile(regex("ab"[i % 2] + "x"))))
        for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2 == len(set(map(id, found)))
    assert len(found) == 16


def test_what_is_refused_is_not_kept() -> None:
    compiler = GrammarCompiler(tiny_tokenizer(), ROWS)
    for _ in range(2):
        with pytest.raises(ValueError, match="look-around"):
            compiler.compile(regex("a(?=b)"))
    assert len(compiler) == 0


def test_a_compiler_is_pickled_without_its_grammars() -> None:
    compiler = GrammarCompiler(tiny_tokenizer(), ROWS)
    compiler.compile(regex("a"))
    again = pickle.loads(pickle.dumps(compiler))
    assert len(again) == 0
    assert again.compile(regex("a")).description == regex("a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"regex": "a("}, "unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": r"\bword"}, "lookarounds not supported"),
        ({"regex": "()"}, "allows no text"),
        ({"grammar": "start: nothing"}, "nothing"),
        ({"grammar": 'begin: "a"'}, "start"),
        ({"grammar": 'start: "a'}, "lexer error"),
        ({"json_schema": {"not": {"type": "string"}}}, "not supported .*not"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"type": "string", "format": "colour"}}, "Unknown format: colour"),
        ({"json_schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "oneOf constraints"),
        ({"json_schema": {"$ref": "#/$defs/none"}}, "does not exist"),
        ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "Unsatisfiable"),
        ({"json_schema": {"x-guidance": {"lenient": True}, "not": {}}}, "not"),
    ],
)
def test_what_llguidance_does_not_support_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        compiled(**values)
    told = str(caught.value)
    assert told.startswith(next(iter(values)))
    assert "\n" not in told
    assert len(told) < 1000


DOUBLING = {f"a{i}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/a{i + 1}"} for k in "xy"}}
            for i in range(30)} | {"a30": {"type": "string", "pattern": "a+"}}  # fmt: skip
CHAIN = {f"{i:x}": {"items": {"$ref": f"#/$defs/{i + 1:x}"}} for i in range(1300)} | {"514": {}}


@pytest.mark.parametrize(
    "values",
    [
        {"json_schema": {"$ref": "#/$defs/a0", "$defs": DOUBLING}},
        {"json_schema": {"$ref": "#/$defs/0", "$defs": CHAIN}},
        {"json_schema": {"enum": [f"word {i}" for i in range(4000)]}},
        {"json_schema": {"oneOf": [{"const": f"v{i}"} for i in range(900)]}},
        {"json_schema": {"type": "integer", "multipleOf": 4999}},
        {"json_schema": {"type": "string", "minLength": 10**6}},
        {"json_schema": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}},
        {"choice": [f"word {i}" for i in range(5000)]},
        {"regex": "a" * 60_000},
        {"regex": "(.{1,100}\n){1,100}"},
    ],
)
def test_large_descriptions_take_a_second_or_two(values: dict[str, Any]) -> None:
    """The bound is far above what a busy machine needs."""
    compiled(regex="warm")
    start = time.process_time()
    compiled(**values)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "grammar",
    [
        "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)) + '\nA40: "x"',
        "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(40)) + '\na40: "x"',
        "start: " + "(" * 20_000 + '"a"' + ")" * 20_000,
        'start: a{1000000}\na: "x"',
    ],
)
def test_grammars_that_explode_are_refused(grammar: str) -> None:
    with pytest.raises(ValueError, match="takes too much"):
        compiled(grammar=grammar)


def test_without_llguidance_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "llguidance":
            raise ImportError("No module named 'llguidance'")
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'opt-onnx\[structured\]'"):
        GrammarCompiler(tiny_tokenizer(), ROWS).compile(regex("a"))


def test_importing_the_runtime_and_describing_does_not_import_llguidance() -> None:
    program = (
        "import sys, runtime, runtime.structured.constraint\n"
        "from runtime.structured.description import StructuredOutput\n"
        "StructuredOutput(regex='a')\n"
        "assert 'llguidance' not in sys.modules"
    )
    subprocess.run(python_command("-c", program), env=python_environment(), check=True)
