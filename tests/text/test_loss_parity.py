"""Pretraining losses and their gradients against transformers: a packed batch of the objective, which they get as padded rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import RELATIVE, assert_same_gradients, noise, rows_of
from polymodal.registry import family
from polymodal.shared.loss import IGNORE
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer

WORDS = [a + b for a in ("ka", "mo", "ti", "su") for b in ("ren", "sol", "an", "es")]
SIZES = {"wordpiece": 50, "byte-bpe": 290, "unigram": 24}
"""Of vocabularies, by kind."""
SMALL = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 42, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0}


def masked_labels(batch: Any) -> torch.Tensor:
    labels = torch.full((batch.tokens,), IGNORE)
    labels[batch.target_rows] = batch.targets
    return rows_of(labels, batch.lengths, IGNORE)


def masked_words(system: Any, batch: Any) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "labels": masked_labels(batch)}


def masked_words_and_pairs(system: Any, batch: Any) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "labels": masked_labels(batch), "next_sentence_label": batch.next_sentence}


def masked_words_and_order(system: Any, batch: Any) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "labels": masked_labels(batch), "sentence_order_label": batch.next_sentence}


def replaced_tokens(system: Any, batch: Any) -> dict[str, Any]:
    _, ids, replaced = system.fill(batch)
    return {"input_ids": ids, "labels": rows_of(replaced.long(), batch.lengths, 0)}


@dataclass
class Reference:
    """A class of transformers that computes the loss, and what it is given."""

    cls: str
    inputs: Callable[[Any, Any], dict[str, Any]]
    terms: tuple[str, ...] = ("mlm",)
    net: Callable[[Any], Any] = lambda system: system.net
    network: int = 0
    """Which of the family's."""
    settings: Mapping[str, Any] = field(default_factory=dict)


REFERENCES = {
    "bert": Reference("BertForPreTraining", masked_words_and_pairs, ("mlm", "nsp")),
    "bert, no pairs": Reference("BertForMaskedLM", masked_words, settings={"objective": {"nsp": False}}, network=1),
    "roberta": Reference("RobertaForMaskedLM", masked_words),
    "albert": Reference("AlbertForPreTraining", masked_words_and_order, ("mlm", "sop"),
                        settings={"classifier_dropout_prob": 0.0, "num_hidden_layers": 3}),
    "ernie": Reference("ErnieForMaskedLM", masked_words, network=1),
    "macbert": Reference("BertForPreTraining", masked_words_and_pairs, ("mlm", "sop")),
    "electra": Reference("ElectraForPreTraining", replaced_tokens, ("rtd",)),
    "electra, generator": Reference("ElectraForMaskedLM", masked_words, net=lambda system: system.generator, network=1),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_loss_and_every_gradient_of_a_batch_are_the_references(name, tmp_path):
    want, entry = REFERENCES[name], family(name.partition(",")[0])
    vocabulary = entry.vocabulary
    assert vocabulary is not None
    tok = Tokenizer.train([" ".join(WORDS)] * 9, vocabulary.kind, SIZES[vocabulary.kind], style=STYLES[vocabulary.style])
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    system: Any = polymodal.system(entry.name, size="tiny", tokenizer=tok, **{**SMALL, **want.settings})
    noise(system).train()
    # their word table learns nothing from padding, not even from a token that was drawn at random
    system.objective.words = np.setdiff1d(np.arange(tok.vocab_size), [tok.pad_id])
    texts = [". ".join(" ".join(rng.choice(WORDS, 6)) for _ in range(1 + 6 * n)) for n in range(3)]
    samples = [Sample(str(n), {"txt": text.encode()}, n) for n, text in enumerate(texts)]
    for sample, other in zip(samples, [samples[-1], *samples]):
        sample.pair_with(lambda other=other: other)
    batch = system.objective.collate([e for s in samples for e in system.objective.example(s, rng)])
    assert len(batch.lengths) > 3 and len(set(batch.lengths)) > 2

    net = want.net(system)
    polymodal.save(net, tmp_path)
    theirs = getattr(transformers, want.cls).from_pretrained(tmp_path).train()
    inputs = want.inputs(system, batch)
    inputs["input_ids"] = rows_of(inputs["input_ids"][0], batch.lengths, tok.pad_id)
    inputs["token_type_ids"] = rows_of(batch.token_type_ids[0], batch.lengths, 0)
    expected = theirs(**inputs, attention_mask=rows_of(torch.ones(batch.tokens).long(), batch.lengths, 0)).loss
    expected.backward()
    terms = system(batch).terms
    loss = sum(terms[t].total / batch.counts[terms[t].count] for t in want.terms)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE)
    assert_same_gradients(net, theirs, entry.nets[want.network].format("transformers").rules(net.config))
