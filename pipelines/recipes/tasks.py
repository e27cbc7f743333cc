"""Recipes for the tasks of encoders beside `classify`: the settings of BERT, RoBERTa, ELECTRA and ALBERT for each."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def bert_score() -> Recipe:
    """BERT fine-tuned to score texts or pairs of texts by a number.

    Paper: Devlin et al. 2019, section 4.1 and appendix A.3: batch 16 or 32, Adam at 5e-5, 3e-5 or 2e-5, 2 to 4 epochs; warmup over 10 %
    and linear decay.
    Target: from the published base weights, STS-B Spearman 85.8 (paper, table 1, test set).
    Deviates: the length is given in updates: 3 epochs of 5.7k samples (STS-B). For your data, set `max_updates` to 3 x samples / 32 and
    `schedule.warmup` to a tenth of it. AdamW with bias correction (Mosbach et al. 2021).
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune bert-score --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="bert-score", system="bert", size="base", task="score", objective={"max_length": 128},
        data=DataSettings(global_batch=32, workers=2),
        optim=OptimSettings(lr=3e-5, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=54),
        max_updates=540, log=LogSettings(every=10), evaluate=EvaluateSettings(every=54, monitor="pearson"),
        checkpoint=CheckpointSettings(every=54, keep_best=True),
    )


def roberta_score() -> Recipe:
    """RoBERTa fine-tuned to score texts or pairs of texts by a number.

    Paper: Liu et al. 2019, table 10: batch 16 or 32, Adam (0.9, 0.98, eps 1e-6) at 1e-5, 2e-5 or 3e-5, weight decay 0.1, warmup over 6 %
    and linear decay, 10 epochs.
    Target: from the published base weights, STS-B Pearson 91.2 on the development set (fairseq's README).
    Deviates: the length is given in updates: 10 epochs of 5.7k samples (STS-B).
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune roberta-score --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_score(), name="roberta-score", system="roberta", max_updates=1800, schedule=ScheduleSettings("linear", warmup=108),
        optim=OptimSettings(lr=2e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, clip=None),
    )


def bert_tag() -> Recipe:
    """BERT fine-tuned to tag words, such as names of people and places.

    Paper: Devlin et al. 2019, section 5.3 and appendix A.3: batch 16 or 32, Adam at 5e-5, 3e-5 or 2e-5, 2 to 4 epochs.
    Target: from the published cased base weights, CoNLL-2003 F1 92.4 on the test set (paper, table 7, with document context).
    Deviates: each sentence alone, without the document around it. The length is given in updates: 3 epochs of 14k sentences
    (CoNLL-2003). For your data, set `max_updates` to 3 x samples / 32 and `schedule.warmup` to a tenth of it.
    Unverified: the published weights were not available in the development environment.
    Measured: docs/tasks.md, "tag", with a tiny encoder on names in Chinese news.
    Cost: not measured at this size.
    Command: polymodal finetune bert-tag --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_score(), name="bert-tag", task="tag", max_updates=1300, schedule=ScheduleSettings("linear", warmup=130),
        optim=OptimSettings(lr=5e-5, eps=1e-6, weight_decay=0.01), evaluate=EvaluateSettings(every=130, monitor="entity_f1"),
        checkpoint=CheckpointSettings(every=130, keep_best=True),
    )


def roberta_tag() -> Recipe:
    """RoBERTa fine-tuned to tag words, such as names of people and places.

    Paper: none for this task; the settings are those of `bert-tag` with RoBERTa's optimizer (Liu et al. 2019, table 10).
    Target: none published with these settings.
    Cost: not measured.
    Command: polymodal finetune roberta-tag --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(bert_tag(), name="roberta-tag", system="roberta",
                   optim=OptimSettings(lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, clip=None))


def bert_choice() -> Recipe:
    """BERT fine-tuned to choose one of several texts.

    Paper: Devlin et al. 2019, section 4.4 (SWAG): 3 epochs, batch 16, Adam at 2e-5.
    Target: from the published base weights, SWAG 81.6 on the development set (paper, table 4).
    Deviates: the length is given in updates: 3 epochs of 73.5k samples (SWAG). AdamW with bias correction (Mosbach et al. 2021).
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune bert-choice --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_score(), name="bert-choice", task="choice", data=DataSettings(global_batch=16, workers=2), max_updates=13_800,
        schedule=ScheduleSettings("linear", warmup=1380), optim=OptimSettings(lr=2e-5, eps=1e-6, weight_decay=0.01),
        evaluate=EvaluateSettings(every=1000, monitor="accuracy"), checkpoint=CheckpointSettings(every=1000, keep_best=True),
    )


def roberta_choice() -> Recipe:
    """RoBERTa fine-tuned to choose one of several texts.

    Paper: Liu et al. 2019, table 10 (RACE): 4 epochs, batch 16, Adam (0.9, 0.98, eps 1e-6) at 1e-5, weight decay 0.1, warmup over 6 %.
    Target: RACE 83.2 for the large network (paper, table 7); none for base.
    Deviates: sequences of 512 tokens as in the paper; the length is given in updates: 4 epochs of 88k samples (RACE).
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune roberta-choice --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_choice(), name="roberta-choice", system="roberta", objective={"max_length": 512}, max_updates=22_000,
        schedule=ScheduleSettings("linear", warmup=1320),
        optim=OptimSettings(lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, clip=None),
    )


def bert_span() -> Recipe:
    """BERT fine-tuned to answer questions by a span of a text.

    Paper: Devlin et al. 2019, section 4.2: 3 epochs, batch 32, Adam at 5e-5; windows of 384 tokens that move on by 128 (`run_squad.py`).
    Target: from the published base weights, SQuAD 1.1 exact match 80.8, F1 88.5 on the development set (paper, table 2).
    Deviates: the length is given in updates: 3 epochs of 88k questions. AdamW with bias correction (Mosbach et al. 2021).
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune bert-span --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_score(), name="bert-span", task="span", objective={"max_length": 384, "stride": 128}, max_updates=8200,
        schedule=ScheduleSettings("linear", warmup=820), optim=OptimSettings(lr=5e-5, eps=1e-6, weight_decay=0.01),
        evaluate=EvaluateSettings(every=1000, monitor="exact_windows"), checkpoint=CheckpointSettings(every=1000, keep_best=True),
    )


def roberta_span() -> Recipe:
    """RoBERTa fine-tuned to answer questions by a span of a text.

    Paper: Liu et al. 2019, table 10 (SQuAD): 2 epochs, batch 48, Adam (0.9, 0.98, eps 1e-6) at 1.5e-5, weight decay 0.01, warmup over 6 %.
    Target: SQuAD 1.1 F1 94.6 for the large network (paper, table 6); none for base.
    Deviates: the length is given in updates: 2 epochs of 88k questions; windows as in `bert-span`.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune roberta-span --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_span(), name="roberta-span", system="roberta", data=DataSettings(global_batch=48, workers=2), max_updates=3660,
        schedule=ScheduleSettings("linear", warmup=220), optim=OptimSettings(lr=1.5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
    )


def electra_score() -> Recipe:
    """ELECTRA's discriminator fine-tuned to score texts or pairs of texts by a number, with the paper's settings for the small size.

    Paper: Clark et al. 2020, appendix B: Adam (eps 1e-6), learning rate 3e-4 for small (1e-4 base, 5e-5 large), layer-wise decay 0.8
    (0.9 large), warmup over 10 % and linear decay, batch 32, 10 epochs (STS), dropout 0.1, no weight decay.
    Target: from the published small weights, STS-B Spearman 87.5 on the development set (google-research/electra).
    Deviates: the length is given in updates: 10 epochs of 5.7k samples (STS-B). The highest block's learning rate is the head's times the
    decay; in the reference, times decay^2.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune electra-score --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_score(), name="electra-score", system="electra", size="small", max_updates=1800,
        schedule=ScheduleSettings("linear", warmup=180), optim=OptimSettings(lr=3e-4, eps=1e-6, weight_decay=0.0, layer_decay=0.8),
    )


def electra_tag() -> Recipe:
    """ELECTRA's discriminator fine-tuned to tag words, such as names of people and places.

    Paper: none for this task; the settings are those of `electra-score` (Clark et al. 2020, appendix B) for the 3 epochs of `bert-tag`.
    Target: none published with these settings.
    Cost: not measured.
    Command: polymodal finetune electra-tag --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(bert_tag(), name="electra-tag", system="electra", size="small", optim=electra_score().optim)


def electra_choice() -> Recipe:
    """ELECTRA's discriminator fine-tuned to choose one of several texts.

    Paper: none for this task; the settings are those of `electra-score` (Clark et al. 2020, appendix B) for the 3 epochs of `bert-choice`.
    Target: none published with these settings.
    Cost: not measured.
    Command: polymodal finetune electra-choice --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(bert_choice(), name="electra-choice", system="electra", size="small", optim=electra_score().optim)


def electra_span() -> Recipe:
    """ELECTRA's discriminator fine-tuned to answer questions by a span of a text, with the paper's settings for the small size.

    Paper: Clark et al. 2020, appendix B: as for `electra-score`, 2 epochs, batch 32.
    Target: from the published small weights, SQuAD 1.1 exact match 75.8 on the development set (google-research/electra, ELECTRA-Small++).
    Deviates: the length is given in updates: 2 epochs of 88k questions; windows of 384 tokens that move on by 128, and the head of
    transformers: two numbers for each token. The reference reads 512 tokens and looks for the end with a start in hand.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune electra-span --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(bert_span(), name="electra-span", system="electra", size="small", optim=electra_score().optim, max_updates=5500,
                   schedule=ScheduleSettings("linear", warmup=550))


def albert_score() -> Recipe:
    """ALBERT fine-tuned to score texts or pairs of texts by a number, with the paper's settings.

    Paper: Lan et al. 2019, appendix A.4 (the row of STS): batch 16, learning rate 2e-5, warmup 214, 3,598 updates, dropout 0 in the trunk
    and 0.1 before the output.
    Target: none published for the base weights.
    Deviates: sequences of at most 128 tokens; the paper's have 512.
    Unverified: neither the published weights nor the appendix were available in the development environment.
    Cost: not measured.
    Command: polymodal finetune albert-score --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_score(), name="albert-score", system="albert", data=DataSettings(global_batch=16, workers=2), max_updates=3598,
        schedule=ScheduleSettings("linear", warmup=214), optim=OptimSettings(lr=2e-5, eps=1e-6, weight_decay=0.01),
    )


def albert_tag() -> Recipe:
    """ALBERT fine-tuned to tag words, such as names of people and places.

    Paper: none for this task; the settings are those of `bert-tag` with ALBERT's learning rate for short texts (Lan et al. 2019, appendix
    A.4).
    Target: none published with these settings.
    Cost: not measured.
    Command: polymodal finetune albert-tag --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(bert_tag(), name="albert-tag", system="albert", optim=OptimSettings(lr=2e-5, eps=1e-6, weight_decay=0.01))


def albert_choice() -> Recipe:
    """ALBERT fine-tuned to choose one of several texts, with the paper's settings for RACE.

    Paper: Lan et al. 2019, appendix A.4 (the row of RACE): batch 32, learning rate 1e-5, warmup 1000, 12,000 updates, 512 tokens.
    Target: from the published base weights of version 2, RACE 66.8 (google-research/albert).
    Deviates: the dropout of the trunk is the network's own; the paper's is 0.1 for this task (`--set model.hidden_dropout_prob=0.1`).
    Unverified: neither the published weights nor the appendix were available in the development environment.
    Cost: not measured.
    Command: polymodal finetune albert-choice --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_choice(), name="albert-choice", system="albert", objective={"max_length": 512}, data=DataSettings(global_batch=32, workers=2),
        max_updates=12_000, schedule=ScheduleSettings("linear", warmup=1000), optim=OptimSettings(lr=1e-5, eps=1e-6, weight_decay=0.01),
    )


def albert_span() -> Recipe:
    """ALBERT fine-tuned to answer questions by a span of a text, with the paper's settings for SQuAD 1.1.

    Paper: Lan et al. 2019, appendix A.4 (the row of SQuAD v1.1): batch 48, learning rate 5e-5, warmup 365, 3,649 updates, 384 tokens.
    Target: from the published base weights of version 2, SQuAD 1.1 F1 90.2, exact match 83.2 (google-research/albert).
    Deviates: windows move on by 128 tokens, and the head is that of transformers: two numbers for each token.
    Unverified: neither the published weights nor the appendix were available in the development environment.
    Cost: not measured.
    Command: polymodal finetune albert-span --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        bert_span(), name="albert-span", system="albert", data=DataSettings(global_batch=48, workers=2), max_updates=3649,
        schedule=ScheduleSettings("linear", warmup=365), optim=OptimSettings(lr=5e-5, eps=1e-6, weight_decay=0.01),
    )


RECIPES = (
    bert_score, roberta_score, electra_score, albert_score, bert_tag, roberta_tag, electra_tag, albert_tag,
    bert_choice, roberta_choice, electra_choice, albert_choice, bert_span, roberta_span, electra_span, albert_span,
)
