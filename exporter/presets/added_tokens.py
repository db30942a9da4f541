"""What the older files of a Hugging Face folder say of its tokenizer, merged as transformers does.

Since 4.34 `added_tokens_decoder` in `tokenizer_config.json` lists every token that is found whole in
text, and is believed alone. Folders from before have the ids of new tokens in `added_tokens.json` and
the special ones in `special_tokens_map.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from exporter.errors import PresetError
from exporter.presets.json_file import read_json_if_there
from runtime.text_files import MAX_TOKENIZER_BYTES
from runtime.tokenization.vocabulary import MAX_TOKEN_ID

OPTIONS_FILE = "tokenizer_config.json"
SPECIAL_MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
DECODER = "added_tokens_decoder"
# The special tokens that have a name of their own in transformers.
NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTS = ("additional_special_tokens", "extra_special_tokens")  # up to transformers 4, and since 5
_ID = re.compile("0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found whole in text, before it is split: `tokenizers.AddedToken`.

    Attributes:
        content: its text.
        single_word: whether it is found only where no letter or digit is beside it.
        lstrip, rstrip: whether it takes the white space before or after it along.
        normalized: whether it is looked for in the text as normalizers leave it.
        special: whether it is left out of texts.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True

    @classmethod
    def read(cls, value: Any, where: str, *, special: bool = True) -> AddedToken:
        """From a string or an object of its attributes; `special` is that of one that says nothing.

        Raises:
            PresetError: naming `where` it is not valid.
        """
        values = value if isinstance(value, dict) else {"content": value}
        special = values.get("special", special)
        flags = {
            flag.name: values.get(flag.name, not special if flag.name == "normalized" else False)
            for flag in fields(cls)
            if flag.type == "bool"
        } | {"special": special}
        content = values.get("content")
        if not isinstance(content, str) or not all(type(flag) is bool for flag in flags.values()):
            raise PresetError(f"{where} is no token, a string or an object of one: {value!r:.200}")
        return cls(content, **flags)

    def to_json(self, token_id: int) -> dict[str, Any]:
        """As an element of `added_tokens` in `tokenizer.json`."""
        return {"id": token_id, **asdict(self)}


@dataclass(frozen=True)
class TokenizerOptions:
    """The options of a tokenizer.

    Attributes:
        values: of `tokenizer_config.json`.
        named: special tokens by name, `eos_token` say.
        extra: further special tokens.
        added: tokens found whole in text, by id.
        is_given: whether there is any of the files.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, AddedToken] = field(default_factory=dict)
    extra: tuple[AddedToken, ...] = ()
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    is_given: bool = False

    def special(self) -> dict[str, AddedToken]:
        """All special tokens by content."""
        return {token.content: token for token in (*self.named.values(), *self.extra)}

    def with_defaults(self, names: Mapping[str, str]) -> TokenizerOptions:
        """With tokens for the names that `tokenizer_config.json` does not mention."""
        missing = {
            name: AddedToken(content) for name, content in names.items() if name not in self.values
        }
        return replace(self, named={**missing, **self.named})


def read_options(folder: Path) -> TokenizerOptions:
    """The options that the files of a folder give together.

    Raises:
        PresetError: naming the file that is not valid.
    """
    path, added_path = folder / OPTIONS_FILE, folder / ADDED_FILE
    values = read_json_if_there(folder, OPTIONS_FILE, MAX_TOKENIZER_BYTES)
    if DECODER in values:
        where, special = f"{path}: {DECODER}", values
        if not isinstance(values[DECODER], dict):
            raise PresetError(f"{where} must be an object, got {type(values[DECODER]).__name__}")
        listed = [
            (_token_id(key, where), AddedToken.read(value, f"{where}[{key!r:.40}]", special=False))
            for key, value in values[DECODER].items()
        ]
    else:
        where = str(added_path)
        special = {**values, **read_json_if_there(folder, SPECIAL_MAP_FILE, MAX_TOKENIZER_BYTES)}
        new = read_json_if_there(folder, ADDED_FILE, MAX_TOKENIZER_BYTES)
        listed = [
            (_token_id(i, where), AddedToken(name, normalized=True, special=False))
            for name, i in new.items()
        ]
    named, extra = _special_tokens(special, str(path if special is values else folder))
    known = {} if DECODER in values else {token.content: token for token in (*named.values(), *extra)}
    added = {token_id: known.get(token.content, token) for token_id, token in listed}
    if len({token.content for token in added.values()}) != len(listed):
        raise PresetError(f"{where} gives one id to two tokens, or two ids to one")
    return TokenizerOptions(values, named, extra, added, bool(special or added))


def _token_id(value: Any, where: str) -> int:
    if type(value) is int or (isinstance(value, str) and _ID.fullmatch(value)):
        token_id = int(value)
        if 0 <= token_id <= MAX_TOKEN_ID:
            return token_id
    raise PresetError(f"{where} must have ids of 0 to {MAX_TOKEN_ID}, got {value!r:.200}")


def _rank(name: str) -> int:
    """The order in which transformers gives ids to tokens that have none."""
    return NAMES.index(name) if name in NAMES else len(NAMES)


def _special_tokens(
    values: Mapping[str, Any], where: str
) -> tuple[dict[str, AddedToken], tuple[AddedToken, ...]]:
    """Special tokens with a name, which newer models may have made up, and those without."""
    named = {
        name: AddedToken.read(value, f"{where}: {name}")
        for name, value in sorted(values.items(), key=lambda item: _rank(item[0]))
        if value is not None
        and (name in NAMES or (name.endswith("_token") and isinstance(value, (str, dict))))
    }
    extra = []
    for name in LISTS:
        found = values.get(name) or []
        if not isinstance(found, (list, dict)):
            raise PresetError(f"{where}: {name} must be a list of tokens, got {found!r:.200}")
        for value in found.values() if isinstance(found, dict) else found:
            extra.append(AddedToken.read(value, f"{where}: {name}"))
    return named, tuple(dict.fromkeys(extra))
