"""Byte-level byte-pair encoding as OPT was trained with.

The vocabulary maps byte-level token strings to ids; the merges give the order of joining (Sennrich
et al., 2016, https://arxiv.org/abs/1508.07909). Text is split into words by the GPT-2 pattern first.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

START_TOKEN = "</s>"
END_TOKEN = "</s>"
PAD_TOKEN = "<pad>"

VOCABULARY_FILE = "vocabulary.json"
MERGES_FILE = "merges.txt"


def byte_alphabet() -> dict[str, int]:
    """The GPT-2 alphabet: each of the 256 bytes by the printable character that stands for it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(hidden)})
    return alphabet


_BYTE_OF = byte_alphabet()


class Tokenizer:
    """Turns text into OPT token ids and back.

    Args:
        vocabulary: token string to id, or the path of a JSON file that holds it.
        merges: merge rules `"a b"` in order of rank, or the path of a file with one a line.

    Attributes:
        start_token_id, end_token_id, pad_token_id: ids of `</s>`, `</s>` and `<pad>`.

    Raises:
        ValueError: if the vocabulary lacks `</s>` or `<pad>`, an id is negative or given twice, or a
            merge rule is not two tokens.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int] | str | Path,
        merges: Iterable[str] | str | Path,
    ) -> None:
        self.vocabulary = _read_vocabulary(vocabulary)
        self.merges = _read_merges(merges)
        for token in (START_TOKEN, END_TOKEN, PAD_TOKEN):
            if token not in self.vocabulary:
                raise ValueError(
                    f"Cannot find special token {token!r} in the vocabulary of "
                    f"{len(self.vocabulary)} tokens. Add it: OPT starts and ends text with "
                    f"{END_TOKEN!r} and pads with {PAD_TOKEN!r}."
                )
        self.start_token_id = self.vocabulary[START_TOKEN]
        self.end_token_id = self.vocabulary[END_TOKEN]
        self.pad_token_id = self.vocabulary[PAD_TOKEN]
        self._token_of = {i: token for token, i in self.vocabulary.items()}
        if len(self._token_of) != len(self.vocabulary):
            raise ValueError("the vocabulary gives one id to two tokens")

        # A vocabulary may leave out what its merges only pass through ("ui" on the way to "quick").
        # Those get ids past the end here and are dropped from the output, as unknown characters are.
        self._limit = max(self._token_of) + 1
        pairs = [_split_rule(rule) for rule in self.merges]
        full = dict(self.vocabulary)
        for a, b in pairs:
            for token in (a, b, a + b):
                full.setdefault(token, len(full) + self._limit)
        self._has_passing_tokens = len(full) > len(self.vocabulary)
        self._backend = tokenizers.Tokenizer(models.BPE(vocab=full, merges=pairs))
        # Two components are GPT-2's: the split pattern and the byte alphabet.
        self._backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self._backend.add_special_tokens([END_TOKEN, PAD_TOKEN])

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Reads `vocabulary.json` and `merges.txt`, which `save` writes."""
        return cls(Path(folder, VOCABULARY_FILE), Path(folder, MERGES_FILE))

    def save(self, folder: str | Path) -> list[str]:
        """Writes `vocabulary.json` and `merges.txt` into a folder; returns the file names."""
        text = json.dumps(self.vocabulary, ensure_ascii=False)
        Path(folder, VOCABULARY_FILE).write_text(text, encoding="utf-8")
        lines = "".join(f"{rule}\n" for rule in self.merges)
        Path(folder, MERGES_FILE).write_text(lines, encoding="utf-8")
        return [VOCABULARY_FILE, MERGES_FILE]

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of the special tokens, each once."""
        return tuple(sorted({self.start_token_id, self.end_token_id, self.pad_token_id}))

    def vocabulary_size(self) -> int:
        """Number of tokens; ids may leave gaps, so the largest id can be higher."""
        return len(self.vocabulary)

    def id_to_token(self, token_id: int) -> str:
        """The token string of an id; `ValueError` if there is none."""
        try:
            return self._token_of[int(token_id)]
        except KeyError:
            raise ValueError(
                f"token id {token_id} is not in the vocabulary (ids 0 to {self._limit - 1})"
            ) from None

    def token_to_id(self, token: str) -> int:
        """The id of a token string; `ValueError` if there is none."""
        try:
            return self.vocabulary[token]
        except KeyError:
            raise ValueError(f"token {token!r} is not in the vocabulary") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a start or end token.

        `</s>` and `<pad>` written in the text become those tokens, as in the Hugging Face tokenizer.
        Characters that the vocabulary has no token for are left out; OPT's own has all bytes.
        """
        return self._known(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for several texts."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [self._known(encoding.ids) for encoding in encodings]

    def _known(self, ids: list[int]) -> list[int]:
        return [i for i in ids if i < self._limit] if self._has_passing_tokens else ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; special tokens give their own spelling.

        OPT's embedding has a few more rows than its vocabulary has tokens: those stand for nothing.
        """
        token = self._token_of.get(int(token_id), "")
        if token_id in self.special_token_ids:
            return token.encode()
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:  # an added token in plain text, such as "<unk>" with a space in it
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


def _read_vocabulary(vocabulary: Mapping[str, int] | str | Path) -> dict[str, int]:
    if isinstance(vocabulary, (str, Path)):
        source = f" in {vocabulary}"
        try:
            vocabulary = json.loads(Path(vocabulary).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"the vocabulary{source} is not JSON: {error}") from None
    else:
        source = ""
    if not isinstance(vocabulary, Mapping):
        raise ValueError(
            f"the vocabulary{source} must map token strings to ids, got {type(vocabulary).__name__}"
        )
    for token, token_id in vocabulary.items():
        if not isinstance(token, str) or type(token_id) is not int or token_id < 0:
            raise ValueError(f"the vocabulary{source} maps {token!r} to {token_id!r}, not to an id")
    return dict(vocabulary)


def _read_merges(merges: Iterable[str] | str | Path) -> list[str]:
    if isinstance(merges, (str, Path)):
        merges = Path(merges).read_text(encoding="utf-8").split("\n")
    # A merge rule never holds a line end, but may hold other Unicode white space: strip "\r" only.
    rules = [str(rule).rstrip("\r") for rule in merges]
    return [rule for rule in rules if rule and not rule.startswith("#version:")]


def _split_rule(rule: str) -> tuple[str, str]:
    parts = rule.split(" ")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"a merge rule must be two tokens with a space between, got {rule!r}")
    return parts[0], parts[1]
