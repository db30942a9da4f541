"""The way from text to token ids: a `tokenizers` pipeline and the tokens that have a meaning.

There are two kinds. OPT's own is a vocabulary with merge rules under GPT-2's split (Radford et al.,
2019), in `vocabulary.json` and `merges.txt`. Any other byte-level BPE, Galactica's say, is the whole
`tokenizer.json` of the `tokenizers` library, with the ids of its special tokens in a file beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from graphs.shown import shown
from graphs.strict_json import parse_json
from runtime.tokenization.steps import Effect
from runtime.tokenization.tokenizer_json import (
    TOKENIZER_FILE,
    library_errors,
    merge_rules,
    parse_tokenizer,
)
from runtime.tokenization.vocabulary import (
    byte_alphabet,
    parse_merges,
    parse_vocabulary,
    split_rule,
)

if TYPE_CHECKING:
    import tokenizers  # imported where one is made: work on token ids starts without it

START_TOKEN = "</s>"
END_TOKEN = "</s>"
PAD_TOKEN = "<pad>"

VOCABULARY_FILE = "vocabulary.json"
MERGES_FILE = "merges.txt"
SPECIAL_TOKENS_FILE = "special_tokens.json"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that generation needs.

    Attributes:
        start_token_id: put before every prompt; `None` if prompts begin with nothing.
        end_token_id: ends a text.
        pad_token_id: fills rows.
    """

    start_token_id: int | None
    end_token_id: int
    pad_token_id: int

    @property
    def ids(self) -> set[int]:
        """The ids that there are."""
        return {i for i in (self.start_token_id, self.end_token_id, self.pad_token_id) if i is not None}

    @classmethod
    def from_json(cls, text: str) -> SpecialTokens:
        """From the text of `special_tokens.json`; `ValueError` if it is not as `to_json` writes it."""
        try:
            return cls(**parse_json(text))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{SPECIAL_TOKENS_FILE} is not valid: {error}") from None

    def to_json(self) -> str:
        """The text of `special_tokens.json`."""
        return json.dumps(self.__dict__)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline, its vocabulary and its special tokens.

    Attributes:
        backend: encodes text.
        vocabulary: token string to id, added tokens included.
        merges: merge rules `"a b"` in order of rank.
        special: the special tokens.
        special_token_ids: all tokens that are left out of text, in order.
        spelled: ids of tokens that stand for their own spelling and not for bytes.
        is_plain: whether vocabulary and merges say all there is to say.
        is_own_file: whether it is a `tokenizer.json` and not OPT's own pipeline.
        effect: what the steps before the model may make of a text.
        splits_at_spaces: whether a text may be encoded in parts that begin with the space after a word,
            which gives the same ids.
        id_limit: the backend's ids from here on are no tokens; see `bpe_pipeline`.
    """

    backend: tokenizers.Tokenizer
    vocabulary: dict[str, int]
    merges: list[str]
    special: SpecialTokens
    special_token_ids: tuple[int, ...]
    spelled: frozenset[int]
    is_plain: bool
    is_own_file: bool
    effect: Effect
    splits_at_spaces: bool = False
    id_limit: int | None = None

    @cached_property
    def bytes_per_token(self) -> float:
        """Most bytes of a text that one token may stand for; infinite where text may be left out."""
        if self.id_limit is not None or not byte_alphabet().keys() <= self.vocabulary.keys():
            return math.inf
        sizes = (
            len(token.encode()) if i in self.spelled else len(token)
            for token, i in self.vocabulary.items()
        )
        return self.effect.shrink * max(sizes)

    def files(self) -> dict[str, str]:
        """The files that `read_files` takes, text by name.

        Raises:
            ValueError: if they cannot say what this pipeline does.
        """
        if self.is_plain:
            return self.vocabulary_files()
        if self.id_limit is not None:
            raise ValueError(
                "a vocabulary that lacks tokens of its own merge rules can be saved only without "
                "add_prefix_space and unsplittable_tokens; add the missing tokens"
            )
        special = self.special.to_json()
        return {TOKENIZER_FILE: self.backend.to_str(), SPECIAL_TOKENS_FILE: special}

    def vocabulary_files(self) -> dict[str, str]:
        """`vocabulary.json` and `merges.txt`, text by name."""
        lines = "".join(f"{rule}\n" for rule in self.merges)
        return {VOCABULARY_FILE: json.dumps(self.vocabulary, ensure_ascii=False), MERGES_FILE: lines}


def check_file_names(names: Iterable[str]) -> None:
    """Raises `ValueError` if files of these names are no tokenizer of a known kind."""
    if set(names) not in ({VOCABULARY_FILE, MERGES_FILE}, {TOKENIZER_FILE, SPECIAL_TOKENS_FILE}):
        raise ValueError(f"unknown kind of tokenizer: {shown(sorted(names))}")


def read_files(files: Mapping[str, str]) -> Pipeline:
    """The pipeline of tokenizer files, given as text by name.

    Raises:
        ValueError: if they are of no known kind, or not valid.
    """
    check_file_names(files)
    if VOCABULARY_FILE in files:
        vocabulary = parse_vocabulary(files[VOCABULARY_FILE], f" in {VOCABULARY_FILE}")
        return bpe_pipeline(vocabulary, parse_merges(files[MERGES_FILE]))
    special = SpecialTokens.from_json(files[SPECIAL_TOKENS_FILE])
    return json_pipeline(files[TOKENIZER_FILE], special)


def bpe_pipeline(
    vocabulary: dict[str, int],
    merges: list[str],
    *,
    unsplittable: Iterable[str] = (END_TOKEN, PAD_TOKEN),
    add_prefix_space: bool = False,
) -> Pipeline:
    """OPT's own pipeline over a vocabulary.

    Args:
        vocabulary: token string to id.
        merges: merge rules in order of rank.
        unsplittable: tokens that are found in text before it is split into words.
        add_prefix_space: whether text begins with a space, given or not.

    Raises:
        ValueError: if a special or unsplittable token is not in the vocabulary, an id is given twice,
            or a merge rule is not two tokens.
    """
    for token in (START_TOKEN, END_TOKEN, PAD_TOKEN):
        if token not in vocabulary:
            raise ValueError(
                f"Cannot find special token {token!r} in the vocabulary of "
                f"{len(vocabulary)} tokens. Add it: OPT starts and ends text with "
                f"{END_TOKEN!r} and pads with {PAD_TOKEN!r}."
            )
    unsplittable = list(unsplittable)
    missing = [token for token in unsplittable if token not in vocabulary]
    if missing:
        raise ValueError(f"unsplittable_tokens must be in the vocabulary; {shown(missing)} are not")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise ValueError("the vocabulary gives one id to two tokens")

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pairs = [split_rule(rule) for rule in merges]
    limit = None
    try:
        with library_errors("the vocabulary with its merge rules"):
            model = models.BPE(vocab=vocabulary, merges=pairs)
    except ValueError:  # a rule's token may have no id
        limit = max(vocabulary.values()) + 1
        full = _with_merged(vocabulary, pairs, limit)
        with library_errors("the vocabulary with its merge rules"):
            model = models.BPE(vocab=full, merges=pairs)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    # Found whole, and left out of texts only where they are special.
    special = {START_TOKEN, END_TOKEN, PAD_TOKEN}
    backend.add_tokens(
        [AddedToken(token, normalized=False, special=token in special) for token in unsplittable]
    )
    ids = SpecialTokens(vocabulary[START_TOKEN], vocabulary[END_TOKEN], vocabulary[PAD_TOKEN])
    return Pipeline(
        backend=backend,
        vocabulary=vocabulary,
        merges=merges,
        special=ids,
        special_token_ids=tuple(sorted(ids.ids)),
        spelled=frozenset(ids.ids),
        is_plain=not add_prefix_space and set(unsplittable) == {END_TOKEN, PAD_TOKEN},
        is_own_file=False,
        # Runs of white space are split by what comes after them, words are not.
        splits_at_spaces=not any(character.isspace() for token in unsplittable for character in token),
        effect=Effect(growth=2 if add_prefix_space else 1),
        id_limit=limit,
    )


def _with_merged(
    vocabulary: dict[str, int], pairs: Iterable[tuple[str, str]], limit: int
) -> dict[str, int]:
    """A vocabulary with ids from `limit` on for tokens that only its merge rules name.

    It may leave out what its merges only pass through ("ui" on the way to "quick"). These tokens are
    dropped from the output, as unknown characters are.
    """
    full = dict(vocabulary)
    for a, b in pairs:
        for token in (a, b, a + b):
            full.setdefault(token, len(full) + limit)
    return full


def json_pipeline(text: str, special: SpecialTokens) -> Pipeline:
    """The pipeline of a `tokenizer.json`, run as it is: normalizer, splits, model, added tokens.

    Args:
        text: the file's text.
        special: ids of its special tokens; the file itself does not say what they are for.

    Raises:
        ValueError: if it is no tokenizer, not byte-level BPE, or lacks a special token.
    """
    from tokenizers import Tokenizer

    values, effect = parse_tokenizer(text)
    with library_errors(TOKENIZER_FILE):
        backend = Tokenizer.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    known = set(vocabulary.values())
    # The library counts added tokens on from the number of the others, whatever their ids.
    if len(known) != len(vocabulary):
        raise ValueError(
            f"the library gives added tokens of {TOKENIZER_FILE} the ids of others; write the file "
            "again without gaps in the ids of its vocabulary"
        )
    for name, token_id in special.__dict__.items():
        optional = name == "start_token_id" and token_id is None
        if not optional and (type(token_id) is not int or token_id not in known):
            raise ValueError(
                f"{name} is {shown(token_id)}, no token of {TOKENIZER_FILE} ({len(known)} tokens)"
            )
    added = backend.get_added_tokens_decoder()
    # Not those of `special`: a model's configuration may pad with an ordinary word.
    hidden = [i for i, token in added.items() if token.special]
    return Pipeline(
        backend=backend,
        vocabulary=dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        merges=merge_rules(values),
        special=special,
        special_token_ids=tuple(sorted(hidden)),
        spelled=frozenset(added),
        is_plain=False,
        is_own_file=True,
        effect=effect,
    )
