"""Which regions of a picture the words of its caption go to: UNITER's word-region alignment for one pair, as a map of shades.

    python examples/align_words.py RUN DATA 7

RUN is a pretrained UNITER, DATA a data set with regions (`polymodal regions`), 7 the number of a sample. Each row is a word, each column a
region: the darker, the more of the word the optimal transport takes there. Behind it stands the box that gets most.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import polymodal
import torch
from polymodal.multimodal.region_pairs import PairSettings, RegionBatch, RegionReader, batch_of_pairs
from polymodal.multimodal.transport import cosine_costs, ipot
from polymodal.multimodal.uniter import UniterForPreTraining
from polymodal.pipelines.data.dataset import DataSet

SHADES = " .:-=+*#%@"


@torch.no_grad()
def main(model: str, data: str, number: int) -> None:
    """Print the map."""
    net: Any = polymodal.load(model)
    if not isinstance(net, UniterForPreTraining):
        raise SystemExit(f"{model} holds a {type(net).__name__}: expected a pretrained UNITER")
    tokenizer, sample = polymodal.tokenizer(model), DataSet.open(data).read(number)
    reader = RegionReader(tokenizer, PairSettings(), net.config.visual_feat_dim, 0, training=False)
    ids, regions = reader.caption(sample, np.random.default_rng(0)), reader.regions(sample)
    fields = batch_of_pairs([ids], [regions])
    batch = RegionBatch(counts={}, **fields)
    states = net.trunk.packed(batch).last_hidden_state[0]
    (words, word_keep), (places, region_keep) = batch.word_places(), batch.region_places()
    plan = ipot(cosine_costs(states[words], states[places], word_keep, region_keep), word_keep, region_keep)[0]
    shares = plan / plan.sum(1, keepdim=True)
    score = float(net.score_pairs(batch).sigmoid())
    sys.stdout.write(f"{sample.text()}: belongs to its picture with {score:.2f}\n")
    top = float(shares.max())
    for token, row in zip(ids.tolist(), shares, strict=True):
        shades = "".join(SHADES[int(float(share) / top * (len(SHADES) - 1))] for share in row)
        left, up, right, down = regions.boxes[int(row.argmax())].tolist()
        sys.stdout.write(f"{tokenizer.show([token]):<16} |{shades}|  {left:.2f} {up:.2f} {right:.2f} {down:.2f}\n")


if __name__ == "__main__":
    if len(sys.argv) != 4 or not sys.argv[3].isdigit():
        raise SystemExit("usage: python examples/align_words.py RUN DATA NUMBER")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
