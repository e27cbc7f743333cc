"""Which words of a text a masked-language model would write otherwise: `python examples/correct_words.py RUN "我住的酒电很好。"`.

A MacBERT has learnt to see words that do not belong, as its pretraining puts them there. Other masked-language models (BERT, ERNIE ...)
were shown few such words.
"""

from __future__ import annotations

import sys

import polymodal
import torch


@torch.no_grad()
def corrections(source: str, text: str, least: float = 0.5) -> list[tuple[str, str, float]]:
    """Tokens of the text, each with the one that the model would write and its probability, where that is another and `least` likely."""
    model, tokenizer = polymodal.load(source), polymodal.tokenizer(source)
    ids = torch.tensor([tokenizer.encode(text)])
    out = model(ids)
    logits = out.prediction_logits if hasattr(out, "prediction_logits") else out.logits
    best = logits[0].softmax(-1).max(-1)
    return [(tokenizer.show([old]), tokenizer.show([new]), chance)
            for old, new, chance in zip(ids[0].tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
            if old != new and chance >= least and old not in tokenizer.special_ids]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: correct_words.py RUN TEXT")
    found = corrections(*sys.argv[1:])
    for old, new, chance in found:
        print(f"{old} -> {new} ({chance:.2f})")
    if not found:
        print("nothing")
