"""The examples in keras-hub's docstrings, taken from its installed source and run against this project.

The code runs as it stands there: only `keras_hub` is another name space and presets have another name.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PRESET_NAMES = ("opt_125m_en", "opt_base_en", "gpt2_base_en", "mistral_instruct_7b_en")
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def example(module: str, class_name: str, number: int = 0) -> str:
    """One of the Python blocks in a class's docstring.

    Args:
        module: file below `keras_hub/src`, such as `models/opt/opt_backbone.py`.
        class_name: class in it.
        number: of the block, from 0.
    """
    return examples(module, class_name)[number]


def examples(module: str, class_name: str) -> list[str]:
    """All Python blocks in a class's docstring; the file is read, not imported."""
    spec = importlib.util.find_spec("keras_hub")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], "src", module).read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return _BLOCK.findall(ast.get_docstring(node) or "")
    raise AssertionError(f"{module} has no class {class_name}")


def correct(code: str, corrections: Mapping[str, str]) -> str:
    """The code with pieces of it replaced, each of which is there once."""
    for wrong, right in corrections.items():
        assert code.count(wrong) == 1, wrong
        code = code.replace(wrong, right)
    return code


def run_example(code: str, preset: Path) -> SimpleNamespace:
    """Runs a block, with this project for keras-hub.

    Args:
        code: the block.
        preset: folder that stands for the presets that keras-hub's documentation names.

    Returns:
        The names that the block has assigned, and `values`, those of its bare expressions.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    import exporter
    from runtime import samplers

    for name in PRESET_NAMES:
        code = code.replace(f'"{name}"', repr(str(preset)))
    tree = ast.parse(code)
    for node in tree.body:
        if isinstance(node, ast.Expr):
            keep = ast.Name("_keep", ast.Load())
            node.value = ast.Call(keep, [node.value], [])
    values: list[Any] = []
    names: dict[str, Any] = {
        "np": np,
        "tf": tf,
        "keras": keras,
        "keras_hub": SimpleNamespace(models=exporter, samplers=samplers),
        "_keep": values.append,
    }
    exec(compile(ast.fix_missing_locations(tree), "<example>", "exec"), names)
    return SimpleNamespace(**{**names, "values": values})
