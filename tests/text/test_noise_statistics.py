"""The noise of BERT and ELECTRA against the papers' numbers, measured on what the objectives make of texts.

Every test is a chi-square or normal test at significance 0.001, with fixed seeds; the critical values stand beside their
degrees of freedom. The functions below the objectives are tested in `tests/shared/test_corrupt.py`, T5's spans in
`tests/shared/test_corrupt_spans.py`.
"""

import numpy as np
import polymodal
import pytest
import torch
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.electra import draw
from polymodal.text.sentences import IS_RANDOM

WORDS = [a + b + c for a in ("ka", "mo", "ti") for b in ("ren", "sol") for c in ("o", "an", "es", "ul")]
Z = 3.29
"""Two-sided normal test at 0.001."""


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS) + "."] * 20, "wordpiece", 60)


def sample(seed, sentences=40):
    rng = np.random.default_rng(seed)
    text = " ".join(" ".join(rng.choice(WORDS, rng.integers(3, 9))) + "." for _ in range(sentences))
    return Sample(str(seed), {"txt": text.encode()}, seed)


def examples(objective, count, sentences=40):
    made = []
    for seed in range(count):
        one = sample(seed, sentences)
        one.pair_with(lambda seed=seed: sample(seed + 10_000, sentences))
        made.append(list(objective.example(one, np.random.default_rng((1, seed)))))
    return made


def system(name, tok, **objective):
    torch.manual_seed(0)
    return polymodal.system(name, size="tiny", tokenizer=tok, objective=objective)


def chi_square(counts, shares):
    total = sum(counts)
    return sum((n - total * p) ** 2 / (total * p) for n, p in zip(counts, shares, strict=True))


def test_bert_masks_fifteen_percent_eighty_ten_ten(tok):
    """A word drawn at random is the original one time in V, so a little more than 10% stay."""
    made = [e for part in examples(system("bert", tok).objective, 75) for e in part]
    kinds, drawn, tokens = np.zeros(3), [], 0
    for e in made:
        now = e.input_ids[e.positions]
        masked, kept = now == tok.mask_id, now == e.targets
        kinds += [masked.sum(), (~masked & ~kept).sum(), kept.sum()]
        drawn.extend(now[~masked & ~kept].tolist())
        assert len(now) == max(1, round(0.15 * len(e.input_ids)))
        tokens += len(e.input_ids)
    v = tok.vocab_size
    assert kinds.sum() > 4000 and kinds.sum() / tokens == pytest.approx(0.15, abs=0.002)  # 19 of 128
    # a random [MASK] counts as masked
    assert chi_square(kinds, (0.8 + 0.1 / v, 0.1 - 0.2 / v, 0.1 + 0.1 / v)) < 13.82  # 2 degrees of freedom
    others = np.bincount(drawn, minlength=v)
    others = np.delete(others, tok.mask_id)
    # words of the text are rarer among them: what equals the original is counted as kept
    special = [i - (i > tok.mask_id) for i in sorted(tok.special_ids - {tok.mask_id})]
    assert (others[special] > 0).all(), "the reference draws from the whole vocabulary"


def test_bert_pairs_half_of_the_segments_at_random(tok):
    """The first pair of a document always has two sentences or more to choose from."""
    firsts = [part[0].next_sentence for part in examples(system("bert", tok, max_length=32).objective, 1000, sentences=6)]
    assert abs(np.mean(np.array(firsts) == IS_RANDOM) - 0.5) < Z * 0.5 / np.sqrt(len(firsts))


def test_electra_masks_eighty_five_of_a_hundred_and_draws_places_evenly(tok):
    made = [e for part in examples(system("electra", tok, max_length=64).objective, 200) for e in part]
    made = [e for e in made if len(e.input_ids) == 64 and e.token_type_ids.any()]
    now, then = np.concatenate([e.input_ids[e.positions] for e in made]), np.concatenate([e.targets for e in made])
    masked = now == tok.mask_id
    assert len(now) > 5000 and (now[~masked] == then[~masked]).all()
    assert abs(masked.mean() - 0.85) < Z * np.sqrt(0.85 * 0.15 / len(now))
    # places of the first ten tokens behind [CLS], which are words in every sequence whose first segment is that long
    long = [e for e in made if (e.token_type_ids == 0).sum() > 12]
    places = sum(np.bincount(e.positions, minlength=64)[1:11] for e in long)
    assert chi_square(places, [0.1] * 10) < 27.88  # 9 degrees of freedom


def test_electras_gumbel_draws_follow_the_softmax():
    """Each row of logits has a law of its own; sequences of any length; every sequence its own noise."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 9, generator=generator) * 1.5
    rounds = 6000
    seeds = tuple(torch.randint(2**62, (rounds,), generator=generator).tolist())
    for temperature in (1.0, 0.5):
        drawn = draw(logits.repeat(rounds, 1), (4,) * rounds, seeds, temperature).view(rounds, 4)
        for row, law in zip(drawn.T, (logits / temperature).softmax(-1)):
            counts = torch.bincount(row, minlength=9).double()
            common = law * rounds >= 5  # rare outcomes are put together
            merged = [*counts[common].tolist(), float(counts[~common].sum())] if not common.all() else counts.tolist()
            shares = [*law[common].tolist(), float(law[~common].sum())] if not common.all() else law.tolist()
            assert chi_square(merged, shares) < {8: 26.12, 7: 24.32, 6: 22.46, 5: 20.52, 4: 18.47, 3: 16.27}[len(merged) - 1]
        # rows of one sequence are drawn independently: the pair of the first two is as likely as the product
        a, b = (logits[:2] / temperature).softmax(-1)
        joint = torch.bincount(drawn[:, 0] * 9 + drawn[:, 1], minlength=81).double() / rounds
        product = (a[:, None] * b).flatten()
        assert ((joint - product).abs() < 5 * (product * (1 - product) / rounds).sqrt() + 2 / rounds).all()


def test_electra_replaces_as_often_as_its_generator_misses(tok):
    """A draw that hits the original counts as original: the share of replaced words is the mean of 1 - p(original)."""
    built = system("electra", tok, max_length=64).eval()
    with torch.no_grad():
        for parameter in built.generator.parameters():  # a generator with opinions
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        batch = built.objective.collate([e for part in examples(built.objective, 60) for e in part])
        logits, ids, replaced = built.fill(batch)
        miss = 1 - logits.softmax(-1)[torch.arange(len(logits)), batch.targets].double()
    assert torch.equal(replaced.nonzero()[:, 0], batch.target_rows[ids[0, batch.target_rows] != batch.targets])
    deviation = float((miss * (1 - miss)).sum().sqrt())
    assert len(miss) > 2000 and deviation > 5
    assert abs(float(replaced.sum()) - float(miss.sum())) < Z * deviation
