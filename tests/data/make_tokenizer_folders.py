"""Makes `tokenizer_folders/`: tokenizers that transformers wrote after tokens were added to them.

Run it once by transformers 4.41 and once by the installed one, each in an environment of its own:

    pip install 'transformers==4.41.*' 'numpy<2'
    python tests/data/make_tokenizer_folders.py --fixtures tests/data/tokenizer_folders

It writes one folder for each kind of tokenizer class and of change, named `WRITER-CHANGE`, as
`save_pretrained` does; `legacy` folders are those of before 4.34, which had no `added_tokens_decoder`.
`--fixtures` keeps those of `FIXTURES` only, without white space in their JSON, and puts into each
`expected.json` what `AutoTokenizer` of the same transformers makes of `texts()`: ids, and their text
without special tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

from tokenizers import AddedToken

WORDS = (" quick", " the", " fox", "import", " brown", " user", "ing")
CONFIG = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "vocab_size": 320,
}
OPTIONS = {
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "</s>",
    "pad_token": "<pad>",
    "add_bos_token": True,
    "add_prefix_space": False,
    "errors": "replace",
    "tokenizer_class": "GPT2Tokenizer",
}
FIXTURES = ("slow4-mixed", "slow4-mixed-legacy", "fast4-mixed", "fast5-mixed", "slow4-words")


def base_files():
    """`vocab.json` and `merges.txt` of all bytes and a few words, in OPT's order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    merges = ["#version: 0.2"]
    for word in WORDS:
        word = word.replace(" ", "Ġ")
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
                vocabulary[word[:end]] = len(vocabulary)
    return vocabulary, "\n".join([*merges, ""])


def words(tokenizer):
    tokenizer.add_tokens(["newword", "tüde", "two words", " spaced", "é"])


def special(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>", "<|end of turn|>"]})


def flags(tokenizer):
    tokenizer.add_tokens([AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("<lr>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("whole", single_word=True), AddedToken("Ab", normalized=False)])
    tokenizer.add_tokens([AddedToken("<sl>", lstrip=True, special=True)], special_tokens=True)


def padding(tokenizer):
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})


def ends(tokenizer):
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )


def begins(tokenizer):
    tokenizer.add_special_tokens(
        {"bos_token": AddedToken("<|begin|>", rstrip=True), "unk_token": "<unk>"}
    )


def known(tokenizer):
    """Tokens of the vocabulary, made whole or special."""
    tokenizer.add_tokens(["import", "Ġthe"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "ing"]})


def mixed(tokenizer):
    for change in (words, flags, padding, ends):
        change(tokenizer)


def nothing(tokenizer):
    pass


TOKENS = ["newword", "tüde", "two words", " spaced", "é", "<l>", "<r>", "<lr>", "whole", "Ab", "<sl>"]
TOKENS += ["[PAD]", "<|im_end|>", "<|im_start|>", "</s>", "<pad>", "<s>", "import"]
BETWEEN = [
    "",
    " ",
    "  ",
    "\n",
    "\t",
    "\u3000",
    "x",
    "-",
    "_",
    "1",
    "\u0301",
    "\u200d",
    "😀",
    " the quick ",
]
PLAIN = ["brown fox", "naïve", "你好", "नमस्ते", "it's", "👩\u200d👧", "e\u0301", "\x00", "12.5"]


def texts(count=100):
    """Texts of added tokens, words, spaces, emoji and combining marks; always the same."""
    generator = random.Random(14)
    found = ["", " ", *TOKENS]
    while len(found) < count:
        pieces = generator.choices(TOKENS, k=3) + generator.choices(PLAIN, k=2)
        generator.shuffle(pieces)
        pieces = pieces[: generator.randint(1, 5)]
        found.append("".join(generator.choice(BETWEEN) + piece for piece in pieces))
    return found


CHANGES = {f.__name__: f for f in (nothing, words, special, flags, padding, ends, begins, known, mixed)}


def write_json(path, value, **options):
    path.write_text(json.dumps(value, ensure_ascii=False, **options) + "\n", encoding="utf-8")


def legacy(folder):
    """As transformers wrote it before 4.34."""
    path = folder / "tokenizer_config.json"
    options = json.loads(path.read_text(encoding="utf-8"))
    for name in ("added_tokens_decoder", "additional_special_tokens"):
        options.pop(name, None)
    write_json(path, options, indent=2)


def make(target, base):
    """All folders of the transformers that runs this."""
    import transformers

    version = int(transformers.__version__.partition(".")[0])
    for kind in ("slow", "fast") if version == 4 else ("fast",):
        for name, change in CHANGES.items():
            tokenizer = transformers.AutoTokenizer.from_pretrained(base, use_fast=kind == "fast")
            change(tokenizer)
            folder = target / f"{kind}{version}-{name}"
            tokenizer.save_pretrained(folder)
            write_json(folder / "config.json", CONFIG, indent=2)
            if kind == "slow":
                legacy(Path(shutil.copytree(folder, f"{folder}-legacy", dirs_exist_ok=True)))


def expected(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts()]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return {"ids": ids, "texts": [tokenizer.decode(row, **options) for row in ids]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--fixtures", action="store_true")
    options = parser.parse_args()
    vocabulary, merges = base_files()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name, "base")
        base.mkdir()
        write_json(base / "vocab.json", vocabulary)
        (base / "merges.txt").write_text(merges, encoding="utf-8")
        write_json(base / "tokenizer_config.json", OPTIONS)
        write_json(base / "config.json", CONFIG)
        made = options.target if not options.fixtures else Path(name, "made")
        make(made, base)
        if not options.fixtures:
            return
        for folder in sorted(made.iterdir()):
            if folder.name in FIXTURES:
                for path in folder.glob("*.json"):
                    write_json(
                        path, json.loads(path.read_text(encoding="utf-8")), separators=(",", ":")
                    )
                write_json(folder / "expected.json", expected(folder), separators=(",", ":"))
                shutil.copytree(folder, options.target / folder.name, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
