"""Strings of all sorts, on which tokenizers are compared."""

from __future__ import annotations

import random
import re
from pydoc_data import topics

HAND_PICKED = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "Hello\n\nHello",
    "Hello \n \n Hello",
    "Hello\r\nHello\r",
    "a\tb\t\tc",
    " " * 57 + "x" + " " * 33,
    "x" + "\n" * 40 + "y",
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u2003\u2028\u3000",
    "\x00\x01\x02\x7f\x80\x9f\xad",
    "I'm you're we've they'll he'd it's I'M YOU'RE WE'VE can't 'tis 'S 'll",
    "'s't're've'm'll'd",
    "don\u2019t \u2018quoted\u2019",
    "1234567890 3.14159 1,000,000 0x7f ½ ² ٣ Ⅳ ①",
    "snake_case CamelCase SCREAMING_CASE kebab-case __dunder__",
    "!!! ??? ... --- === *** ((())) [[]] {{}} <<>> ||| ~~~ ```",
    "https://example.org/a/b?c=d&e=f#g user@example.org C:\\path\\file",
    "    def f(x):\n        return x ** 2  # comment\n\n\nclass A: pass\n",
    '{"key": ["value", 1.5e-10, null, true]}',
    "<html><body class='a'>&nbsp;</body></html>",
    "naïve café Ærøskøbing straße Zażółć gęślą jaźń",
    "Привет мир Γειά σου שלום عالم नमस्ते ไทย ქართული",
    "你好，世界。日本語のテキスト 한국어 ｆｕｌｌｗｉｄｔｈ",
    "e\u0301 a\u0308 o\u0302\u0323 \u0301",
    "ﬁ ﬀ ℌ ⅷ ㎏ Å ſ",  # what NFKC rewrites
    "😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ☃️ 𝕏 𐍈 \U0010ffff \ufeff \ufffd \u200b\u200d\u202e",
    "</s>",
    "<pad>",
    "a</s>b",
    "a </s> b",
    "</s></s><pad></s>",
    "  </s>  <pad>  ",
    "\n</s>\n",
    "</s",
    "< /s>",
    "</S>",
    "<pad> <PAD> <pad",
    "x</s>" * 9,
    "Attention is all you need [START_REF] Vaswani [END_REF]<work>12*3=36</work>",
    "MKV[START_AMINO]MSPL1T-TH1S-Pl3A5EKSPL1T-TH1S-Pl3A5EV[END_AMINO]SPL1T-TH1S-Pl3A5E",
    "[START_REF][START_REF [ START_REF] <s><unk>",
]

SCRIPTS = [
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x370, 0x5FF),
    (0x904, 0x939),
    (0x3041, 0x30FF),
    (0x4E00, 0x4FFF),
    (0xAC00, 0xAD00),
    (0x1F300, 0x1F6FF),
]
EMOJI = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "☃️", "\u200d", "🏿", "\ufe0f"]
MARKS = ["\u0301", "\u0308", "\u0323", "\u20d7", "\u093f"]
WHITE = [
    "\t",
    "\r\n",
    "\r",
    "\x0b",
    "\x0c",
    "\x00",
    "\x1b",
    "\x85",
    "\xa0",
    "\u2003",
    "\u2028",
    "\u3000",
]
SYMBOLS = [
    "'s",
    "'re",
    "'ll",
    "'x",
    "'",
    '"',
    "``",
    "...",
    "->",
    "==",
    "**",
    "://",
    "\\n",
    "${x}",
    "#!",
]
SPECIAL = ["</s>", "<pad>", "<s>", "<unk>", "[START_REF]", "[END_REF]", "<work>", "SPL1T-TH1S-Pl3A5E"]


def random_texts(count: int) -> list[str]:
    """Texts of random words, symbols, scripts, white space and special tokens; always the same."""
    generator = random.Random(20)
    words = sorted(set(re.findall(r"\w+", topics.topics["import"])))
    code = [line for line in topics.topics["formatstrings"].split("\n") if line]

    def anything() -> str:
        return chr(generator.choice([*range(0xD800), *range(0xE000, 0x110000, 97)]))

    def script() -> str:
        ends = generator.choice(SCRIPTS)
        return "".join(chr(generator.randint(*ends)) for _ in range(generator.randint(1, 6)))

    pieces = [
        (8, lambda: generator.choice(words)),
        (8, lambda: " " + generator.choice(words)),
        (3, lambda: " " * generator.choice([1, 2, 3, 8, 60])),
        (3, lambda: "\n" * generator.choice([1, 2, 3, 30])),
        (2, lambda: generator.choice(WHITE)),
        (3, lambda: generator.choice(SYMBOLS)),
        (2, lambda: str(generator.randint(0, 10 ** generator.randint(1, 9)))),
        (1, lambda: f"{generator.uniform(-1e3, 1e3):.3g}"),
        (4, script),
        (2, lambda: generator.choice(EMOJI)),
        (1, lambda: generator.choice(MARKS)),
        (3, anything),
        (1, lambda: generator.choice(code)),
        (2, lambda: generator.choice(SPECIAL)),
    ]
    weights = [weight for weight, _ in pieces]
    makers = [maker for _, maker in pieces]
    return [
        "".join(make() for make in generator.choices(makers, weights, k=generator.randint(1, 25)))
        for _ in range(count)
    ]


def real_texts() -> list[str]:
    """Lines, paragraphs and whole pieces of Python's documentation."""
    whole = [topics.topics[name] for name in ("import", "formatstrings", "lambda", "exprlists")]
    return [*whole, *whole[0].split("\n")[:60], *whole[1].split("\n\n")[:40]]


def varied_texts(count: int) -> list[str]:
    """`count` different strings: hand-picked, real and random ones."""
    fixed = [*HAND_PICKED, *real_texts()]
    texts = list(dict.fromkeys([*fixed, *random_texts(count)]))
    return texts[:count]


BETWEEN = ["", "", " ", "  ", "\n", "\t", " \n", "\u3000", "\xa0", "x", "-", "_", ".", "1"]
BETWEEN += ["é", *MARKS, *EMOJI]


def texts_with(tokens: list[str], count: int) -> list[str]:
    """`count` different strings: half of them varied, half of them of tokens with all sorts between."""
    generator = random.Random(14)
    varied = varied_texts(count)
    texts: dict[str, None] = {}
    while len(texts) < count // 2:
        others = [" the quick", generator.choice(varied)[:12]]
        pieces = generator.choices([*tokens, *others], k=generator.randint(1, 5))
        between = generator.choices(BETWEEN, k=len(pieces))
        text = "".join(a + b for a, b in zip(between, pieces, strict=True)) + generator.choice(BETWEEN)
        texts[text] = None
    return list(dict.fromkeys([*texts, *varied]))[:count]


def training_texts() -> list[str]:
    """Text to train a vocabulary on: Python's documentation, and some of other scripts."""
    return [*(topics.topics[name] for name in sorted(topics.topics)), *HAND_PICKED]
