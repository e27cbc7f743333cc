"""ELECTRA's data side against the published procedure, its losses, and what it learns."""

import pickle

import numpy as np
import polymodal
import pytest
import torch
import transformers
from polymodal.pipelines.model.export import export_system
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.electra import ElectraObjective, ElectraSettings, draw, ordered_pairs, segments

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "omicron", "pi",
         "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"]
SMALL = {"embedding_size": 12, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS) + "."] * 20, "wordpiece", 100)


def sample(seed, sentences=12):
    rng = np.random.default_rng(seed)
    text = " ".join(" ".join(rng.choice(WORDS, rng.integers(3, 9))) + "." for _ in range(sentences))
    return Sample(str(seed), {"txt": text.encode()}, seed)


def rng(*key):
    return np.random.default_rng(key)


def objective(tok, max_length=32, **settings):
    return ElectraObjective(tok, ElectraSettings(**settings), max_length)


def examples(objective, samples):
    return [e for s in samples for e in objective.example(sample(s), rng(s))]


def original(example):
    ids = example.input_ids.copy()
    ids[example.positions] = example.targets
    return ids


def system(tok, seed=0, objective=None, **config):
    torch.manual_seed(seed)
    settings = {"max_length": 40, "generator_hidden_size": 0.5} | (objective or {})
    return polymodal.system("electra", size="tiny", tokenizer=tok, objective=settings, **SMALL | config)


# ------------------------------------------------------------------------------------------ the data side


def sentences(lengths):
    """Sentences whose ids number all tokens, so that every id says where it came from."""
    return np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])


@pytest.mark.parametrize("lengths", [[5] * 21, [38, 3, 37, 1, 14, 14, 14]], ids=["even", "uneven"])
def test_segments_cover_the_document_once_and_fit(lengths):
    for seed in range(100):
        made = list(segments(sentences(lengths), 40, 0.05, 0.1, rng(seed)))
        assert all(len(a) and len(a) + len(b) + 2 + (len(b) > 0) <= 40 for a, b in made)
        assert sorted(np.concatenate([np.concatenate(pair) for pair in made])) == list(range(sum(lengths)))


def test_one_in_ten_is_one_segment_and_one_in_twenty_is_short():
    rounds = 2000
    first = [next(segments(sentences([4] * 60), 99, 0.0, 0.1, rng(seed))) for seed in range(rounds)]
    assert abs(np.mean([len(b) == 0 for _, b in first]) - 0.1) < 5 * np.sqrt(0.09 / rounds)
    # the sentence that crosses the middle, (99 - 3) // 2 = 48 tokens, goes to either side; one that reaches it does not fit
    lengths = [len(a) for a, b in first if len(b)]
    assert set(lengths) == {44, 48} and abs(np.mean(np.array(lengths) == 44) - 0.5) < 5 * 0.5 / np.sqrt(len(lengths))
    short = [sum(map(len, next(segments(sentences([1] * 99), 99, 0.05, 0.0, rng(seed))))) < 96 for seed in range(rounds)]
    assert abs(np.mean(short) - 0.05 * 91 / 95) < 5 * np.sqrt(0.0475 / rounds)  # of the targets 5 ... 99, 91 stay below 96


def test_the_rest_of_a_sentence_longer_than_a_sequence_begins_the_next():
    made = list(segments([np.arange(100)], 40, 0.0, 0.0, rng(0)))
    assert [(a[0], a[-1], len(b)) for a, b in made] == [(0, 37, 0), (38, 75, 0), (76, 99, 0)]


def test_masking_is_that_of_the_paper(tok):
    """15% of a sequence are predicted; 85% of these become [MASK] and the rest stay: there is no random word."""
    masked = predicted = 0
    for e in examples(objective(tok, 64), range(150)):
        ids = original(e)
        assert len(e.positions) == len(set(e.positions)) == max(1, round(0.15 * len(ids)))
        assert not set(ids[e.positions]) & {tok.cls_id, tok.sep_id}
        now = e.input_ids[e.positions]
        assert ((now == tok.mask_id) | (now == e.targets)).all()
        masked += (now == tok.mask_id).sum()
        predicted += len(now)
    assert predicted > 1000 and abs(masked / predicted - 0.85) < 5 * np.sqrt(0.85 * 0.15 / predicted)


def test_sequences_are_framed_and_the_second_segment_has_its_type(tok):
    o = pickle.loads(pickle.dumps(objective(tok)))
    assert not o.needs_partner
    made = examples(o, range(30))
    for e in made:
        ids, ends = original(e), np.flatnonzero(original(e) == tok.sep_id)
        assert len(ids) <= 32 and ids[0] == tok.cls_id and ends[-1] == len(ids) - 1 and len(ends) in (1, 2)
        assert (e.token_type_ids == (np.arange(len(ids)) > ends[0])).all()
    assert {int(e.token_type_ids.max()) for e in made} == {0, 1} and len({e.seed for e in made}) == len(made)
    again = examples(objective(tok), range(30))
    assert all(a.seed == b.seed and np.array_equal(a.input_ids, b.input_ids) for a, b in zip(made, again))


# -------------------------------------------------------------------------------------------- the sampling


def test_words_are_drawn_from_the_softmax():
    logits = torch.randn(7, generator=torch.Generator().manual_seed(0)) * 2
    for temperature in (1.0, 2.0):
        expected = (logits / temperature).softmax(-1)
        rows, parts = 200, 100
        drawn = draw(logits.expand(rows * parts, 7).clone().requires_grad_(), (rows,) * parts, tuple(range(parts)), temperature)
        assert not drawn.requires_grad
        share = torch.bincount(drawn, minlength=7) / len(drawn)
        assert ((share - expected).abs() < 5 * (expected * (1 - expected) / len(drawn)).sqrt()).all()
        assert drawn.view(parts, rows).unique(dim=0).shape[0] == parts  # each seed has its own noise


def test_the_noise_follows_the_sequence():
    logits = torch.randn(12, 50, generator=torch.Generator().manual_seed(0))
    whole = draw(logits, (3, 4, 5), (10, 2**62, 30))
    torch.manual_seed(99)
    parts = [draw(logits[7:], (5,), (30,)), draw(logits[:3], (3,), (10,)), draw(logits[3:7], (4,), (2**62,))]
    assert torch.equal(whole, torch.cat([parts[1], parts[2], parts[0]]))


# ------------------------------------------------------------------------------------------ the loss side


def test_losses_are_those_of_a_plain_implementation(tok):
    s = system(tok)
    made = examples(s.objective, range(3))
    batch = s.objective.collate(made)
    assert batch.counts == {"masked": sum(len(e.positions) for e in made), "tokens": sum(len(e.input_ids) for e in made)}
    step = s(batch)
    guessed = judged = torch.zeros(())
    replaced = right = 0
    for e in made:  # one by one, as the published networks would be fed
        types = torch.from_numpy(e.token_type_ids)[None]
        logits = s.generator(torch.from_numpy(e.input_ids)[None], token_type_ids=types).logits[0, e.positions]
        filled = original(e)
        filled[e.positions] = draw(logits, (len(logits),), (e.seed,)).numpy()
        label = torch.from_numpy(filled != original(e))
        verdict = s.net(torch.from_numpy(filled)[None], token_type_ids=types).logits[0]
        guessed = guessed - logits.log_softmax(-1)[range(len(logits)), e.targets].sum()
        judged = judged - torch.where(label, verdict.sigmoid(), 1 - verdict.sigmoid()).log().sum()
        replaced += int(label.sum())
        right += int(((verdict > 0) == label).sum())
    assert {n: (t.count, t.weight) for n, t in step.terms.items()} == {"mlm": ("masked", 1.0), "rtd": ("tokens", 50.0)}
    torch.testing.assert_close(step.terms["mlm"].total, guessed, rtol=1e-5, atol=0)
    torch.testing.assert_close(step.terms["rtd"].total, judged, rtol=1e-5, atol=0)
    assert 0 < replaced <= batch.counts["masked"]
    assert [int(v) for v in step.metrics["replaced"]] == [replaced, batch.tokens]
    assert [int(v) for v in step.metrics["rtd_accuracy"]] == [right, batch.tokens]
    derived = s.derive({"mlm": 2.0, "replaced": replaced / batch.tokens})
    assert derived == pytest.approx({"mlm_perplexity": np.exp(2), "rtd_trivial_accuracy": 1 - replaced / batch.tokens})


def test_a_word_that_the_generator_gets_right_counts_as_original(tok):
    s = system(tok)
    batch = s.objective.collate(examples(s.objective, range(3)))
    with torch.no_grad():
        s.generator.head.bias.fill_(-1e4)[batch.targets[0]] = 1e4  # it always says the same word
    _, ids, replaced = s.fill(batch)
    assert (ids[0, batch.target_rows] == batch.targets[0]).all()
    right = batch.target_rows[batch.targets == batch.targets[0]]
    assert len(right) and not replaced[right].any()
    assert int(replaced.sum()) == len(batch.targets) - len(right)
    untouched = torch.ones_like(replaced).index_fill(0, batch.target_rows, False)
    assert torch.equal(ids[0, untouched], batch.input_ids[0, untouched])


def test_the_tables_are_shared_and_nothing_flows_through_the_samples(tok):
    s = system(tok)
    mine, yours = s.generator.trunk.embed, s.net.trunk.embed
    for name in ("word", "position", "token_type", "norm"):
        assert getattr(mine, name).weight is getattr(yours, name).weight
    assert s.generator.head.weight is yours.word.weight
    assert mine.projection.weight is not yours.projection.weight and mine.projection.out_features == 16
    s(s.objective.collate(examples(s.objective, range(2)))).terms["rtd"].total.backward()
    shared = {id(p) for p in yours.parameters()}
    assert all(p.grad is None for p in s.generator.parameters() if id(p) not in shared)


def test_pairs_in_order():
    scores, positive = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]), torch.tensor([True, False, True, False, False])
    ordered, pairs = ordered_pairs(scores, positive, (5,))
    assert (float(ordered), pairs) == (5.5, 6)  # 3 beats all three; 2 beats two, one of them half
    ordered, pairs = ordered_pairs(scores, positive, (2, 3))
    assert (float(ordered), pairs) == (2.5, 3)  # 3 beats 1; 2 beats 0 and ties with 2
    ordered, pairs = ordered_pairs(scores, torch.zeros(5, dtype=torch.bool), (2, 3))
    assert (float(ordered), pairs) == (0.0, 0)


def test_the_auc_is_the_share_of_pairs_of_a_sequence_in_the_right_order(tok):
    """Against counting every pair, and the same whatever the batches."""
    s = system(tok).eval()
    made = examples(s.objective, range(12))
    whole = s.objective.collate(made)
    with torch.no_grad():
        step = s(whole)
        parts = [s(s.objective.collate(part)).metrics["rtd_auc"] for part in (made[:1], made[1:7], made[7:])]
        _, ids, replaced = s.fill(whole)
        scores = s.net(ids, None, whole.token_type_ids, whole.position_ids, lengths=whole.lengths).logits[0]
    ordered = pairs = 0
    for score, fake in zip(scores.split(whole.lengths), replaced.split(whole.lengths)):
        for a in score[fake].tolist():
            for b in score[~fake].tolist():
                ordered += 1.0 if a > b else 0.5 if a == b else 0.0
                pairs += 1
    assert pairs > 1000 and [float(step.metrics["rtd_auc"][0]), step.metrics["rtd_auc"][1]] == [ordered, pairs]
    assert [sum(float(o) for o, _ in parts), sum(n for _, n in parts)] == [pytest.approx(ordered, abs=3), pairs]


# ----------------------------------------------------------------------------------------- what it learns


@pytest.mark.slow
def test_overfitted_it_beats_chance_and_the_unigram(tok):
    """Two texts, masked anew each time: what was replaced must be known by its place, not by how rare the word is."""
    s = system(tok, embedding_size=32)
    optimizer = torch.optim.Adam(s.parameters(), 3e-3)

    def batch(step, size):
        return s.objective.collate([e for i in range(size) for e in s.objective.example(sample(i % 2, 6), rng(step, i))])

    for step in range(110):
        made = batch(step, 8)
        terms = s(made).terms.values()
        optimizer.zero_grad()
        sum(t.weight * t.total / made.counts[t.count] for t in terms).backward()
        torch.nn.utils.clip_grad_norm_(s.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 30)
        optimizer.step()
    s.eval()
    fresh = batch(1000, 60)
    with torch.no_grad():
        step = s(fresh)
        _, ids, replaced = s.fill(fresh)
    ordered, pairs = step.metrics["rtd_auc"]
    share = torch.bincount(fresh.targets, minlength=100) / len(fresh.targets)
    rare, _ = ordered_pairs(-share[ids[0]], replaced, fresh.lengths)
    assert ordered / pairs > 0.75 and ordered / pairs > rare / pairs + 0.1
    right, tokens = step.metrics["rtd_accuracy"]
    assert right / tokens > 1 - replaced.float().mean()
    unigram = -(share * share.clamp(min=1e-9).log()).sum()
    assert step.terms["mlm"].total / len(fresh.targets) < unigram - 0.3
    rows = dict(s.preview(fresh, limit=2)[0].rows)
    assert "[MASK]" in rows["masked"] and "*" in rows["generator"] and "replaced" in rows["judged replaced (truth)"]


# -------------------------------------------------------------------------------------------- the outside


def test_both_networks_are_exported(tok, tmp_path):
    s = system(tok).eval()
    batch = s.objective.collate(examples(s.objective, [0])[:1])
    arguments = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids}
    for _ in range(2):  # the second one replaces the first
        export_system(s, tmp_path / "export", tok)
    for place, ours, architecture in (("export", s.net, "ElectraForPreTraining"), ("export/generator", s.generator, "ElectraForMaskedLM")):
        loaded, info = getattr(transformers, architecture).from_pretrained(tmp_path / place, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        with torch.no_grad():
            expected = ours(**arguments).logits
            torch.testing.assert_close(loaded.eval()(**arguments).logits, expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(polymodal.load(tmp_path / place)(**arguments).logits, expected)
        assert polymodal.tokenizer(tmp_path / place).fingerprint == tok.fingerprint
    assert polymodal.load(tmp_path / "export").architecture == "ElectraForPreTraining"


@pytest.mark.parametrize(("settings", "config", "message"), [
    ({"max_length": 500}, {}, "max_length is 500, the model has 128 positions"), ({"single_prob": 2}, {}, "single_prob"),
    ({"temperature": 0}, {}, "temperature"), ({"discriminator_weight": -1}, {}, "discriminator_weight"),
    ({"nsp": True}, {}, "nsp"), ({}, {"type_vocab_size": 1}, "token types"), ({}, {"embedding_size": 0}, "embedding_size"),
    ({"generator_hidden_size": 0.995}, {"hidden_size": 200, "num_attention_heads": 2}, "generator of width 199")])
def test_impossible_settings_are_refused(tok, settings, config, message):
    with pytest.raises(UserError, match=message):
        system(tok, objective=settings, **config)
