"""How well ELECTRA tells replaced words from original ones, beside what needs no context.

    python examples/replaced_tokens.py RUN HELD

RUN is a run of ELECTRA, HELD a held-out data set. Printed are areas under the ROC curve over all tokens of HELD (0.5 is chance):
of the discriminator; of the rarity of a word in HELD; of how often a word is the replaced one in HELD itself, which no detector
that looks at one word alone can beat; and, for the generator, its loss beside the entropy of the words.
"""

from __future__ import annotations

import sys
from typing import Any

import polymodal
import torch
from polymodal.text.electra import ordered_pairs


def auc(scores: torch.Tensor, positive: torch.Tensor) -> float:
    """The share of (replaced, original) pairs that the scores put in the right order, ties half."""
    ordered, pairs = ordered_pairs(scores, positive, (len(scores),))
    return float(ordered) / pairs


@torch.no_grad()
def main(run: str, held: str) -> None:
    """Measure and print."""
    system: Any = polymodal.open_run(run).system().eval()
    batches = list(polymodal.batches(polymodal.DataSet.open(held), system.objective, 16))
    ids, fake, scores, loss, targets = [], [], [], 0.0, []
    for batch in batches:
        _, filled, replaced = system.fill(batch)
        verdicts = system.net(filled, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths).logits[0]
        loss += float(system(batch).terms["mlm"].total)
        for kept, found in ((ids, filled[0]), (fake, replaced), (scores, verdicts), (targets, batch.targets)):
            kept.append(found)
    words, positive, truth = torch.cat(ids), torch.cat(fake), torch.cat(targets)
    size = int(words.max()) + 1
    seen = torch.bincount(words[~positive], minlength=size)
    odds = torch.bincount(words[positive], minlength=size) / torch.bincount(words, minlength=size).clamp(min=1)
    share = torch.bincount(truth) / len(truth)
    print(f"tokens {len(words)}, replaced {float(positive.float().mean()):.4f}")
    print(f"AUC of the discriminator {auc(torch.cat(scores), positive):.4f}")
    print(f"AUC of a word's rarity {auc(-seen[words].float(), positive):.4f}")
    print(f"AUC of the best detector without context {auc(odds[words], positive):.4f}")
    print(f"generator {loss / len(truth):.4f} nats a masked word, unigram {-float((share * share.clamp(min=1e-9).log()).sum()):.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: replaced_tokens.py RUN HELD")
    main(sys.argv[1], sys.argv[2])
