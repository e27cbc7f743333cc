"""Students beside their teachers, and the same in plain transformers: both networks on padded rows, each with all of its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import family
from ...shared.loss import IGNORE
from ...shared.system import System
from ...text.bert import BertConfig
from ...text.distilbert import DistilBertConfig
from ...text.masking import MaskedBatch
from .machine import need
from .masked import inputs_of, masked_batch, peer_of
from .pairing import Beside, Loss, Pairing, TrainSetup, copy_weights, fresh, padded, rules_of, transformer_flops

TEACHER = Beside("teacher", "bert", "BertForMaskedLM", BertConfig())


def distilbert_batch(setup: TrainSetup) -> MaskedBatch:
    """Random words, masked as BERT masks them; everything that a teacher says of them is counted in tokens."""
    batch = masked_batch(setup)
    return replace(batch, counts={**batch.counts, "tokens": batch.tokens})


def distilbert_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """DistilBERT and BERT of transformers, and the losses of the authors' `Distiller.step`."""
    transformers = need("transformers")
    (beside,) = setup.beside
    inputs = inputs_of(setup, masked_batch(setup))
    labels = inputs.pop("labels")
    del inputs["token_type_ids"]
    with torch.device(setup.device):
        bert = transformers.BertForMaskedLM(transformers.BertConfig(**beside.config.to_dict(), attn_implementation="sdpa"))
    net = next(net for net in family("bert").nets if net.architecture == beside.architecture)
    copy_weights(fresh(beside.build, setup.seed), bert, net.format("transformers").rules(beside.config))
    bert.eval().requires_grad_(False)
    keep = padded(torch.ones(setup.tokens, dtype=torch.bool), setup.lengths, False).to(setup.device)

    def loss(module: nn.Module) -> Tensor:
        s = module(**inputs, output_hidden_states=True)
        with torch.no_grad():
            t = bert.to(next(module.parameters()).dtype)(**inputs, output_hidden_states=True)
        mine, theirs = s.logits[keep].float() / 2, t.logits[keep].float() / 2
        ce = F.kl_div(F.log_softmax(mine, -1), F.softmax(theirs, -1), reduction="batchmean") * 2**2
        mlm = F.cross_entropy(s.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        a, b = s.hidden_states[-1][keep], t.hidden_states[-1][keep]
        return 5 * ce + 2 * mlm + F.cosine_embedding_loss(a, b, torch.ones(len(a), device=a.device))

    return peer_of(setup, ours, "DistilBertForMaskedLM"), loss


def distilbert_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. The teacher has a third of a trained network's: it only goes forward."""
    c: DistilBertConfig = setup.config
    t: BertConfig = setup.beside[0].config
    student = transformer_flops(c.n_layers, c.dim, c.hidden_dim, setup.lengths, causal=False)
    teacher = transformer_flops(t.num_hidden_layers, t.hidden_size, t.intermediate_size, setup.lengths, causal=False) / 3
    return student + teacher + setup.tokens * sum(each * width * (width + c.vocab_size) for each, width in ((6, c.dim), (2, t.hidden_size)))


def setups(teacher: BertConfig, lengths: Mapping[str, tuple[int, ...]]) -> list[tuple[str, TrainSetup]]:
    """DistilBERT of half the teacher's layers, without dropout."""
    student = family("distilbert").starts["bert"].config(replace(teacher, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    beside = (replace(TEACHER, config=teacher),)
    return [(f"DistilBERT beside its teacher, {name}", TrainSetup("distilbert", student, each, beside=beside))
            for name, each in lengths.items()]


PAIRINGS: dict[str, Pairing] = {
    "distilbert": Pairing(distilbert_batch, distilbert_peer, partial(rules_of, "distilbert"), distilbert_flops),
}
