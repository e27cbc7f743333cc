"""Which regions of a picture the words of its caption go to: UNITER's word-region alignment for one pair, as a map of shades.

    python examples/align_words.py RUN DATA 7                    # in the terminal
    python examples/align_words.py RUN DATA 7 alignment.svg      # and as a picture: a heat map for each word

RUN is a pretrained UNITER, DATA a data set with regions (`polymodal regions`), 7 the number of a sample. Each row is a word, each column a
region: the darker, the more of the word the optimal transport takes there. Behind it stands the box that gets most. In the drawing, each
word has a square that stands for the picture, and regions lie where their boxes are.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polymodal
import torch
from polymodal.multimodal.region_pairs import PairSettings, RegionBatch, RegionReader, batch_of_pairs
from polymodal.multimodal.transport import cosine_costs, ipot
from polymodal.multimodal.uniter import UniterForPreTraining

SHADES = " .:-=+*#%@"
SIDE, GAP, EACH_ROW = 120, 24, 6


@torch.no_grad()
def main(model: str, data: str, number: int, out: str = "") -> None:
    """Print the map, and draw it where a file is named."""
    net: Any = polymodal.load(model)
    if not isinstance(net, UniterForPreTraining):
        raise SystemExit(f"{model} holds a {type(net).__name__}: expected a pretrained UNITER")
    tokenizer, sample = polymodal.tokenizer(model), polymodal.DataSet.open(data).read(number)
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
    if out:
        Path(out).write_text(drawn([tokenizer.show([token]) for token in ids.tolist()], shares.numpy() / top, regions.boxes), "utf-8")


def drawn(words: list[str], shares: np.ndarray, boxes: np.ndarray) -> str:
    """An SVG with a heat map for each word: `shares` [words, regions] from 0 to 1, `boxes` [regions, 4]."""
    rows = -(-len(words) // EACH_ROW)
    width, height = EACH_ROW * (SIDE + GAP) + GAP, rows * (SIDE + 2 * GAP) + GAP
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    for number, (word, row) in enumerate(zip(words, shares, strict=True)):
        x, y = GAP + number % EACH_ROW * (SIDE + GAP), 2 * GAP + number // EACH_ROW * (SIDE + 2 * GAP)
        parts.append(f'<text x="{x}" y="{y - 6}" fill="#333">{escape(word)}</text>')
        for share, (left, top, right, bottom) in zip(row, boxes, strict=True):
            parts.append(f'<rect x="{x + SIDE * left:.1f}" y="{y + SIDE * top:.1f}" width="{SIDE * (right - left):.1f}" '
                         f'height="{SIDE * (bottom - top):.1f}" fill="#b2182b" fill-opacity="{share:.3f}"/>')
        parts.append(f'<rect x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5) or not sys.argv[3].isdigit():
        raise SystemExit("usage: python examples/align_words.py RUN DATA NUMBER [FILE.svg]")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
