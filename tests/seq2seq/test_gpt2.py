"""GPT-2's data side and loss."""

import pickle
from itertools import pairwise

import numpy as np
import polymodal
import pytest
import torch
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer

TEXTS = ["it was the best of times, it was the worst of times", "call me Ishmael", "all happy families are alike " * 6]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(TEXTS * 5, "byte-bpe", 300)


@pytest.fixture
def system(tok):
    torch.manual_seed(0)
    return polymodal.system("gpt2", size="tiny", tokenizer=tok, objective={"max_length": 16},
                            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def examples(system, **fields):
    return list(system.objective.example(Sample("x", fields), np.random.default_rng(0)))


@pytest.mark.parametrize("text", TEXTS)
def test_every_token_but_the_first_is_predicted_once_and_the_end_too(system, tok, text):
    made = examples(system, txt=text.encode())
    document = [*tok.encode(text, add_special_tokens=False), tok.eos_id]
    assert [i for e in made for i in e.ids[1:].tolist()] == document[1:]
    assert all(len(e.ids) <= 17 for e in made)
    for before, after in pairwise(made):
        assert before.ids[-1] == after.ids[0]


def test_rows_are_taken_as_packed(system):
    ids, lengths = np.arange(30, 70), [1, 5, 34]
    made = examples(system, **{"tokens.u16": ids.astype("<u2").tobytes(), "lengths.u32": np.array(lengths, "<u4").tobytes()})
    assert [e.ids.tolist() for e in made] == [list(range(31, 36)), list(range(36, 53)), list(range(52, 69)), [68, 69]]


def test_samples_that_cannot_be_used(system):
    for fields in ({"txt": b"\xff"}, {"txt": b" "}, {"tokens.u16": b"\x05\x00"}, {"tokens.u16": b"\x05"}):
        with pytest.raises(BadSample):
            examples(system, **fields)


def test_the_loss_is_that_of_single_documents(system):
    made = [e for t in TEXTS for e in examples(system, txt=t.encode())]
    batch = pickle.loads(pickle.dumps(system.objective)).collate(made)
    assert batch.counts == {"targets": sum(len(e.ids) - 1 for e in made)} and batch.tokens == batch.counts["targets"]
    step = system(batch)
    expected = sum(torch.nn.functional.cross_entropy(system.net(torch.from_numpy(e.ids[:-1])[None]).logits[0], torch.from_numpy(e.ids[1:]),
                                                     reduction="sum") for e in made)
    torch.testing.assert_close(step.terms["lm"].total, expected, rtol=1e-5, atol=0)
    step.terms["lm"].total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in system.parameters())
    system.eval()
    evaluated = system(batch)
    torch.testing.assert_close(evaluated.terms["lm"].total, expected, rtol=1e-5, atol=0)
    assert system.derive({"lm": 2.0})["perplexity"] == pytest.approx(np.exp(2))
    previews = system.preview(batch, limit=2)
    assert [row[0] for row in previews[0].rows] == ["prompt", "continuation", "truth"] and len(previews) == 2


def test_documents_do_not_leak_and_the_future_is_hidden(system):
    """Change one token: nothing before it moves, and nothing in another document."""
    system.eval()
    lengths = (7, 9, 5)
    ids = torch.randint(0, 200, (1, 21), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    changed = ids.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 200
    with torch.no_grad():
        a, b = (system.net(x, position_ids=positions, lengths=lengths).logits[0] for x in (ids, changed))
    moved = (a - b).abs().amax(-1) > 0
    assert moved[10:16].all() and not moved[:10].any() and not moved[16:].any()


def test_it_learns_a_text_by_heart(tok):
    torch.manual_seed(0)
    system = polymodal.system("gpt2", size="tiny", tokenizer=tok, n_embd=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    batch = system.objective.collate([e for t in TEXTS[:2] for e in examples(system, txt=t.encode())])
    optimizer = torch.optim.Adam(system.parameters(), 3e-3)
    for _ in range(60):
        loss = system(batch).terms["lm"].total / batch.counts["targets"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert polymodal.generate(system.net, "call me", tokenizer=tok) == "call me Ishmael"


def test_impossible_settings_are_refused(tok):
    with pytest.raises(UserError, match="128 positions"):
        polymodal.system("gpt2", size="tiny", tokenizer=tok, objective={"max_length": 129})
    with pytest.raises(UserError, match="n_head"):
        polymodal.system("gpt2", size="tiny", tokenizer=tok, n_head=3)
    with pytest.raises(UserError, match="no eos token"):
        polymodal.system("gpt2", size="tiny", tokenizer=Tokenizer.train(TEXTS, "wordpiece", 60))
