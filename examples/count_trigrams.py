"""What counting alone predicts: the perplexity of an interpolated Kneser-Ney trigram, the baseline that a neural language model must beat.

    python examples/count_trigrams.py DATA HELD              # data sets of `polymodal pack --tokenize`, of one tokenizer
    python examples/count_trigrams.py DATA HELD --skip 3     # without the first 3 tokens of each document, of which an NNLM has no context

Kneser and Ney 1995, interpolated as by Chen and Goodman 1999, with one discount for each order, n1 / (n1 + 2 n2). Documents are not
crossed. Each token of the held-out data is predicted once, unknown words among them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator

import polymodal


def documents(path: str) -> Iterator[list[int]]:
    """The documents of a data set, as token ids; one that goes on in the next row begins again there."""
    data = polymodal.DataSet.open(path)
    for number in range(len(data)):
        ids, lengths = data.read(number).tokens()
        start = 0
        for length in lengths.tolist():
            yield ids[start : start + length].tolist()
            start += length


class KneserNey:
    """An interpolated model of some order over ids."""

    def __init__(self, texts: Iterator[list[int]], order: int = 3) -> None:
        self.order = order
        counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        for ids in texts:
            counts[order].update(tuple(ids[i : i + order]) for i in range(len(ids) - order + 1))
            for size in range(1, order):  # the first words of a text have no longer context: their shorter ones count as they are
                if len(ids) >= size:
                    counts[size][tuple(ids[:size])] += 1
        for size in range(order - 1, 0, -1):  # below the top, an n-gram counts once for each different word before it
            for gram in counts[size + 1]:
                counts[size][gram[1:]] += 1
        self.counts = counts
        self.discounts = [0.0] * (order + 1)
        self.totals: list[dict[tuple[int, ...], int]] = []
        self.kinds: list[dict[tuple[int, ...], int]] = []
        for size in range(order + 1):
            totals, kinds = defaultdict[tuple[int, ...], int](int), defaultdict[tuple[int, ...], int](int)
            for gram, count in counts[size].items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]] += 1
            once, twice = (sum(c == n for c in counts[size].values()) for n in (1, 2))
            self.discounts[size] = once / (once + 2 * twice) if once else 0.5
            self.totals.append(totals)
            self.kinds.append(kinds)

    def probability(self, context: tuple[int, ...], word: int, vocabulary: int) -> float:
        """Of a word behind its context, of which the last `order - 1` words count."""
        found = 1.0 / vocabulary
        for size in range(1, min(len(context) + 1, self.order) + 1):
            before = context[len(context) - size + 1 :]
            if total := self.totals[size].get(before, 0):
                d = self.discounts[size]
                found = (max(self.counts[size].get((*before, word), 0) - d, 0) + d * self.kinds[size][before] * found) / total
        return found


def main() -> None:
    """Count and predict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("held")
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--skip", type=int, default=0, help="tokens at the start of each document that are not predicted")
    args = parser.parse_args()
    model = KneserNey(documents(args.data), args.order)
    vocabulary = polymodal.tokenizer(args.data).vocab_size
    losses = [-math.log(model.probability(tuple(ids[:i]), word, vocabulary))
              for ids in documents(args.held) for i, word in enumerate(ids) if i >= args.skip]
    mean = sum(losses) / len(losses)
    found = {"order": args.order, "tokens": len(losses), "loss": round(mean, 4), "perplexity": round(math.exp(mean), 2)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
