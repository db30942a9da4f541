"""`python -m bench.lm_eval`: the command line of lm-evaluation-harness, bundles as `--model opt-onnx`.

The harness finds no models by entry points (0.4.13), so this registers the class and hands over.
"""

from __future__ import annotations

import logging

from runtime.command import run_command

NAME = "opt-onnx"


def register() -> None:
    """Makes the name known to the harness; the class is imported when it is used.

    Raises:
        ImportError: if the harness is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401  (which registers its own only where there are none yet)
        from lm_eval.api.registry import model_registry
    except ModuleNotFoundError as error:
        raise ImportError(
            f"lm_eval is missing, or a part of it ({error}): pip install 'opt-onnx[eval]'"
        ) from None
    if NAME not in model_registry:
        model_registry.register(NAME, target="bench.lm_eval_model:OptOnnxLM")


def main() -> int:
    """The harness's command, whose arguments are this process's; returns an exit code."""
    return run_command("lm_eval", _evaluate, None)


def _evaluate(_: object) -> None:
    register()
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except Exception:
        # A person is told one sentence; who writes a task sets LMEVAL_LOG_LEVEL=DEBUG.
        logging.getLogger("lm_eval").debug("where it was raised", exc_info=True)
        raise


if __name__ == "__main__":
    raise SystemExit(main())
