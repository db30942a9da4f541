"""One token as log-probabilities show it."""

from __future__ import annotations

from runtime.tokenization.tokenizer import Tokenizer


def token_text(tokenizer: Tokenizer, token_id: int) -> tuple[str, bytes]:
    r"""A token's text to show, and its bytes: OpenAI's `token` and `bytes`.

    A token that is no whole characters is shown as OpenAI's completions show it, `bytes:\xe2\x80`, so
    that two of them have two texts. Special tokens are spelled out, whether a text leaves them out or
    not; rows of the embedding beyond the vocabulary have neither text nor bytes.
    """
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode(), data
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data
