"""The documents of a sample, as every objective over texts reads them."""

from __future__ import annotations

import numpy as np

from .sample import Sample
from .tokenizer import Tokenizer


def documents(sample: Sample, tokenizer: Tokenizer) -> list[np.ndarray]:
    """The documents of a sample as token ids, int64 [T] each, without the special tokens at their edges.

    A text is one document. A pre-tokenised row holds several; those that are special tokens only are left out.

    Raises:
        BadSample: no document is left.
    """
    if not sample.tokenized:
        ids = tokenizer.encode(sample.text(), add_special_tokens=False)
        if not ids:
            raise sample.bad("the tokenizer makes no tokens of the text")
        return [np.asarray(ids, dtype=np.int64)]
    roles = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.bos_id, tokenizer.eos_id)
    edges = [i for i in roles if i is not None]
    found: list[np.ndarray] = []
    for document in row_documents(sample):
        inside = np.flatnonzero(~np.isin(document, edges))
        if len(inside):
            found.append(document[inside[0]:inside[-1] + 1])
    if not found:
        raise sample.bad("the row holds special tokens only")
    return found


def row_documents(sample: Sample) -> list[np.ndarray]:
    """The documents of a pre-tokenised row as they stand, int64 [T] each: `pack` has framed or ended them."""
    ids, lengths = sample.tokens()
    return np.split(ids, np.cumsum(lengths)[:-1])
