"""Byte-level byte-pair encoding: OPT's own, and that of any other OPT checkpoint.

The vocabulary maps byte-level token strings to ids; the merges give the order of joining (Sennrich
et al., 2016, https://arxiv.org/abs/1508.07909). Text is split into words first: by the GPT-2 pattern
in OPT's own tokenizer, as their `tokenizer.json` says in others.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

from runtime.text_files import MAX_TOKENIZER_BYTES, read_text
from runtime.tokenization.pipeline import (
    MERGES_FILE,
    SPECIAL_TOKENS_FILE,
    VOCABULARY_FILE,
    Pipeline,
    bpe_pipeline,
    read_files,
)
from runtime.tokenization.tokenizer_json import TOKENIZER_FILE, library_errors
from runtime.tokenization.vocabulary import byte_alphabet, read_merges, read_vocabulary

_BYTE_OF = byte_alphabet()


class Tokenizer:
    """Turns text into token ids and back.

    The constructor makes OPT's own tokenizer; `from_files` and `from_folder` also that of a
    `tokenizer.json`, run as it is.

    Args:
        vocabulary: token string to id, or the path of a JSON file that holds it.
        merges: merge rules `"a b"` in order of rank, or the path of a file with one a line.

    Raises:
        ValueError: if the vocabulary lacks `</s>` or `<pad>`, an id is negative or given twice, or a
            merge rule is not two tokens.
    """

    _read: Callable[[], Pipeline] | None = None  # see `deferred`

    def __init__(
        self,
        vocabulary: Mapping[str, int] | str | Path,
        merges: Iterable[str] | str | Path,
    ) -> None:
        self._set_pipeline(bpe_pipeline(read_vocabulary(vocabulary), read_merges(merges)))

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> Self:
        """The tokenizer of what `files` gives: text by file name.

        Raises:
            ValueError: if the files are of no known kind, or not valid.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._set_pipeline(read_files(files))
        return tokenizer

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Reads the files that `save` writes."""
        has_pipeline = Path(folder, TOKENIZER_FILE).is_file()
        plain = (VOCABULARY_FILE, MERGES_FILE)
        names = (TOKENIZER_FILE, SPECIAL_TOKENS_FILE) if has_pipeline else plain
        files = {name: read_text(Path(folder, name), MAX_TOKENIZER_BYTES) for name in names}
        return cls.from_files(files)

    @classmethod
    def deferred(cls, read: Callable[[], Pipeline]) -> Self:
        """A tokenizer that is read when it is first used: a large one takes a tenth of a second."""
        tokenizer = cls.__new__(cls)
        tokenizer._set_pipeline(None)
        tokenizer._read = read
        return tokenizer

    def files(self) -> dict[str, str]:
        """All there is to know of the tokenizer, as text by file name.

        `vocabulary.json` and `merges.txt`, or `tokenizer.json` and `special_tokens.json`.
        """
        return self._pipeline.files()

    def save(self, folder: str | Path) -> list[str]:
        """Writes `files` into a folder; returns the file names."""
        files = self.files()
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        return list(files)

    def _set_pipeline(self, pipeline: Pipeline | None) -> None:
        self._loaded = pipeline
        self.__dict__.pop("_token_of", None)

    @property
    def _pipeline(self) -> Pipeline:
        if self._loaded is None and self._read is not None:
            self._set_pipeline(self._read())
        if self._loaded is None:
            raise ValueError(
                "No vocabulary has been set for the tokenizer: pass `vocabulary` and `merges` when "
                "making it, or call set_vocabulary_and_merges()"
            )
        return self._loaded

    @cached_property
    def _token_of(self) -> dict[int, str]:
        return {i: token for token, i in self.vocabulary.items()}

    @property
    def is_plain(self) -> bool:
        """Whether vocabulary and merges say all: OPT's own tokenizer without options."""
        return self._pipeline.is_plain

    @property
    def is_own_file(self) -> bool:
        """Whether it is a whole `tokenizer.json`, which Keras cannot read, and not OPT's own."""
        return self._pipeline.is_own_file

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token string to id."""
        return self._pipeline.vocabulary

    @property
    def merges(self) -> list[str]:
        """Merge rules in order of rank."""
        return self._pipeline.merges

    @property
    def start_token_id(self) -> int | None:
        """The token before every prompt: `</s>` for OPT; `None` if prompts begin with nothing."""
        return self._pipeline.special.start_token_id

    @property
    def end_token_id(self) -> int:
        """The token that ends a text."""
        return self._pipeline.special.end_token_id

    @property
    def pad_token_id(self) -> int:
        """The token that fills rows."""
        return self._pipeline.special.pad_token_id

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, each once, in order."""
        return self._pipeline.special_token_ids

    @property
    def added_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that are found whole in text and stand for their spelling, in order."""
        return tuple(sorted(self._pipeline.spelled))

    def vocabulary_size(self) -> int:
        """Number of tokens; ids may leave gaps, so the largest id can be higher."""
        return len(self.vocabulary)

    def id_to_token(self, token_id: int) -> str:
        """The token string of an id; `ValueError` if there is none."""
        try:
            return self._token_of[int(token_id)]
        except KeyError:
            raise ValueError(
                f"token id {token_id} is not in the vocabulary (ids 0 to {max(self._token_of)})"
            ) from None

    def token_to_id(self, token: str) -> int:
        """The id of a token string; `ValueError` if there is none."""
        try:
            return self.vocabulary[token]
        except KeyError:
            raise ValueError(f"token {token!r} is not in the vocabulary") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a start or end token.

        Special tokens written in the text become those tokens, as in the Hugging Face tokenizer.
        Characters that the vocabulary has no token for are left out; OPT's own has all bytes.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for several texts."""
        pipeline = self._pipeline
        with library_errors("the text, or the tokenizer for it,"):
            encodings = pipeline.backend.encode_batch(list(texts), add_special_tokens=False)
        rows: list[list[int]] = [encoding.ids for encoding in encodings]
        limit = pipeline.id_limit
        return rows if limit is None else [[i for i in row if i < limit] for row in rows]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; special and added tokens give their own spelling.

        OPT's embedding has a few more rows than its vocabulary has tokens: those stand for nothing.
        """
        token = self._token_of.get(int(token_id), "")
        if token_id in self._pipeline.spelled:
            return token.encode()
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:  # a token in plain text, such as "<unk>" with a space in it
            return token.encode()

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        decoder = StreamDecoder(self, skip_special_tokens=skip_special_tokens)
        return "".join([*map(decoder.push, ids), decoder.finish()])


class StreamDecoder:
    """Decodes tokens one by one, holding back bytes until they make whole characters."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = frozenset(tokenizer.special_token_ids if skip_special_tokens else ())
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes; often one word, sometimes nothing."""
        if int(token_id) in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left of an unfinished character: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)
