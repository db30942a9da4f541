"""What an export tells of its tokenizer, and whether the bundle's reads and writes text like it."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import ExportError
from runtime.tokenization.tokenizer import Tokenizer

NO_TOKENIZER = "none: the bundle takes token ids only; --tokenizer FOLDER adds one"
MAX_PROBED = 200  # added tokens that are tried in text
PROBES = (
    "",
    "Hello, world! It's 12:30.",
    "  two  spaces \n\n\ta tab ",
    "na\u00efve caf\u00e9 e\u0301 \u4f60\u597d \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2603\ufe0f \u00a0\u3000\ufffd\x00",
)


def describe_tokenizer(tokenizer: Tokenizer | None, ends: tuple[int, ...] | None) -> str:
    """One line: kind, size, the tokens that have a meaning, and how many are found whole in text.

    Args:
        tokenizer: of the bundle.
        ends: ids that end a text, told where they are not the tokenizer's end token alone.
    """
    if tokenizer is None:
        return NO_TOKENIZER + (f"; texts end at {_listed(ends)}" if ends else "")
    kind = "a tokenizer.json" if tokenizer.is_own_file else "OPT's own"
    special = {
        "start": tokenizer.start_token_id,
        "end": tokenizer.end_token_id,
        "padding": tokenizer.pad_token_id,
    }
    named = [
        f"{name} none" if i is None else f"{name} {tokenizer.id_to_token(i)!r:.40} ({i})"
        for name, i in special.items()
    ]
    line = f"{kind}, {tokenizer.vocabulary_size()} tokens; {', '.join(named)}"
    line += f"; {len(tokenizer.added_token_ids)} added tokens"
    other = ends is not None and ends != (tokenizer.end_token_id,)
    return line + (f"; texts end at {_listed(ends or ())}" if other else "")


def end_notices(tokenizer: Tokenizer | None, ends: tuple[int, ...] | None) -> tuple[str, ...]:
    """Tells where the tokenizer's own end token does not end a text."""
    if tokenizer is None or ends is None or tokenizer.end_token_id in ends:
        return ()
    end = tokenizer.end_token_id
    return (
        f"the tokenizer's end token {tokenizer.id_to_token(end)!r:.80} ({end}) does not end a text: "
        f"the model's configuration gives {_listed(ends)}, which counts, as in transformers",
    )


def check_ids(tokenizer: Tokenizer, rows: int, name: str) -> None:
    """A text may become any id of its tokenizer, and each needs a row of the model's table.

    Raises:
        ExportError: naming the token of the largest id.
    """
    token = max(tokenizer.vocabulary, key=tokenizer.vocabulary.__getitem__)
    if (last := tokenizer.vocabulary[token]) >= rows:
        raise ExportError(
            f"the tokenizer of {name} has ids up to {last}, {token!r:.80}, and the model has rows for "
            f"ids up to {rows - 1}; export it with the tokenizer that it was trained with, by "
            "--tokenizer FOLDER"
        )


def verify_text(folder: Path, tokenizer: Tokenizer) -> None:
    """Compares the bundle's tokenizer, as a server reads it, with the one that was exported.

    Raises:
        ExportError: naming the text that differs.
    """
    try:
        written = Tokenizer.from_folder(folder)
    except (OSError, ValueError) as error:
        raise ExportError(f"the written bundle failed verification: its tokenizer: {error}") from error
    step = max(1, len(tokenizer.added_token_ids) // MAX_PROBED)
    added = [tokenizer.id_to_token(i) for i in tokenizer.added_token_ids[::step]]
    texts = [*PROBES, *(text for token in added for text in (token, f"a {token} b", f"a{token}b\n"))]
    special = ("start_token_id", "end_token_id", "pad_token_id", "special_token_ids")
    for name in special:
        given, wanted = (getattr(one, name) for one in (written, tokenizer))
        if given != wanted:
            raise ExportError(
                f"the written bundle failed verification: its {name} is {given!r:.80}, not "
                f"{wanted!r:.80}"
            )
    rows = zip(texts, tokenizer.encode_batch(texts), written.encode_batch(texts), strict=True)
    for text, ids, others in rows:
        same = ids == others and all(
            tokenizer.decode(ids, skip_special_tokens=skip)
            == written.decode(ids, skip_special_tokens=skip)
            for skip in (False, True)
        )
        if not same:
            raise ExportError(
                f"the written bundle failed verification: its tokenizer reads {text!r:.80} as other "
                "tokens than the model's, or writes them as another text"
            )


def _listed(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids[:8])) + (" …" if len(ids) > 8 else "")
