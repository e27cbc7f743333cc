"""How near written texts are to their references: ROUGE (Lin, 2004) by torchmetrics, BLEU (Papineni et al., 2002) and chrF (Popovic, 2015)
by sacreBLEU.

ROUGE is the F-measure of each pair, averaged over the pairs, over lower-cased words of a-z and 0-9, without stemming, as the
`rouge_score` package computes it by default. A text without such words (Chinese, say) scores 0. BLEU is that of the corpus: up to
four words, without smoothing, words as mteval-v13a cuts them (sacreBLEU's default). chrF is that of the corpus, too: up to six characters,
no words, recall counted twice (sacreBLEU's default, chrF2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...shared.errors import UserError
from ..base.inputs import documents

ROUGE = ("rouge1", "rouge2", "rougeL")
NAMES = (*ROUGE, "bleu", "chrf")


def text_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`rouge1`, `rouge2`, `rougeL`, `bleu` and `chrf`, each from 0 to 1, of texts against one reference each.

    Args:
        predictions: what was written; an empty text scores 0.
        references: what should have been, as many and in the same order.

    Raises:
        UserError: there are none, or not as many of both.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise UserError("text_scores takes lists of texts, got one string")
    if len(predictions) != len(references):
        raise UserError(f"got {len(predictions)} texts and {len(references)} references: each text needs its own")
    if not predictions:
        raise UserError("there are no texts to score")
    # ROUGE-Lsum and stemming would load nltk, and its data from the network
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from torchmetrics.functional.text import rouge_score

    written, wanted = list(predictions), list(references)
    rouge = rouge_score(written, wanted, rouge_keys=ROUGE)
    corpus = {"bleu": BLEU(tokenize="13a", smooth_method="none"), "chrf": CHRF()}
    return {**{name: float(rouge[f"{name}_fmeasure"]) for name in ROUGE},
            **{name: metric.corpus_score(written, [wanted]).score / 100 for name, metric in corpus.items()}}


def read_references(path: Path, count: int) -> list[str]:
    """The right texts for `count` texts: the lines of a file, or all of it where there is one text."""
    found = documents([str(path)], lines=count > 1)
    if len(found) != count:
        raise UserError(f"{path} holds {len(found)} references for {count} texts: expected one a line, in the order of the texts")
    return [d.text for d in found]
