"""Byte-level byte-pair encoding: OPT's own, and that of any other OPT checkpoint.

The vocabulary maps byte-level token strings to ids; the merges give the order of joining (Sennrich
et al., 2016, https://arxiv.org/abs/1508.07909). Text is split into words first: by the GPT-2 pattern
in OPT's own tokenizer, as their `tokenizer.json` says in others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

from graphs.shown import shown
from runtime.system.interruptible_run import run_interruptibly
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

MAX_TEXT_BYTES = 2**21  # of one text when it reaches the model: the library takes up to 440 times that
SHORT_CHARACTERS = 4096  # take no time or memory worth a look
PART_CHARACTERS = 2**16  # that are encoded at a time: some tenths of a second

_BYTE_OF = byte_alphabet()
_SPACE_AFTER_WORD = re.compile(r"(?<=\S) ")


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
        for name in ("_token_of", "_bytes_of"):
            self.__dict__.pop(name, None)

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

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        return {}  # of the tokens that were asked for

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
            raise ValueError(f"token {shown(token)} is not in the vocabulary") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a start or end token.

        Special tokens written in the text become those tokens, as in the Hugging Face tokenizer.
        Characters that the vocabulary has no token for are left out; OPT's own has all bytes.
        """
        return self.encode_batch([text])[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        check: Callable[[], object] | None = None,
        enough: int | None = None,
    ) -> list[list[int]]:
        """`encode` for several texts.

        Args:
            texts: of any length; long ones of OPT's own tokenizer are encoded in parts.
            check: called every now and then; what it raises ends the work.
            enough: tokens of a text after which the rest of it may be left out.
        """
        rows: list[list[int]] = [[] for _ in texts]
        for number, parts in enumerate(self._groups(texts, rows, enough)):
            if number and check is not None:
                check()
            encoded = self._encode([text for _, text in parts], check)
            for (row, _), ids in zip(parts, encoded, strict=True):
                rows[row] += ids
        return rows

    def check_size(self, text: str, tokens: int) -> None:
        """Raises `ValueError` if a text cannot have as few tokens, without encoding it.

        So has one that is longer than all of them together could be. Where steps of a `tokenizer.json`
        may lengthen text or leave it out, that tells little; what remains is a bound on the memory that
        encoding takes.
        """
        if len(text) <= SHORT_CHARACTERS:
            return
        pipeline = self._pipeline
        most = int(min(tokens * pipeline.bytes_per_token, MAX_TEXT_BYTES / pipeline.effect.growth))
        size = len(text) if text.isascii() or len(text) > most else len(text.encode())
        if size > most:
            raise ValueError(f"{size:,} bytes or more, and {tokens} tokens stand for at most {most:,}")

    def _groups(
        self, texts: Sequence[str], rows: list[list[int]], enough: int | None
    ) -> Iterator[list[tuple[int, str]]]:
        """Parts of texts, each with its text's number, that are to be encoded at a time."""
        group: list[tuple[int, str]] = []
        room = PART_CHARACTERS
        for row, text in enumerate(texts):
            for part in self._parts(text):
                if enough is not None and len(rows[row]) >= enough:
                    break
                group.append((row, part))
                room -= len(part)
                if room <= 0:
                    yield group
                    group, room = [], PART_CHARACTERS
        if group:
            yield group

    def _parts(self, text: str) -> Iterator[str]:
        """A text cut where its words are split in any case."""
        start = 0
        if self._pipeline.splits_at_spaces:
            while cut := _SPACE_AFTER_WORD.search(text, start + PART_CHARACTERS):
                yield text[start : cut.start()]
                start = cut.start()
        yield text[start:] if start else text

    def _encode(self, texts: list[str], check: Callable[[], object] | None) -> list[list[int]]:
        pipeline = self._pipeline
        rows: list[list[int]] = []

        def run() -> None:
            with library_errors("the text, or the tokenizer for it,"):
                encodings = pipeline.backend.encode_batch(texts, add_special_tokens=False)
            rows.extend(encoding.ids for encoding in encodings)

        # Of a stranger's file even a short text may take long: its regular expressions.
        if check is not None and (pipeline.is_own_file or sum(map(len, texts)) > SHORT_CHARACTERS):
            run_interruptibly(run, None, check)
        else:
            run()
        limit = pipeline.id_limit
        return rows if limit is None else [[i for i in row if i < limit] for row in rows]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; special and added tokens give their own spelling.

        OPT's embedding has a few more rows than its vocabulary has tokens: those stand for nothing.
        """
        data = self._bytes_of.get(token_id)
        if data is None:
            token = self._token_of.get(int(token_id))
            if token is None:
                return b""
            data = self._bytes_of[int(token_id)] = self._bytes(token, token_id)
        return data

    def _bytes(self, token: str, token_id: int) -> bytes:
        if token_id in self._pipeline.spelled:
            return token.encode()
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:  # a token in plain text, such as "<unk>" with a space in it
            return token.encode()

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        skipped = frozenset(self.special_token_ids if skip_special_tokens else ())
        return b"".join(self.token_bytes(i) for i in ids if i not in skipped).decode(errors="replace")
