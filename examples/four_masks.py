"""What one network makes of a hidden word under each of UniLM's four masks.

    python examples/four_masks.py RUN "the first [MASK] of the list | the head of the list"

RUN is a run of UniLM (pretrained), or its export. The text has one [MASK]; what stands behind a bar is the second of two texts, which the
sequence-to-sequence mask hides from the first one. Printed are the most probable words, and how many tokens [MASK] sees beside itself.
"""

from __future__ import annotations

import sys
from typing import Any

import polymodal
import torch
from polymodal.seq2seq.cloze import SEGMENTS, TASKS

SHOWN = 5
"""Words of each task."""


@torch.no_grad()
def main(model: str, text: str) -> None:
    """Print a line for each mask."""
    net: Any = polymodal.load(model)
    tokenizer = polymodal.tokenizer(model)
    if getattr(net.config, "type_vocab_size", 0) < SEGMENTS or not hasattr(net, "head"):
        raise SystemExit(f"{model} holds a {type(net).__name__}: expected a pretrained UniLM")
    first, bar, second = (part.strip() for part in text.partition("|"))
    ids = torch.tensor([tokenizer.encode(first, pair=second) if bar else tokenizer.encode(first)])
    places = (ids[0] == net.config.mask_token_id).nonzero().flatten().tolist()
    if len(places) != 1:
        raise SystemExit(f"the text has {len(places)} [MASK], expected one: {text!r}")
    length, begin = ids.shape[1], len(tokenizer.encode(first)) if bar else ids.shape[1] - 1
    for name, task in TASKS.items():
        kinds = torch.tensor([[task.segments[0]] * begin + [task.segments[-1]] * (length - begin)])
        mask = task.mask((length,), (begin,))
        scores = net.head(net.trunk(ids, None, kinds, mask=mask).last_hidden_state[0, places[0]]).softmax(-1)
        sees = int(mask.dense(1, length, length, ids.device)[0, 0, places[0]].sum()) - 1
        words = ", ".join(f"{tokenizer.show([int(i)])} {p:.1%}" for p, i in zip(*(t.tolist() for t in scores.topk(SHOWN))))
        sys.stdout.write(f"{name:<14} sees {sees:>3}: {words}\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python examples/four_masks.py RUN TEXT")
    main(*sys.argv[1:])
