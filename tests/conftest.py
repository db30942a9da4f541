"""Options, skips and fixtures that all tests share.

Nothing here needs more than serving does, so that the tests of `runtime/` run without the exporter.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

os.environ["KERAS_BACKEND"] = "tensorflow"

# A shell starts what runs in its background with Ctrl-C ignored, and tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from runtime import Generator
    from runtime.bundle import Bundle
    from runtime.session import SessionDecoder

REPOSITORY = Path(__file__).parents[1]
TOY_BUNDLE = Path(__file__).parent / "data" / "toy_bundle"
OPT_IN = ("slow", "network", "gpu")
REFERENCE_PACKAGES = ("keras_hub", "transformers", "torch", "peft")

# The same examples in every run, and none of them failed for a busy machine.
settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    for name in OPT_IN:
        parser.addoption(f"--{name}", action="store_true", help=f"run the tests marked {name} too")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are CPUs: many tests wait, for a child process or for a time to pass."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {name: reason for name in (*OPT_IN, "reference") if (reason := _reason(name, config))}
    for item in items:
        for name, reason in reasons.items():
            if item.get_closest_marker(name) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks through all of TensorFlow again."""
    gc.collect()
    gc.freeze()


def _reason(name: str, config: pytest.Config) -> str | None:
    """Why tests with a marker are skipped; `None` if they run."""
    if name == "reference":
        missing = [p for p in REFERENCE_PACKAGES if importlib.util.find_spec(p) is None]
        return f"needs {', '.join(missing)}: pip install 'opt-onnx[reference]'" if missing else None
    if not config.getoption(f"--{name}"):
        return f"marked {name}: run with --{name}"
    return _missing_gpu() if name == "gpu" else None


def _missing_gpu() -> str | None:
    """What a GPU would need, as a user is told."""
    from runtime.errors import RuntimeMissingError

    try:
        from runtime.devices import choose_device

        choose_device("cuda", "cuda", "fp16")
    except RuntimeMissingError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def toy_bundle() -> Path:
    """A random OPT of two layers that `data/make_toy_bundle.py` made; not to be altered."""
    return TOY_BUNDLE


@pytest.fixture
def toy_bundle_copy(tmp_path: Path) -> Path:
    """A copy of the toy bundle that a test may alter."""
    return Path(shutil.copytree(TOY_BUNDLE, tmp_path / "toy_bundle"))


@pytest.fixture(scope="session")
def bundle(toy_bundle: Path) -> Bundle:
    """The toy bundle, loaded."""
    from runtime.bundle import load_bundle

    return load_bundle(toy_bundle)


@pytest.fixture(scope="session")
def decoder(bundle: Bundle) -> SessionDecoder:
    """The toy model on ONNX Runtime."""
    from runtime.session import SessionDecoder

    return SessionDecoder(bundle, threads=1)


@pytest.fixture
def generator(bundle: Bundle, decoder: SessionDecoder) -> Generator:
    """A generator over the toy bundle; a test may compile it as it likes."""
    from runtime import Generator

    defaults = bundle.manifest.generation
    return Generator(decoder, bundle.tokenizer, defaults.sampler, defaults.max_length)
