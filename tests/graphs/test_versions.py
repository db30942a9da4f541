"""Versions of packages that wrote or run a bundle."""

from __future__ import annotations

import importlib.metadata
import platform

from graphs.versions import package_versions


def test_versions_of_what_is_installed() -> None:
    assert package_versions(["pytest", "no-such-package-at-all", "numpy"]) == {
        "python": platform.python_version(),
        "pytest": importlib.metadata.version("pytest"),
        "numpy": importlib.metadata.version("numpy"),
    }
