"""NNLM beside the paper: its formula in loops, its number of parameters, finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.nnlm import FAMILIES, NNLM, SIZES, NextWords, NNLMConfig, NNLMSystem

WORDS = [f"w{n}" for n in range(12)]
TOKENIZER = Tokenizer.train([" ".join(WORDS)] * 2, "word", 17)
(FAMILY,) = FAMILIES


def system(**config):
    torch.manual_seed(0)
    made = NNLMConfig(**{"vocab_size": 17, "embedding_size": 3, "hidden_size": 4, "order": 4, "initializer_range": 0.5, **config})
    built = NNLMSystem(NNLM(made), NextWords(TOKENIZER, made.order)).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.5)
    return built


def batch_of(made, *lengths):
    ids = np.random.default_rng(0).integers(5, 17, sum(lengths))
    sample = Sample("a", {"tokens.u16": ids.astype("<u2").tobytes(), "lengths.u32": np.array(lengths, "<u4").tobytes()})
    return ids, made.objective.collate(list(made.objective.example(sample, np.random.default_rng(0))))


@pytest.mark.parametrize("size", ["base", "ap"])
@pytest.mark.parametrize("direct", [True, False])
def test_the_number_of_parameters_is_the_papers(size, direct):
    with torch.device("meta"):
        c = NNLMConfig(**{**SIZES[size], "direct_connections": direct})
        found = sum(p.numel() for p in NNLM(c).parameters())
    words, m, h, n = c.vocab_size, c.embedding_size, c.hidden_size, c.order
    assert found == words * (1 + (n * m if direct else m) + h) + h * (1 + (n - 1) * m)


@pytest.mark.parametrize("direct", [True, False])
def test_loss_is_the_papers_formula_in_loops(direct):
    made = system(direct_connections=direct)
    ids, batch = batch_of(made, 5, 1, 4)
    p = {name: value.detach().numpy() for name, value in made.net.named_parameters()}
    total = 0.0
    for begin, end in ((0, 5), (5, 6), (6, 10)):
        for t in range(begin, end):
            before = [ids[t - k] if t - k >= begin else TOKENIZER.bos_id for k in (1, 2, 3)]
            x = np.concatenate([p["embed.weight"][i] for i in before])
            y = p["output.bias"] + p["output.weight"] @ np.tanh(p["hidden.bias"] + p["hidden.weight"] @ x)
            y = y + p["direct.weight"] @ x if direct else y
            total += math.log(np.exp(y).sum()) - y[ids[t]]
    step = made(batch)
    assert step.terms["lm"].total.item() == pytest.approx(total, rel=1e-12) and batch.counts == {"targets": 10}
    logits = made.net(batch.before)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum"), step.terms["lm"].total)


@pytest.mark.parametrize("direct", [True, False])
def test_gradients_are_those_of_finite_differences(direct):
    made = system(direct_connections=direct)
    _, batch = batch_of(made, 7, 3)
    made(batch).terms["lm"].total.backward()
    for parameter in made.parameters():
        found = torch.zeros_like(parameter)
        with torch.no_grad():
            for place in np.ndindex(*parameter.shape):
                ends = []
                for shift in (1e-5, -2e-5):
                    parameter[place] += shift
                    ends.append(made(batch).terms["lm"].total.item())
                parameter[place] += 1e-5
                found[place] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(parameter.grad, found, rtol=1e-6, atol=1e-7)


def test_texts_are_read_as_rows_are_and_rare_words_are_one():
    made = system()
    (example,) = made.objective.example(Sample("a", {"txt": b"w3 nobody w1"}), np.random.default_rng(0))
    three, unknown, one = (TOKENIZER.token_to_id(w) for w in ("w3", "<unk>", "w1"))
    begin = TOKENIZER.bos_id
    assert example.targets.tolist() == [three, unknown, one]
    assert example.before.tolist() == [[begin] * 3, [three, begin, begin], [unknown, three, begin]], "the last word first"
    assert made.objective.describe(example).rows[2] == ("<s> w3 <unk>", "w1")
    with pytest.raises(BadSample, match="the text is empty"):
        list(made.objective.example(Sample("a", {"txt": b" "}), np.random.default_rng(0)))


def test_what_makes_no_network_is_refused():
    with pytest.raises(UserError, match="order is 1, expected at least 2"):
        NNLMConfig(order=1)
    with pytest.raises(UserError, match="tokenizer train --for nnlm"):
        NextWords(Tokenizer.train(["a b"] * 2, "word", 3, style=polymodal_style()), 3)
    adapted = FAMILY.adapt(NNLMConfig(), Context(TOKENIZER))
    assert adapted.vocab_size == 17 and adapted.special_token_ids == (0, 1, 2, 3, 4)


def polymodal_style():
    """Special tokens without a beginning."""
    from polymodal.shared.tokenizer import Style

    return Style(tokens=("<unk>",), roles={"unk": "<unk>"})


def test_the_table_of_words_is_what_is_exported():
    made = system()
    assert made.net.word_vectors() is made.net.embed.weight and FAMILY.nets[0].written.keys() == {"gensim", "glove"}
    assert made.derive({"lm": math.log(9)}) == {"perplexity": pytest.approx(9)}
