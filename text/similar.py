"""Words and the words that are used like them: a table that the user brings, or that `polymodal similar-words` makes.

A line is a word, a tab, and its similar words with tabs between them, the most similar first:

    高兴<TAB>开心<TAB>快乐
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..shared.errors import UserError
from ..shared.tokenizer import Tokenizer

Similar = Mapping[tuple[int, ...], np.ndarray]
"""The token ids of a word -> those of its similar words with as many tokens, int64 [words, tokens]."""


def read_similar(path: str | Path) -> tuple[dict[str, Sequence[str]], str]:
    """The table in a file, and the sha256 of the file.

    Raises:
        UserError: the file is missing, is not UTF-8, or a line is no entry; it names the line.
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"the table of similar words {str(path)!r} cannot be read ({error.strerror}): give its path, or make one with "
                        "`polymodal similar-words`") from None
    except UnicodeDecodeError as error:
        raise UserError(f"the table of similar words {path} is not UTF-8 ({error.reason} at byte {error.start}): convert it") from None
    found: dict[str, Sequence[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        word, *others = (cell.strip() for cell in line.split("\t"))
        if not line.strip():
            continue
        if not word or not others or not all(others):
            raise UserError(f"{path}, line {number}: {line.strip()[:40]!r} is no entry, expected a word, a tab, and similar words with "
                            "tabs between them")
        if word in found:
            raise UserError(f"{path}, line {number}: the word {word[:40]!r} for the second time; put its similar words into one line")
        found[word] = others
    if not found:
        raise UserError(f"the table of similar words {path} is empty: make one with `polymodal similar-words`")
    return found, hashlib.sha256(data).hexdigest()


def by_tokens(table: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> Similar:
    """The table in token ids: of each word, the similar words of as many tokens, in order.

    A word is looked at by itself and behind a space, which are other tokens in some vocabularies. Words with an unknown token, and words
    that the vocabulary cannot tell apart, are left out.
    """
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for space in ("", " "):
        words = sorted({word for entry, others in table.items() for word in (entry, *others)})
        ids = dict(zip(words, map(tuple, tokenizer.encode_batch([space + word for word in words], add_special_tokens=False)), strict=True))
        for word, others in table.items():
            key = ids[word]
            fitting = [row for other in others if len(row := ids[other]) == len(key) and row != key and tokenizer.unk_id not in row]
            if fitting and tokenizer.unk_id not in key:
                found.setdefault(key, list(dict.fromkeys(fitting)))
    return {key: np.array(rows, dtype=np.int64) for key, rows in found.items()}
