"""TinyBERT's distances against the formulas of the authors' code, on transformers' networks."""

from __future__ import annotations

import numpy as np
import polymodal
import pytest
import torch
import torch.nn.functional as F
import transformers
from parity import RELATIVE, noise
from polymodal.registry import family
from polymodal.shared.attention.plan import Seen
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text._distances import score_distance_sum

WORDS = [a + b for a in ("ka", "mo", "ti", "su") for b in ("ren", "sol", "an", "es")]
TEACHER = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 42}
STUDENT = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 42,
           "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS)] * 9, "wordpiece", 50)


def saved(path, tok, task="", seed=3, **more):
    made = polymodal.system("bert", size="tiny", task=task, tokenizer=tok, classes=("a", "b", "c") if task else None,
                            **{**TEACHER, **more})
    polymodal.save(noise(made.net, seed=seed), path, tokenizer=tok)
    return path


@pytest.fixture(scope="module")
def teacher(tok, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("teacher"), tok)


@pytest.fixture(scope="module")
def tuned(tok, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("tuned"), tok, "classify")


def student(tok, of, task="", **changed):
    objective = changed.pop("objective", {} if task else {"teacher_size": 32})
    made = polymodal.system("tinybert", **{"size": "tiny", "task": task, "tokenizer": tok, "companions": {"teacher": of},
                                           "classes": ("a", "b", "c") if task else None, "objective": objective, **STUDENT, **changed})
    return noise(made).train()


def batch_of(system, count=3):
    rng = np.random.default_rng(0)
    samples = [Sample(str(n), {"txt": ". ".join(" ".join(rng.choice(WORDS, 6)) for _ in range(1 + 2 * n)).encode(), "cls": b"1"}, n)
               for n in range(count)]
    return system.objective.collate([e for s in samples for e in system.objective.example(s, rng)])


def scores_of(model, ids):
    """Attention scores before the softmax and states of transformers' network, for one text [1, S]."""
    kept = []

    def keep(module, arguments, out):
        q, k = (f(arguments[0]).unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2) for f in (module.query, module.key))
        kept.append(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)

    hooks = [layer.attention.self.register_forward_hook(keep) for layer in model.encoder.layer]
    out = model(ids, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    for scores, weights in zip(kept, out.attentions, strict=True):
        torch.testing.assert_close(scores.softmax(-1), weights)  # these are what it attends by
    return kept, out.hidden_states


def test_losses_and_gradients_are_those_of_the_authors_code(tok, teacher, tmp_path):
    """`task_distill.py`: MSE of the scores of the last layer of each group, and of the states through one map; over real tokens alone."""
    system = student(tok, teacher)
    batch = batch_of(system)
    assert len(set(batch.lengths)) > 2
    polymodal.save(system.net, tmp_path)
    theirs = transformers.BertModel.from_pretrained(tmp_path, attn_implementation="eager").train()
    bert = transformers.BertModel.from_pretrained(teacher, attn_implementation="eager").eval()
    fit = torch.nn.Linear(20, 32)
    fit.load_state_dict(system.imitation.fit_dense.state_dict())
    attention = hidden = 0.0
    for ids in batch.input_ids[0].split(list(batch.lengths)):
        with torch.no_grad():
            (t_scores, t_states), length = scores_of(bert, ids[None]), len(ids)
        scores, states = scores_of(theirs, ids[None])
        attention += sum(F.mse_loss(a, t_scores[i]) for a, i in zip(scores, (1, 3), strict=True)) * length**2
        hidden += sum(F.mse_loss(fit(a), t_states[i]) for a, i in zip(states, (0, 2, 4), strict=True)) * length
    attention, hidden = attention / sum(n**2 for n in batch.lengths), hidden / sum(batch.lengths)
    (attention + hidden).backward()

    terms = system(batch).terms
    found = {name: term.total / batch.counts[term.count] for name, term in terms.items()}
    assert {n: v.item() for n, v in found.items()} == pytest.approx({"attention": attention.item(), "hidden": hidden.item()}, rel=RELATIVE)
    sum(found.values()).backward()
    torch.testing.assert_close(system.imitation.fit_dense.weight.grad, fit.weight.grad, rtol=1e-4, atol=1e-5)
    ours, grads = system.net.trunk if hasattr(system.net, "trunk") else system.net, dict(theirs.named_parameters())
    torch.testing.assert_close(ours.embed.word.weight.grad, grads["embeddings.word_embeddings.weight"].grad, rtol=1e-4, atol=1e-5)
    qkv = torch.cat([grads[f"encoder.layer.1.attention.self.{n}.weight"].grad for n in ("query", "key", "value")])
    torch.testing.assert_close(ours.stack.blocks[1].attention.qkv.weight.grad, qkv, rtol=1e-4, atol=1e-5)
    assert ours.pooler.dense.weight.grad is None and not ours.pooler.dense.weight.requires_grad


def test_the_distance_of_scores_and_its_gradient_are_autograds():
    generator, lengths = torch.Generator().manual_seed(0), (3, 5, 1)
    q, k = (torch.randn(1, 2, 9, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    other = Seen(*(torch.randn(1, 2, 9, 6, generator=generator, dtype=torch.float64) for _ in range(2)), 0.3)
    found = torch.autograd.grad(mine := score_distance_sum(Seen(q, k, 0.7), other, lengths), (q, k))
    parts = zip(*(x.split(lengths, 2) for x in (q, k, other.q, other.k)), strict=True)
    expected = sum(((0.7 * a @ b.mT - 0.3 * c @ d.mT) ** 2).sum() for a, b, c, d in parts) / 2
    torch.testing.assert_close(mine, expected)
    for a, b in zip(found, torch.autograd.grad(expected, (q, k)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_watcher_changes_nothing_and_sees_each_layer(tok, teacher):
    net = polymodal.load(teacher)
    ids, seen = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(0)), []
    assert torch.equal(net.trunk(ids, seen=seen).last_hidden_state, net.trunk(ids).last_hidden_state)
    assert [tuple(s.q.shape) for s in seen] == [(2, 4, 7, 8)] * 4 and all(s.scale == 8**-0.5 for s in seen)


def test_predictions_are_the_soft_cross_entropy_over_texts_and_classes_less_its_least_value(tok, tuned):
    system = student(tok, tuned, "classify", objective={"temperature": 2.0})
    batch = batch_of(system)
    step = system(batch)
    mine = system.logits(batch) / 2
    with torch.no_grad():
        theirs = polymodal.load(tuned)(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths).logits / 2
    expected = (-theirs.softmax(-1) * mine.log_softmax(-1)).mean() + (theirs.softmax(-1) * theirs.log_softmax(-1)).mean()
    assert (step.terms["prediction"].total / batch.counts["texts"]).item() == pytest.approx(expected.item(), rel=RELATIVE)
    assert step.terms["classification"].weight == 0 and step.terms["prediction"].weight == 1


def test_the_intermediate_stage_leaves_the_head_alone_and_goes_on_to_predictions(tok, tuned):
    system = student(tok, tuned, "classify", objective={"stage": "intermediate", "teacher_size": 32})
    assert set(system(batch_of(system)).terms) == {"attention", "hidden"}
    frozen = {name for name, p in system.named_parameters() if not p.requires_grad}
    assert frozen == {f"net.{part}.{kind}" for part in ("trunk.pooler.dense", "classifier") for kind in ("weight", "bias")}
    assert all(p.requires_grad for p in student(tok, tuned, "classify").parameters())


def test_a_student_that_cannot_imitate_is_refused_in_a_line(tok, teacher, tuned, tmp_path):
    def refusal(of=teacher, task="", **changed):
        with pytest.raises(UserError) as found:
            student(tok, of, task, **changed)
        assert "\n" not in str(found.value)
        return str(found.value)

    said = refusal(num_hidden_layers=3)
    assert "has 4 layers and the student 3, which must divide them: set model.num_hidden_layers to one of 1, 2, 4" in said
    assert "has 4 attention heads and the student 2" in refusal(num_attention_heads=2)
    assert "set objective.teacher_size=32" in refusal(objective={})
    assert "expected one that was fine-tuned to classify texts" in refusal(task="classify")
    assert "reads with another tokenizer" in refusal(of=saved(tmp_path / "other", Tokenizer.train(["aa bb cc dd"] * 9, "wordpiece", 17)))
    assert "temperature is 0.0" in refusal(of=tuned, task="classify", objective={"temperature": 0})


def test_real_sizes():
    """The published numbers of parameters, which count transformers' BertModel."""
    entry = family("tinybert")
    with torch.device("meta"):
        counts = {size: sum(p.numel() for p in entry.nets[0].build(entry.config(**entry.sizes[size])).parameters())
                  for size in ("base", "base-6")}
    assert counts == {"base": 14_350_248, "base-6": 66_955_008}
