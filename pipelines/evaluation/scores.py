"""How near written texts are to their references: ROUGE (Lin, 2004) and BLEU (Papineni et al., 2002), by torchmetrics.

ROUGE is the F-measure of each pair, averaged over the pairs, over lower-cased words of a-z and 0-9, without stemming, as the
`rouge_score` package computes it by default. A text without such words (Chinese, say) scores 0. BLEU is that of the corpus: up to
four words, without smoothing, words as mteval-v13a cuts them (sacreBLEU's default).
"""

from __future__ import annotations

from collections.abc import Sequence

from ...shared.errors import UserError

ROUGE = ("rouge1", "rouge2", "rougeL")
NAMES = (*ROUGE, "bleu")


def text_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`rouge1`, `rouge2`, `rougeL` and `bleu`, each from 0 to 1, of texts against one reference each.

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
    # both need torchmetrics alone; ROUGE-Lsum and stemming would load nltk, and its data from the network
    from torchmetrics.functional.text import rouge_score, sacre_bleu_score

    written, wanted = list(predictions), list(references)
    rouge = rouge_score(written, wanted, rouge_keys=ROUGE)
    bleu = sacre_bleu_score(written, [[w] for w in wanted], tokenize="13a")
    return {**{name: float(rouge[f"{name}_fmeasure"]) for name in ROUGE}, "bleu": float(bleu)}
