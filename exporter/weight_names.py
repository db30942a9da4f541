"""Names of the weights that more than one part of an export asks for, as Keras spells them."""

from __future__ import annotations

from graphs.contract import ModelConfig

TOKEN_TABLE = "embeddings/token_embedding/embeddings"
HEAD_TABLE = "head/embeddings"  # where the head is not tied to the token table


def head_table(config: ModelConfig) -> str:
    """Name of the table whose product with the hidden states gives the logits."""
    return TOKEN_TABLE if config.tied_head else HEAD_TABLE
