"""A tokenizer of Galactica's kind, small: the same pipeline over a vocabulary trained here.

The steps are those of the `tokenizer.json` of facebook/galactica-125m (Taylor et al., 2022,
https://arxiv.org/abs/2211.09085): NFKC, a marker that splits and is removed, single digits, runs of
one punctuation mark, line ends, then GPT-2's split on bytes. No token goes before a text.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

MARKER = "SPL1T-TH1S-Pl3A5E"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "[START_REF]", "[END_REF]", "<work>", "</work>"]
PUNCTUATION = r"[\(\)\[\]\{\}]|([!\"\#\$%\&'\*\+,\-\./:;<=>\?\\\^_`\|\~])\1*"


def galactica_tokenizer(texts: list[str], vocabulary_size: int) -> tokenizers.Tokenizer:
    """Trains one."""
    fast = tokenizers.Tokenizer(models.BPE())
    fast.normalizer = normalizers.NFKC()
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(MARKER, "removed"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(tokenizers.Regex(PUNCTUATION), "isolated"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    return fast


def write_galactica_tokenizer(folder: Path, fast: tokenizers.Tokenizer) -> None:
    """Writes the files of a Galactica folder; its special ids are in `config.json` alone."""
    fast.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text("{}", encoding="utf-8")
