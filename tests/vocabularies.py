"""Texts that tokenizers find hard, and the vocabularies that tests learn from them."""

import random
from pydoc_data.topics import topics

CORPUS = [*list(topics.values())[:25], *["naïve café Ångström 你好世界，今天 天气很好。 日本語 emoji 😀 ﬁne"] * 5]
TRICKY = [
    "", "   ", "Hello, World!", "naïve café Ångström İstanbul ẞ", "你好世界，今天 天气很好。", "日本語テキスト 한국어",
    "emoji 😀👨‍👩‍👧🏽 done", "a\x00b\x01\x7f\u200b\ufeffc\u00ad\ufffd", "x" * 500, "tab\tnew\nline\r\n  two  spaces ",
    "don't we'll I'm THEY'RE 's", "1234567 3.14 1,000", "ﬁne ＡＢＣ①½ ™ …", "\u0301combining e\u0301",
    "a [MASK] b <mask> </s> <pad> <|endoftext|> end",
    "a\u2028b\u3000c\u00a0d", "مرحبا שלום हिन्दी ไทย", "``quoted'' text", "▁under ▁▁ x", "!!!???...", "long " * 90]


def random_texts(count, seed=0):
    draw = random.Random(seed)
    letters = [chr(c) for c in [*range(32, 127), *range(0xA0, 0x180), 0x4F60, 0x597D, 0x1F600, 0x200D, 0x3000, 0xAC00, 9, 10, 13]]
    words = " ".join(CORPUS).split()
    return ["".join(draw.choice(letters) for _ in range(draw.randint(1, 40))) for _ in range(count)] + [
        " ".join(draw.choice(words) for _ in range(12)) for _ in range(count)]


TEXTS = TRICKY + random_texts(100)
SIZES = {"wordpiece": 1500, "byte-bpe": 900, "unigram": 600, "bpe": 600, "word": 500, "char": 90}
COMBINATIONS = [("wordpiece", "bert"), ("byte-bpe", "gpt2"), ("byte-bpe", "roberta"), ("byte-bpe", "clip"), ("unigram", "albert"),
                ("unigram", "t5"), ("unigram", "xlnet"), ("bpe", "t5"), ("word", "plain"), ("char", "plain")]
