"""The loss of a batch and every gradient against transformers, for each decoder."""

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import RELATIVE, assert_same_gradients, noise, rows_of
from polymodal.registry import family
from polymodal.shared.loss import IGNORE
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer

WORDS = [a + b for a in ("ka", "mo", "ti", "su") for b in ("ren", "sol", "an", "es")]
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 24, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.mark.parametrize(("name", "cls", "more"), [("gpt", "OpenAIGPTLMHeadModel", {}), ("gpt2", "GPT2LMHeadModel", {}),
                                                   ("gpt3", "GPT2LMHeadModel", {"window_size": None})])
def test_loss_and_every_gradient_of_a_batch_are_the_references(name, cls, more, tmp_path):
    tok = Tokenizer.train([" ".join(WORDS)] * 9, "byte-bpe", 280)
    torch.manual_seed(0)
    system = polymodal.system(name, size="tiny", tokenizer=tok, **SMALL, **more)
    noise(system).train()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 3 + 9 * n)) for n in range(4)]
    samples = [Sample(str(n), {"txt": text.encode()}, n) for n, text in enumerate(texts)]
    batch = system.objective.collate([e for s in samples for e in system.objective.example(s, rng)])
    assert len(batch.lengths) > 4 and len(set(batch.lengths)) > 2

    polymodal.save(system.net, tmp_path)
    theirs = getattr(transformers, cls).from_pretrained(tmp_path).train()
    # they shift by themselves: every row gets the target of its last token as one more token, which is read for nothing
    ends = np.cumsum(batch.lengths)
    whole = [torch.cat([ids, batch.targets[end - 1:end]]) for ids, end in zip(batch.input_ids[0].split(list(batch.lengths)), ends)]
    rows, keep = (rows_of(torch.cat(parts), [len(p) for p in parts], 0) for parts in (whole, [torch.ones_like(w) for w in whole]))
    logits = theirs(input_ids=rows[:, :-1], attention_mask=keep[:, 1:]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].masked_fill(keep[:, 1:] == 0, IGNORE).flatten(),
                                                 ignore_index=IGNORE)
    expected.backward()
    loss = system(batch).terms["lm"].total / batch.counts["targets"]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE)
    assert_same_gradients(system.net, theirs, family(name).nets[0].format("transformers").rules(system.net.config))
