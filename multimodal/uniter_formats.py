"""The names of UNITER's weights in the published code (ChenRocks/UNITER)."""

from __future__ import annotations

from ..shared.convert import Alias, Ignore, Rename, Rule, Split, affine, prefixed
from ..shared.encoder import LEGACY, EncoderConfig, encoder_rules
from ..text.masking import head_rules


def trunk_rules(config: EncoderConfig, *, pooler: bool = True) -> tuple[Rule, ...]:
    """The published code's names of the trunk; one without pooler leaves that of a file out."""
    theirs, ours = "uniter.img_embeddings.", "trunk.regions."
    names = {"img_linear": "features", "img_layer_norm": "feature_norm", "pos_linear": "location", "pos_layer_norm": "location_norm",
             "LayerNorm": "norm"}
    return (
        *prefixed(encoder_rules(config, pooler=pooler), "uniter.", "trunk."),
        *(() if pooler else (Ignore(r"uniter\.pooler\..*"),)),
        *(rule for their_name, name in names.items() for rule in affine(theirs + their_name, ours + name)),
        Rename(f"{theirs}mask_embedding.weight", f"{ours}mask.weight"),
        *LEGACY,
    )


def _region_head(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (*affine(f"{theirs}.net.0", f"{ours}.dense"), *affine(f"{theirs}.net.2", f"{ours}.norm"))


def rules(config: EncoderConfig) -> tuple[Rule, ...]:
    """The published code's names (`UniterForPretraining`)."""
    return (
        *trunk_rules(config),
        *head_rules("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias",
                    "cls.predictions.decoder", "uniter.embeddings.word_embeddings.weight"),
        *_region_head("feat_regress", "region_regression"),
        Rename("feat_regress.bias", "region_regression.bias"),
        Alias("feat_regress.weight", "uniter.img_embeddings.img_linear.weight"),
        *_region_head("region_classifier", "region_classifier"),
        *affine("region_classifier.net.3", "region_classifier.classes"),
        *affine("itm_output", "match"),
    )


def answer_rules(config: EncoderConfig) -> tuple[Rule, ...]:
    """The published code's names (`UniterForVisualQuestionAnswering`)."""
    return (*trunk_rules(config), *(rule for part in (0, 2, 3) for rule in affine(f"vqa_output.{part}", f"classifier.{part}")))


def ranking_rules(config: EncoderConfig) -> tuple[Rule, ...]:
    """The published code's names (`UniterForImageTextRetrieval`), which keeps the layer of matching beside that of the scores."""
    return (*trunk_rules(config), *affine("rank_output", "match"), Ignore(r"itm_output\..*"))


def grounding_rules(config: EncoderConfig) -> tuple[Rule, ...]:
    """The published code's names (`UniterForReferringExpressionComprehension`)."""
    return (*trunk_rules(config, pooler=False), *affine("re_output", "score"))


def comparison_rules(config: EncoderConfig) -> tuple[Rule, ...]:
    """The published code's names (`UniterForNlvr2PairedAttn`)."""
    size = config.hidden_size
    views = [rule for their_name, name in (("attn1", "first"), ("attn2", "second"))
             for rule in (*(Split(f"{their_name}.in_proj_{part}", (f"{name}.q.{part}", f"{name}.kv.{part}"), 0, (size, 2 * size))
                            for part in ("weight", "bias")), *affine(f"{their_name}.out_proj", f"{name}.out"))]
    return (*trunk_rules(config, pooler=False), *views, *affine("fc.0", "join.0"), *affine("attn_pool.fc.0", "pool.weigh"),
            *affine("nlvr2_output", "classifier"))
