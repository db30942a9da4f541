"""Imports go one way, read from the source: exporter → graphs ← runtime."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("bench", "exporter", "graphs", "runtime", "tests")
USERS_OF_ONNXRUNTIME = ["runtime/onnx_runtime.py"]
LIGHT = ("contract", "listing", "manifest", "operators", "plain_files", "sealed_json", "strict_json")
LIGHT_GRAPHS = ("graphs/__init__.py", *(f"graphs/{name}.py" for name in LIGHT))
LIGHT_MODULES = tuple(f"graphs.{name}" for name in LIGHT)


def sources(*packages: str) -> list[Path]:
    """The modules of packages, but for what a build leaves behind."""
    found = [path for name in packages for path in sorted((REPOSITORY / name).rglob("*.py"))]
    return [path for path in found if "__pycache__" not in path.parts]


def names(*packages: str) -> list[str]:
    return [path.relative_to(REPOSITORY).as_posix() for path in sources(*packages)]


def imports(path: Path) -> Iterator[str]:
    """Full names of everything that a module imports anywhere: `a.b` for `from a import b` too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which package is meant"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def test_the_modules_are_found() -> None:
    assert {"runtime/session.py", "runtime/samplers/top_k.py", *LIGHT_GRAPHS} <= set(
        names("runtime", "graphs")
    )
    assert len(names("exporter")) > 20


@pytest.mark.parametrize("module", names("runtime"))
def test_runtime_imports_what_serving_needs(module: str) -> None:
    allowed = ["numpy", "tokenizers", "runtime", *LIGHT_MODULES]
    if module in USERS_OF_ONNXRUNTIME:
        allowed.append("onnxruntime")
    found = set(imports(REPOSITORY / module))
    assert [n for n in sorted(found) if not is_standard(n) and not is_within(n, *allowed)] == []


def test_which_files_import_onnxruntime() -> None:
    users = [m for m in names("runtime") if is_importing(m, "onnxruntime")]
    assert users == USERS_OF_ONNXRUNTIME


def is_importing(module: str, package: str) -> bool:
    return any(is_within(name, package) for name in imports(REPOSITORY / module))


@pytest.mark.parametrize("module", names("graphs"))
def test_graphs_import_no_other_package_of_this_project(module: str) -> None:
    found = set(imports(REPOSITORY / module))
    assert [n for n in sorted(found) if is_within(n, "exporter", "runtime", "bench", "tests")] == []
    allowed = ("graphs",) if module in LIGHT_GRAPHS else ("graphs", "numpy", "onnx", "onnx_ir")
    assert [n for n in sorted(found) if not is_standard(n) and not is_within(n, *allowed)] == []


@pytest.mark.parametrize("module", LIGHT_GRAPHS)
def test_what_runtime_takes_from_graphs_stays_light(module: str) -> None:
    """Neither leads to a module of `graphs` that needs onnx."""
    found = [name for name in imports(REPOSITORY / module) if is_within(name, "graphs")]
    assert [name for name in found if not is_within(name, *LIGHT_MODULES)] == []


def test_only_the_exporter_and_what_measures_it_import_it() -> None:
    users = {m.partition("/")[0] for m in names(*PACKAGES) if is_importing(m, "exporter")}
    assert users <= {"exporter", "bench", "tests"}
    assert "exporter" in users


def test_tests_of_the_light_packages_need_no_more_than_serving_does() -> None:
    """Where they need more, they import it in a fixture or through `pytest.importorskip`."""
    allowed = (
        "numpy",
        "tokenizers",
        "onnxruntime",
        "pytest",
        "hypothesis",
        "runtime",
        "graphs",
        "tests",
    )
    modules = ["tests/conftest.py", *(m for m in names("tests") if m.startswith("tests/runtime/"))]
    modules += ["tests/graphs/test_contract.py", "tests/graphs/test_manifest.py"]
    for module in modules:
        found = [n for n in imports(REPOSITORY / module) if not is_standard(n)]
        assert [n for n in found if not is_within(n, *allowed)] == [], module
