"""What a UNIMO finds nearer to a picture: its caption, or captions in which words were exchanged.

    python examples/rank_rewrites.py RUN DATA 7

RUN is a pretrained UNIMO, or one tuned for retrieval; DATA holds regions and rewrites (`polymodal relate`), 7 is the number of a sample.
The captions are written with their scores, the nearest first; the picture's own has a star.
"""

from __future__ import annotations

import sys

import polymodal
import torch
from polymodal.multimodal.pairs import captions
from polymodal.multimodal.region_pairs import PairScorer, PairSettings, RegionBatch, RegionReader, batch_of_pairs


@torch.no_grad()
def main(model: str, data: str, number: int) -> None:
    """Write the captions."""
    net = polymodal.load(model)
    if not isinstance(net, PairScorer):
        raise SystemExit(f"{model} holds a {type(net).__name__}: expected a UNIMO that scores pairs")
    sample = polymodal.DataSet.open(data).read(number)
    own, others = captions(sample)[0], sample.json().get("rewrites", {}).get("other", [])
    if not others:
        raise SystemExit(f"sample {number} has no rewrites: `polymodal relate` adds them")
    reader = RegionReader(polymodal.tokenizer(model), PairSettings(), net.config.visual_feat_dim, 0, training=False)
    texts, regions = [own, *others], reader.regions(sample)
    fields = batch_of_pairs([reader.framed(text) for text in texts], [regions] * len(texts))
    scores = net.score_pairs(RegionBatch(counts={}, **fields)).sigmoid().tolist()
    for score, text in sorted(zip(scores, texts), reverse=True):
        sys.stdout.write(f"{'*' if text == own else ' '} {score:.2f}  {text}\n")


if __name__ == "__main__":
    if len(sys.argv) != 4 or not sys.argv[3].isdigit():
        raise SystemExit("usage: python examples/rank_rewrites.py RUN DATA NUMBER")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
