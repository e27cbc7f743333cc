"""What a teacher said, on the disk: the same loss, nothing mixed up, nothing trusted that is damaged."""

from __future__ import annotations

import numpy as np
import polymodal
import pytest
import teachers
import torch
import torch.nn.functional as F
from parity import noise
from polymodal.shared.errors import UserError
from polymodal.shared.heads import LMHead
from polymodal.shared.sample import Sample
from polymodal.text.distillation import divergence_, divergence_sum, told_by, told_divergence_, told_divergence_sum
from polymodal.text.logit_cache import LogitCache, Told, key_of
from teachers import WORDS, saved_teacher, tokenizer

HEAD = {"vocabulary": 50, "top": 3, "dtype": "float16"}


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture(scope="module")
def teacher(tok, tmp_path_factory):
    return saved_teacher(tok, tmp_path_factory.mktemp("teacher"))


def student(tok, teacher, **objective):
    return teachers.student(tok, teacher, **{"alpha_cos": 0, **objective})


def batch_of(system, texts=4, seed=0):
    rng = np.random.default_rng(seed)
    samples = [Sample(str(n), {"txt": " ".join(rng.choice(WORDS, 5 + 6 * n)).encode()}, n) for n in range(texts)]
    return system.objective.collate([e for s in samples for e in system.objective.example(s, rng)])


def counting(system, monkeypatch):
    """Tokens of each time that the teacher reads."""
    seen, trunk = [], system.teacher.net.trunk
    monkeypatch.setattr(trunk, "forward", lambda ids, *a, run=trunk.forward, **k: (seen.append(ids.numel()), run(ids, *a, **k))[1])
    return seen


def loss_of(system, batch):
    step = system(batch)
    loss = sum(t.weight * t.total / batch.counts[t.count] for t in step.terms.values())
    system.zero_grad()
    loss.backward()
    return step, [p.grad.clone() for p in system.net.parameters()]


# -------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("restricted", [False, True])
def test_with_all_words_it_is_the_loss_without_a_cache_and_a_full_one_asks_nobody(tok, teacher, tmp_path, monkeypatch, restricted):
    plain = student(tok, teacher, restrict_ce_to_mask=restricted)
    kept = student(tok, teacher, restrict_ce_to_mask=restricted, cache=str(tmp_path / "c"), cache_top=tok.vocab_size, cache_dtype="float32")
    batch = batch_of(kept)
    seen = counting(kept, monkeypatch)
    (expected, gradients), (first, found) = loss_of(plain, batch), loss_of(kept, batch)
    assert first.terms["ce"].total.item() == pytest.approx(expected.terms["ce"].total.item(), rel=1e-6)
    for a, b in zip(found, gradients, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-9
    assert seen == [batch.tokens] and first.metrics["cached"][0].item() == 0

    follower = student(tok, teacher, restrict_ce_to_mask=restricted, cache=str(tmp_path / "c"), cache_top=tok.vocab_size,
                       cache_dtype="float32")
    seen = counting(follower, monkeypatch)
    again, same = loss_of(follower, batch)
    assert not seen and again.metrics["cached"] == (torch.tensor(float(len(batch.lengths))), len(batch.lengths))
    assert again.terms["ce"].total.item() == first.terms["ce"].total.item()
    assert all(torch.equal(a, b) for a, b in zip(same, found, strict=True))


@pytest.mark.parametrize("restricted", [False, True])
def test_the_teacher_is_asked_for_what_is_missing_alone(tok, teacher, tmp_path, monkeypatch, restricted):
    system = student(tok, teacher, restrict_ce_to_mask=restricted, cache=str(tmp_path / "c"), cache_top=8)
    rng = np.random.default_rng(5)
    made = [next(iter(system.objective.example(Sample(str(n), {"txt": " ".join(rng.choice(WORDS, 4 + 3 * n)).encode()}, n), rng)))
            for n in range(6)]
    whole = system.objective.collate(made)
    alone = student(tok, teacher, restrict_ce_to_mask=restricted, cache=str(tmp_path / "other"), cache_top=8)(whole)
    system(system.objective.collate([made[4], made[1]]))
    seen = counting(system, monkeypatch)
    mixed = system(whole)
    assert seen == [sum(len(made[n].input_ids) for n in (0, 2, 3, 5))] and mixed.metrics["cached"][0].item() == 2
    assert mixed.terms["ce"].total.item() == pytest.approx(alone.terms["ce"].total.item(), rel=1e-3)  # packed otherwise: fp16 rounds


def test_the_gradient_is_that_of_the_divergence_of_the_known_words_and_the_rest_together():
    generator = torch.Generator().manual_seed(0)
    logits, others = (torch.randn(7, 300, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    values, indices = others.topk(20)
    p = (others / 3).softmax(-1)
    rest = 1 - p.gather(1, indices).sum(-1)
    leaf = logits.clone().requires_grad_()
    q = (leaf / 3).softmax(-1)
    known = q.gather(1, indices)
    events = torch.cat([known, 1 - known.sum(-1, keepdim=True)], -1)
    expected = F.kl_div(events.log(), torch.cat([p.gather(1, indices), rest[:, None]], -1), reduction="sum") * 9
    expected.backward()
    told = Told(indices, values - values[:, :1], rest)
    whole = divergence_(logits.clone(), others, 3.0)
    torch.testing.assert_close(found := told_divergence_(logits, told, 3.0), expected.detach())
    torch.testing.assert_close(logits, leaf.grad)
    assert 0 < found < whole, "what is not told apart is no distance"
    assert told_divergence_(others.clone(), told, 3.0) == pytest.approx(0, abs=1e-12)


def test_a_student_that_gives_the_rest_no_probability_gets_a_finite_loss():
    logits = torch.zeros(1, 8)
    logits[0, 0] = 400.0
    told = Told(torch.tensor([[0, 1]]), torch.zeros(1, 2), torch.tensor([0.5]))
    assert torch.isfinite(told_divergence_(logits, told, 2.0)) and torch.isfinite(logits).all()


def test_more_words_come_nearer(monkeypatch):
    from polymodal.shared import loss

    torch.manual_seed(0)
    ours, theirs = (LMHead(16, 200, bias=True) for _ in range(2))
    for head in (ours, theirs):
        torch.nn.init.normal_(head.weight)
    x, states = torch.randn(9, 16), torch.randn(9, 16)
    whole = divergence_sum(ours, x, theirs, states, 2.0).item()
    found = [told_divergence_sum(ours, x, told_by(theirs, states, top, 2.0), 2.0).item() for top in (1, 8, 64, 200)]
    assert found == sorted(found) and found[-1] == pytest.approx(whole, rel=1e-6) and found[0] < 0.95 * whole
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 4 * 200)
    assert told_divergence_sum(ours, x, told_by(theirs, states, 8, 2.0), 2.0).item() == pytest.approx(found[1], rel=1e-6)


# -------------------------------------------------------------------------------------------------- the files


def told(rows, seed=0):
    rng = np.random.default_rng(seed)
    return Told(torch.from_numpy(rng.integers(0, 50, (rows, 3))), torch.from_numpy(-rng.random((rows, 3)).astype(np.float32)),
                torch.from_numpy(rng.random(rows).astype(np.float32)))


def filled(folder, seed=0):
    cache = LogitCache(folder, HEAD)
    entries = cache.encode(told(9, seed), [4, 0, 5])
    keys = [key_of(np.array([seed, n])) for n in range(3)]
    cache.keep(keys, entries)
    return cache, keys, entries


def test_entries_come_back_as_they_were(tmp_path):
    cache, keys, entries = filled(tmp_path / "c")
    assert [len(e) for e in entries] == [4 * cache.row_bytes, 0, 5 * cache.row_bytes] and cache.row_bytes == 3 * (2 + 2) + 4
    again = LogitCache(tmp_path / "c", HEAD)
    assert again.find(keys, [4, 0, 5]) == entries and len(again) == 3
    back, was = again.decode(entries), told(9)
    assert torch.equal(back.indices, was.indices) and torch.equal(back.rest, was.rest) and torch.equal(back.values, was.values.half())
    assert again.find([key_of(np.array([7]))], [4]) == [None] and again.find(keys, [4, 0, 6])[2] is None


def test_a_masked_text_is_known_by_its_tokens_and_places():
    ids = np.array([2, 7, 4, 3])
    assert key_of(ids) == key_of(ids.astype(np.int32)) != key_of(np.array([2, 7, 4, 4]))
    assert len({key_of(ids), key_of(ids, np.array([1])), key_of(ids, np.array([2])), key_of(ids, np.array([], dtype=np.int64))}) == 4


def test_what_a_kill_cut_short_is_asked_for_again_and_the_rest_is_kept(tmp_path):
    cache, keys, entries = filled(tmp_path / "c")
    (part,) = (tmp_path / "c").glob("part-*")
    whole = part.stat().st_size
    more = [key_of(np.array([9, n])) for n in range(3)]
    cache.keep(more, entries)
    data = part.read_bytes()
    for size in (whole + 3, whole + 20, len(data) - 1):
        part.write_bytes(data[:size])
        again = LogitCache(tmp_path / "c", HEAD)
        assert again.find(keys, [4, 0, 5]) == entries and again.find(more, [4, 0, 5]) == [None] * 3
    again.keep(more, entries)
    assert LogitCache(tmp_path / "c", HEAD).find([*keys, *more], [4, 0, 5] * 2) == entries * 2
    assert len(list((tmp_path / "c").glob("part-*"))) == 2, "nobody appends to another process's file"


def test_a_damaged_entry_is_not_trusted(tmp_path):
    _, keys, entries = filled(tmp_path / "c")
    (part,) = (tmp_path / "c").glob("part-*")
    data = bytearray(part.read_bytes())
    data[-2] ^= 1
    part.write_bytes(data)
    again = LogitCache(tmp_path / "c", HEAD)
    assert again.find(keys, [4, 0, 5]) == [entries[0], b"", None]
    again.keep(keys[2:], entries[2:])
    assert again.find(keys, [4, 0, 5]) == entries


def test_ranks_see_what_the_others_wrote_since(tmp_path):
    one, other = LogitCache(tmp_path / "c", HEAD), LogitCache(tmp_path / "c", HEAD)
    entries = one.encode(told(9), [4, 0, 5])
    for seed in range(2):
        keys = [key_of(np.array([seed, n])) for n in range(3)]
        one.keep(keys, entries)
        assert other.find(keys, [4, 0, 5]) == entries
    other.keep([key_of(np.array([5]))], entries[:1])
    assert one.find([key_of(np.array([5]))], [4]) == entries[:1]


def test_a_cache_of_something_else_is_refused_in_a_line(tok, teacher, tmp_path):
    here = str(tmp_path / "c")
    system = student(tok, teacher, cache=here, cache_top=8)
    system(batch_of(system))
    for changed, told in (({"cache_top": 9}, "top 8, expected 9"), ({"temperature": 3.0}, "temperature 2.0, expected 3.0"),
                          ({"mask_prob": 0.2}, "mask_prob 0.15, expected 0.2"), ({"maskings": 2}, "maskings 1, expected 2"),
                          ({"restrict_ce_to_mask": True}, "restrict_ce_to_mask false, expected true")):
        with pytest.raises(UserError, match=told):
            student(tok, teacher, **{"cache": here, "cache_top": 8, **changed})
    other = tmp_path / "other"
    polymodal.save(noise(polymodal.load(teacher), seed=4), other, tokenizer=tok)
    with pytest.raises(UserError, match=r"keeps the logits of something else: it has teacher \w{12}, expected \w{12}; set that back"):
        student(tok, other, cache=here, cache_top=8)
    (tmp_path / "c" / "head.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        student(tok, teacher, cache=here, cache_top=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        student(tok, teacher, cache=str(tmp_path / "full"))
    with pytest.raises(UserError, match="is a file"):
        student(tok, teacher, cache=str(tmp_path / "full" / "notes.txt"))


def test_settings_that_make_no_sense_are_refused(tok, teacher, tmp_path):
    for objective, told in (({"alpha_cos": 1}, "keeps what the teacher predicts and not its states: set objective.alpha_cos=0"),
                            ({"alpha_ce": 0}, "nothing to keep"), ({"cache_top": 0}, "cache_top is 0"), ({"maskings": 0}, "maskings is 0"),
                            ({"cache_dtype": "int8"}, "cache_dtype is 'int8'")):
        with pytest.raises(UserError, match=told):
            student(tok, teacher, **{"cache": str(tmp_path / "c"), **objective})
    assert not (tmp_path / "c").exists(), "a system that is only built writes nothing"
