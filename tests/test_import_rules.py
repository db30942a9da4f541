"""Imports go one way, read from the source: exporter → graphs ← runtime."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("bench", "exporter", "graphs", "runtime", "tests")
USERS_OF_ONNXRUNTIME = ["runtime/onnx_runtime.py"]
USERS_OF_LLGUIDANCE = ["runtime/structured/library.py"]
LIGHT = (
    "contract",
    "manifest",
    "native_path",
    "plain_files",
    "sealed_json",
    "shown",
    "strict_json",
)
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
    if module in USERS_OF_LLGUIDANCE:
        allowed.append("llguidance")
    found = set(imports(REPOSITORY / module))
    assert [n for n in sorted(found) if not is_standard(n) and not is_within(n, *allowed)] == []


def test_which_files_import_onnxruntime() -> None:
    users = [m for m in names("runtime") if is_importing(m, "onnxruntime")]
    assert users == USERS_OF_ONNXRUNTIME


def test_llguidance_is_imported_when_a_grammar_is_compiled() -> None:
    users = [m for m in names(*PACKAGES) if is_importing(m, "llguidance")]
    assert users == USERS_OF_LLGUIDANCE
    tree = ast.parse((REPOSITORY / users[0]).read_text("utf-8"))
    assert not any(
        "llguidance" in ast.unparse(node) for node in tree.body if isinstance(node, ast.Import)
    )


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


def test_the_first_module_of_commands_imports_what_python_has_loaded() -> None:
    tree = ast.parse((REPOSITORY / "runtime/own_packages.py").read_text("utf-8"))
    first = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert [alias.name for node in first for alias in node.names] == ["os", "sys"]
    for package in ("bench", "exporter", "runtime"):
        tree = ast.parse((REPOSITORY / package / "__init__.py").read_text("utf-8"))
        found = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
        lines = [ast.unparse(node) for node in sorted(found, key=lambda node: node.lineno)]
        first = next(line for line in lines if line != "import sys")
        assert first == "from runtime.own_packages import check_packages"


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


def test_an_installation_has_every_module() -> None:
    """setuptools takes folders that have an `__init__.py`; in a clone, Python finds the others too."""
    options = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    find = options["tool"]["setuptools"]["packages"]["find"]
    products = {"bench", "exporter", "graphs", "runtime"}
    assert set(find["include"]) == {f"{name}{end}" for name in products for end in ("", ".*")}
    assert not find["namespaces"]
    for path in sources(*products):
        for folder in path.relative_to(REPOSITORY).parents[:-1]:
            assert (REPOSITORY / folder / "__init__.py").exists(), path


# === Processes ===

PROCESS_MODULE = "runtime/system/child_process.py"
# Other ways to start a process than `subprocess` and `multiprocessing`, which are looked at below.
OTHER_STARTERS = {
    *("runpy", "pty", "_posixsubprocess", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("asyncio.subprocess", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    *("os.system", "os.popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.posix_spawnp"),
    *(f"os.exec{how}" for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *(f"os.spawn{how}" for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
}
SUBPROCESS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}
SPAWNING = ("multiprocessing", "concurrent.futures.ProcessPoolExecutor", "concurrent.futures.process")
CHILD = "runtime.system.child_process"
ENVIRONMENTS = (f"{CHILD}.python_environment", "worker_environment")  # the second is made of the first


def full_names(tree: ast.Module) -> dict[str, str]:
    """What each name that a module imports stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                found[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def process_faults(source: str) -> list[str]:
    """What a module does to start a process in another way than through `runtime.system.child_process`.

    `subprocess` is given `python_command(...)`, or a name that stands for it, and an `env` of
    `python_environment`; what uses multiprocessing uses `safe_environment` too.
    """
    tree = ast.parse(source)
    known = full_names(tree)

    def called(node: ast.AST | None) -> str:
        """The full name of what an expression calls, or of what it is."""
        if isinstance(node, ast.Call):
            return called(node.func)
        if isinstance(node, ast.Attribute):
            return f"{called(node.value)}.{node.attr}"
        return known.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    assigned = {
        target.id: called(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    faults = []
    for node in ast.walk(tree):
        name = called(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""
        if {name, name.rpartition(".")[0]} & OTHER_STARTERS:
            faults.append(name)
        if not isinstance(node, ast.Call) or called(node) not in SUBPROCESS:
            continue
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        command = called(node.args[0] if node.args else options.get("args"))
        if assigned.get(command, command) != f"{CHILD}.python_command" or "shell" in options:
            faults.append(f"another command, line {node.lineno}")
        if called(options.get("env")) not in ENVIRONMENTS:
            faults.append(f"another environment, line {node.lineno}")
    spawning = any(is_within(name, *SPAWNING) for name in known.values())
    if spawning and f"{CHILD}.safe_environment" not in known.values():
        faults.append("multiprocessing without safe_environment")
    return faults


def test_python_is_started_in_one_way() -> None:
    """In any other, the child imports from the working folder."""
    modules = [m for m in names("bench", "exporter", "graphs", "runtime") if m != PROCESS_MODULE]
    found = {module: process_faults((REPOSITORY / module).read_text("utf-8")) for module in modules}
    assert {module: faults for module, faults in found.items() if faults} == {}
    users = [m for m in modules if is_importing(m, "subprocess")]
    assert {"exporter/verification.py", "exporter/checkpoints/h5_check.py"} < set(users)


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'x'])", "another command"),
        ("from subprocess import Popen as p\np('python -m x', shell=True)", "another command"),
        ("import subprocess\ncommand = ['python3']\nsubprocess.call(command)", "another command"),
        ("import os\nos.system('python -c 1')", "os.system"),
        ("from os import execv\nexecv('/usr/bin/python3', [])", "os.execv"),
        ("import os as o\no.posix_spawn('x', [], {})", "os.posix_spawn"),
        ("import runpy\nrunpy.run_module('x')", "runpy"),
        ("import asyncio\nasyncio.create_subprocess_exec('x')", "asyncio.create_subprocess_exec"),
        ("import multiprocessing\nmultiprocessing.Process()", "multiprocessing without"),
        ("from concurrent.futures import ProcessPoolExecutor", "multiprocessing without"),
        (
            f"import subprocess\nfrom {CHILD} import python_command\n"
            "subprocess.run(python_command('-m', 'x'))",
            "another environment",
        ),
    ],
)
def test_another_way_to_start_python_is_found(program: str, fault: str) -> None:
    assert any(fault in found for found in process_faults(program))


def test_the_one_way_is_not_refused() -> None:
    program = (
        f"import subprocess\nfrom {CHILD} import python_command, python_environment\n"
        "command = python_command('-m', 'x')\n"
        "subprocess.run(command, env=python_environment())\n"
        "subprocess.Popen(python_command('-c', ''), env=python_environment())"
    )
    assert process_faults(program) == []
