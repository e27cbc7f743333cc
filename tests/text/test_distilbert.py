"""DistilBERT against transformers, its losses against the formulas of the authors' code, and where a student begins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polymodal
import pytest
import torch
import torch.nn.functional as F
import transformers
from parity import RELATIVE, assert_both_ways, assert_same_gradients, rows_of, saved
from polymodal.pipelines.train.start import copy_weights
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.loss import IGNORE
from polymodal.shared.sample import Sample
from polymodal.shared.system import Companion
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.distilbert import DistilBertObjective, DistilBertSettings, spaced
from polymodal.text.distillation import divergence_, divergence_sum
from teachers import WORDS, saved_teacher, student, tokenizer

TINY = {"vocab_size": 99, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 24, "num_labels": 3}
OUTPUTS = {
    "DistilBertModel": ("last_hidden_state",),
    "DistilBertForMaskedLM": ("logits",),
    "DistilBertForSequenceClassification": ("logits",),
    "DistilBertForTokenClassification": ("logits",),
    "DistilBertForQuestionAnswering": ("start_logits", "end_logits"),
    "DistilBertForMultipleChoice": ("logits",),
}
ENTRY = family("distilbert")


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_theirs_to_ours_and_back(architecture, tmp_path):
    labels = {"num_labels": 2} if architecture == "DistilBertForQuestionAnswering" else {}
    theirs = saved(architecture, transformers.DistilBertConfig(**{**TINY, **labels}), tmp_path / "theirs")
    ids = torch.randint(0, 99, (3, 2, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :, 9:] = 0
    mask[2, 1, 3:] = 0
    if architecture != "DistilBertForMultipleChoice":
        ids, mask = ids.flatten(0, 1), mask.flatten(0, 1)
    assert_both_ways(theirs, tmp_path, OUTPUTS[architecture], [({"input_ids": ids, "attention_mask": mask}, None),
                                                               ({"input_ids": ids}, None)])


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_real_sizes(architecture):
    """Every key and shape of the base model, and its published number of parameters."""
    net, config = next(n for n in ENTRY.nets if n.architecture == architecture), ENTRY.config()
    with torch.device("meta"):
        ours, theirs = net.build(config), getattr(transformers, architecture)(transformers.DistilBertConfig())
    written = {k: v.shape for k, v in to_theirs(net.format("transformers").rules(config), ours.state_dict()).items()}
    assert written == {k: v.shape for k, v in theirs.state_dict().items() if k != "vocab_projector.weight"}
    assert {"DistilBertForMaskedLM": 66_985_530}.get(architecture, sum(p.numel() for p in theirs.parameters())) == sum(
        p.numel() for p in ours.parameters())


def test_dropout_is_where_theirs_is():
    block = polymodal.system("distilbert", size="tiny", dropout=0.5).net.trunk.stack.blocks[0]
    assert (block.attention_residual.dropout.p, block.feed_forward_residual.dropout.p, block.attention.dropout) == (0.0, 0.5, 0.1)
    nets = {net.architecture: net.build(ENTRY.config(**{**TINY, "dropout": 0.3, "qa_dropout": 0.4})) for net in ENTRY.nets}
    assert nets["DistilBertForTokenClassification"].dropout.p == 0.3 and nets["DistilBertForQuestionAnswering"].dropout.p == 0.4
    head = nets["DistilBertForSequenceClassification"].head
    assert head.dropout.p == 0.2 and not head.drops_first


# ------------------------------------------------------------------------------------------------ the losses


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture(scope="module")
def teacher(tok, tmp_path_factory):
    return saved_teacher(tok, tmp_path_factory.mktemp("teacher"))


def batch_of(system, texts=3):
    rng = np.random.default_rng(0)
    samples = [Sample(str(n), {"txt": ". ".join(" ".join(rng.choice(WORDS, 6)) for _ in range(1 + 4 * n)).encode()}, n)
               for n in range(texts)]
    return system.objective.collate([e for s in samples for e in system.objective.example(s, rng)])


@pytest.mark.parametrize("restricted", [False, True])
def test_losses_and_every_gradient_are_those_of_the_authors_code(tok, teacher, tmp_path, restricted):
    """Their `Distiller.step`, on padded rows of transformers' networks."""
    system = student(tok, teacher, restrict_ce_to_mask=restricted)
    system.objective.words = np.setdiff1d(np.arange(tok.vocab_size), [tok.pad_id])  # their word table learns nothing from padding
    batch = batch_of(system)
    assert len(set(batch.lengths)) > 2
    polymodal.save(system.net, tmp_path)
    theirs = transformers.DistilBertForMaskedLM.from_pretrained(tmp_path).train()
    bert = transformers.BertForMaskedLM.from_pretrained(teacher).eval()
    ids = rows_of(batch.input_ids[0], batch.lengths, tok.pad_id)
    mask = rows_of(torch.ones(batch.tokens).long(), batch.lengths, 0)
    labels = torch.full((batch.tokens,), IGNORE).index_copy(0, batch.target_rows, batch.targets)
    labels = rows_of(labels, batch.lengths, IGNORE)
    s = theirs(ids, attention_mask=mask, output_hidden_states=True)
    with torch.no_grad():
        t = bert(ids, attention_mask=mask, output_hidden_states=True)
    keep = labels > -1 if restricted else mask.bool()
    ce = F.kl_div(F.log_softmax(s.logits[keep] / 2, -1), F.softmax(t.logits[keep] / 2, -1), reduction="batchmean") * 2**2
    mlm = F.cross_entropy(s.logits.flatten(0, 1), labels.flatten())
    a, b = s.hidden_states[-1][mask.bool()], t.hidden_states[-1][mask.bool()]
    cos = F.cosine_embedding_loss(a, b, torch.ones(len(a)))
    (5 * ce + 2 * mlm + cos).backward()

    step = system(batch)
    found = {name: term.total / batch.counts[term.count] for name, term in step.terms.items()}
    assert {n: v.item() for n, v in found.items()} == pytest.approx({"mlm": mlm.item(), "ce": ce.item(), "cos": cos.item()}, rel=RELATIVE)
    sum(step.terms[n].weight * v for n, v in found.items()).backward()
    assert_same_gradients(system.net, theirs, ENTRY.nets[0].format("transformers").rules(system.net.config))


def test_the_distance_of_predictions_is_the_divergence_and_the_logits_become_its_gradient():
    generator = torch.Generator().manual_seed(0)
    logits, others = (torch.randn(7, 300, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    leaf = logits.clone().requires_grad_()
    expected = F.kl_div((leaf / 3).log_softmax(-1), (others / 3).softmax(-1), reduction="sum") * 9
    expected.backward()
    torch.testing.assert_close(divergence_(logits, others, 3.0), expected.detach())
    torch.testing.assert_close(logits, leaf.grad)
    assert divergence_(others.clone(), others, 2.0) == pytest.approx(0, abs=1e-12)


def test_the_distance_is_the_same_in_any_number_of_chunks(tok, teacher, monkeypatch):
    from polymodal.shared import loss

    head, other = student(tok, teacher).net.head, polymodal.load(teacher).head
    x, states = (torch.randn(23, 32, generator=torch.Generator().manual_seed(n)) for n in range(2))
    whole = divergence_sum(head, x.clone().requires_grad_(), other, states, 2.0)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 5 * tok.vocab_size)
    assert divergence_sum(head, x.clone().requires_grad_(), other, states, 2.0).item() == pytest.approx(whole.item(), rel=1e-6)


def test_a_student_without_a_teacher_has_masked_words_alone(tok, teacher):
    alone = student(tok, teacher, alpha_ce=0, alpha_cos=0)
    assert not alone.companions and set(alone(batch_of(alone)).terms) == {"mlm"} and "ce" not in alone.measured()
    untaught = polymodal.system("distilbert", size="tiny", tokenizer=tok, objective={"mlm_smoothing": 0})
    with pytest.raises(UserError, match="built without a teacher: pass companions="):
        untaught(batch_of(untaught))


def test_the_teacher_runs_once_for_each_micro_batch_in_the_students_format_and_draws_nothing(tok, teacher, monkeypatch):
    system = student(tok, teacher)
    batch, net = batch_of(system), system.teacher.net
    seen = []
    monkeypatch.setattr(net.trunk, "forward", lambda *a, run=net.trunk.forward, **k: (
        seen.append((net.head.weight.dtype, torch.is_grad_enabled(), net.training)), run(*a, **k))[1])
    state = torch.get_rng_state()
    system(batch)
    assert seen == [(torch.float32, False, False)] and torch.equal(state, torch.get_rng_state())
    with torch.autocast("cpu", torch.bfloat16):
        half = system(batch)
    assert net.head.weight.dtype == torch.bfloat16 and len(seen) == 2
    exact = system(batch)  # its weights were read again: as they were
    assert exact.terms["ce"].total.item() == system(batch).terms["ce"].total.item()
    assert half.terms["ce"].total.item() == pytest.approx(exact.terms["ce"].total.item(), rel=0.05)


# ------------------------------------------------------------------------------------------------ the beginning


def test_layers_are_those_of_the_authors_script():
    assert spaced(12, 6) == [0, 2, 4, 7, 9, 11] and spaced(6, 3) == [0, 2, 5] and spaced(2, 1) == [0] and spaced(4, 4) == [0, 1, 2, 3]


def test_a_student_begins_with_layers_of_its_teacher(tok, teacher):
    source, target = polymodal.load(teacher), student(tok, teacher).net
    lines = copy_weights(target, source, ENTRY, "it", ENTRY.starts["bert"])
    assert "loaded" in lines[0]
    for ours, theirs in enumerate((0, 2)):
        for name, tensor in target.trunk.stack.blocks[ours].state_dict().items():
            assert torch.equal(tensor, source.trunk.stack.blocks[theirs].state_dict()[name]), name
    for part in ("embed.word", "embed.position", "embed.norm"):
        assert torch.equal(target.trunk.get_submodule(part).weight, source.trunk.get_submodule(part).weight)
    assert torch.equal(target.head.transform.dense.weight, source.head.transform.dense.weight)
    config = ENTRY.starts["bert"].config(replace(source.config, num_hidden_layers=12))
    assert (config.n_layers, config.dim, config.vocab_size, config.max_position_embeddings) == (6, 32, tok.vocab_size, 42)
    deep = ENTRY.nets[0].build(replace(target.config, n_layers=4))
    with pytest.raises(UserError, match=r"the student has 4 layers and the model that it begins with 3: set model\.n_layers"):
        copy_weights(deep, source, ENTRY, "it", ENTRY.starts["bert"])


# ------------------------------------------------------------------------------------------------ mistakes


def test_a_teacher_that_does_not_fit_is_refused_in_a_line(tok, teacher, tmp_path):
    def refusal(**changed):
        with pytest.raises(UserError) as found:
            polymodal.system("distilbert", **{"size": "tiny", "tokenizer": tok, "companions": {"teacher": teacher}, "dim": 32, "n_heads": 2,
                                              "max_position_embeddings": 42, **changed})
        assert "\n" not in str(found.value)
        return str(found.value)

    other = Tokenizer.train(["aa bb cc dd"] * 9, "wordpiece", 17)
    assert "reads with another tokenizer" in refusal(tokenizer=other)
    assert "has states of 32 numbers and the student of 64: set model.dim=32, or objective.alpha_cos=0" in refusal(dim=64)
    assert "has 42 positions and the student reads 64 tokens: set objective.max_length=42" in refusal(max_position_embeddings=64)
    assert "alpha_ce is -1.0, expected at least 0" in refusal(objective={"alpha_ce": -1})
    assert "temperature is 0.0" in refusal(objective={"temperature": 0})
    assert "expected a loss" in refusal(objective={"alpha_ce": 0, "alpha_cos": 0, "alpha_mlm": 0})
    polymodal.save(polymodal.system("bert", size="tiny", task="classify", tokenizer=tok, classes=("a", "b")).net, tmp_path / "classes")
    assert "holds a SequenceClassification, expected one" in refusal(companions={"teacher": tmp_path / "classes"})
    polymodal.save(polymodal.system("vit", size="tiny").net, tmp_path / "vit")
    assert "needs a network of bert or" in refusal(companions={"teacher": tmp_path / "vit"})


def test_a_companions_tokenizer_is_the_one_that_lies_with_it(tok, teacher, tmp_path):
    system = student(tok, teacher)
    assert system.companions["teacher"].tokenizer.fingerprint == tok.fingerprint
    assert Companion("here", lambda: system.net).tokenizer is None


def test_rare_words_are_masked_more_often_by_the_papers_power(tok):
    """Two words, one of which stands 100 times as often: a place of the rare one is drawn first 100^0.7 times as often."""
    counts = np.zeros(tok.vocab_size, dtype=np.int64)
    rare, common = (tok.encode(word, add_special_tokens=False)[0] for word in WORDS[:2])
    counts[rare], counts[common] = 10, 1000
    objective = DistilBertObjective(tok, DistilBertSettings(mask_prob=0.02), 42, counts)
    ids = np.array([tok.cls_id, *[rare, common] * 20, tok.sep_id])
    rng = np.random.default_rng(0)
    drawn = np.concatenate([objective.choose(ids, np.zeros((0, 2)), rng) for _ in range(4000)])
    share, odds = float((ids[drawn] == rare).mean()), 100**0.7
    assert len(drawn) == 4000 and abs(share - odds / (1 + odds)) < 3.29 * (odds / (1 + odds) ** 2 / 4000) ** 0.5


def test_special_tokens_are_never_masked_and_no_place_is_drawn_twice(tok):
    counts = np.arange(tok.vocab_size)
    objective = DistilBertObjective(tok, DistilBertSettings(mask_prob=0.5), 42, counts)
    ids = np.array([tok.cls_id, tok.unk_id, *range(10, 30), tok.sep_id])
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = objective.choose(ids, np.zeros((0, 2)), rng)
        assert len(set(chosen.tolist())) == len(chosen) == round(0.5 * len(ids)) and (np.diff(chosen) > 0).all()
        assert not set(ids[chosen].tolist()) & tok.special_ids
    with pytest.raises(UserError, match="needs to know how often each token stands in the training data: pack all of it with --tokenize"):
        ENTRY.pretraining.build(ENTRY.config(**TINY), {"alpha_ce": 0, "alpha_cos": 0}, Context(tok))
