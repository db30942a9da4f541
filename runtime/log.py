"""What is worth knowing and no reason to warn, for whoever listens to the logger `runtime`."""

from __future__ import annotations


def tell(message: str) -> None:
    """Logs a message at the level INFO."""
    # Seldom needed, and importing it takes milliseconds of every start.
    import logging

    logging.getLogger("runtime").info("%s", message)
