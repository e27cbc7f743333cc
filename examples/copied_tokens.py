"""What a network that answers texts with texts has learned: to copy, or to write what does not stand in the text?

    python examples/copied_tokens.py RUN pairs-held
    python examples/copied_tokens.py RUN pairs-held 200

RUN is a T5 or BART that was fine-tuned on pairs, the second argument a data set of pairs (`polymodal pack --target-field`), 200 a limit.
The tokens of the targets are predicted each from the true ones before it, and counted apart: those that stand in the text, too, and others.
"""

from __future__ import annotations

import json
import sys

import polymodal
import torch
from polymodal.seq2seq.encoder_decoder import EncoderDecoderLM

LONGEST = 96
"""Tokens of a text and of a target; the rest is not read."""


@torch.no_grad()
def main(model: str, data: str, limit: int | None = None) -> dict[str, dict[str, float]]:
    """Share, accuracy and nats of both kinds of tokens."""
    net, tokenizer, pairs = polymodal.load(model), polymodal.tokenizer(model), polymodal.DataSet.open(data)
    if not isinstance(net, EncoderDecoderLM):
        raise polymodal.UserError(f"{model} holds a {type(net).__name__}: expected an encoder and a decoder (T5, BART)")
    kinds = {"in the text": torch.zeros(3), "elsewhere": torch.zeros(3)}  # tokens, right ones, nats
    special = torch.tensor(sorted(tokenizer.special_ids))
    for number in range(min(len(pairs), limit or len(pairs))):
        sample = pairs.read(number)
        text, target = (torch.tensor([tokenizer.encode(t)[:LONGEST]]) for t in (sample.text(), sample.target()))
        scores = net(text, labels=target).logits[0].log_softmax(-1)
        right = (scores.argmax(-1) == target[0]).float()
        found = torch.stack([torch.ones_like(right), right, -scores.gather(1, target.T)[:, 0]])
        inside, counted = torch.isin(target[0], text[0]), ~torch.isin(target[0], special)
        kinds["in the text"] += found[:, inside & counted].sum(1)
        kinds["elsewhere"] += found[:, ~inside & counted].sum(1)
    total = float(sum(sums[0] for sums in kinds.values()))
    return {name: {"share": count / total, "accuracy": right / max(count, 1), "nats": nats / max(count, 1)}
            for name, (count, right, nats) in ((name, sums.tolist()) for name, sums in kinds.items())}


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: copied_tokens.py MODEL PAIRS [LIMIT]")
    try:
        print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else None)))
    except polymodal.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
