"""Which uses of a word are alike, by each layer of an ELMo: its uses in a text, and the nearest others to some of them.

    python examples/word_senses.py RUN bank < sentences.txt

RUN is a run of `elmo`, or a directory with AllenNLP's options.json and weights.hdf5. Each line is a sentence of words with spaces between.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import polymodal
import torch


def main() -> None:
    """Print, for some uses of the word, the most similar other use by each layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("word")
    parser.add_argument("--uses", type=int, default=5, help="How many uses are looked up.")
    arguments = parser.parse_args()
    sentences = [words for line in sys.stdin if arguments.word in (words := line.split())]
    if len(sentences) < 2:
        sys.exit(f"error: {len(sentences)} lines hold the word {arguments.word!r}, expected two or more")
    net = polymodal.load(arguments.run)
    elmo = getattr(net, "trunk", net)
    with torch.no_grad():
        layers = elmo.states(torch.from_numpy(elmo.characters([word for words in sentences for word in words])), list(map(len, sentences)))
    begins = np.cumsum([0, *map(len, sentences[:-1])])
    places = torch.tensor([int(begin) + words.index(arguments.word) for begin, words in zip(begins, sentences)])
    for number in np.linspace(0, len(sentences) - 1, min(arguments.uses, len(sentences))).astype(int).tolist():
        print(f"use      {' '.join(sentences[number])}")
        for depth, layer in enumerate(layers):
            uses = torch.nn.functional.normalize(layer[places], dim=-1)
            alike = (uses @ uses[number]).index_fill(0, torch.tensor([number]), -2.0)
            nearest = int(alike.argmax())
            print(f"layer {depth}  {alike[nearest]:.2f}  {' '.join(sentences[nearest])}")


if __name__ == "__main__":
    main()
