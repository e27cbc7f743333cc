"""UNITER's fine-tuning for retrieval: the loss beside its formula, where the scores begin, and what every pair's score is used for."""

import numpy as np
import pytest
import torch
from parity import assert_equal, noise
from polymodal.multimodal import pair_ranking
from polymodal.multimodal.pair_ranking import RankingObjective, RankingSettings, UniterForImageTextRetrieval
from polymodal.multimodal.region_pairs import PairScorer, RegionBatch, batch_of_pairs
from polymodal.multimodal.uniter import FAMILIES, UniterConfig, UniterForPreTraining, UniterModel
from polymodal.pipelines.evaluation.retrieval import JointRecall
from polymodal.pipelines.train.start import copy_weights
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.sample import Sample
from region_samples import CLASSES, CONFIG, SHAPE, TOKENIZER, WIDTH, paired, regions, sample


def net_of(config=CONFIG):
    return UniterForImageTextRetrieval(UniterModel(config), config)


def test_the_loss_is_the_mean_margin_of_the_sigmoids():
    net = noise(net_of().double(), seed=4)
    own = RankingObjective(TOKENIZER, RankingSettings(margin=0.3), WIDTH)
    made = [e for s in paired(range(5)) for e in own.example(s, np.random.default_rng(s.index))]
    batch = own.collate(made)
    step = pair_ranking.RankingSystem(net, own, 0.3)(batch)
    total = ahead = 0
    for e in made:
        true, picture, caption = (float(net.score_pairs(one(p))[0]) for p in e.pairs)
        for other in (picture, caption):
            total += max(0.0, 0.3 + 1 / (1 + np.exp(-other)) - 1 / (1 + np.exp(-true)))
            ahead += true > other
    assert batch.counts == {"comparisons": 10} and float(step.terms["ranking"].total) == pytest.approx(total, rel=1e-9)
    assert int(step.metrics["ranked"][0]) == ahead and step.metrics["ranked"][1] == 10
    first = made[0].pairs
    assert np.array_equal(first[0].input_ids, first[1].input_ids) and np.array_equal(first[0].regions.features, first[2].regions.features)
    assert np.array_equal(first[1].regions.features, made[1].pairs[0].regions.features)
    assert np.array_equal(first[2].input_ids, made[1].pairs[0].input_ids)


def one(pair):
    return RegionBatch(counts={}, **batch_of_pairs([pair.input_ids], [pair.regions]))


def test_without_another_pair_nothing_is_learnt_of_one():
    net, own = noise(net_of()), RankingObjective(TOKENIZER, RankingSettings(), WIDTH)
    system = pair_ranking.RankingSystem(net, own, 0.2)
    step = system(own.collate(list(own.example(sample(0), np.random.default_rng(0)))))
    assert float(step.terms["ranking"].total) == pytest.approx(0.4, rel=1e-5)
    step.terms["ranking"].total.backward()
    assert max(float(p.grad.abs().max()) for p in system.parameters() if p.grad is not None) < 1e-5


def test_scores_begin_as_what_told_that_a_pair_matches():
    start, net = noise(UniterForPreTraining(CONFIG)), net_of()
    copy_weights(net, start, FAMILIES[0], "uniter", FAMILIES[0].starts["uniter"])
    assert torch.equal(net.match.weight, start.match.weight[1:]) and torch.equal(net.match.bias, start.match.bias[1:])
    batch = one(next(iter(RankingObjective(TOKENIZER, RankingSettings(), WIDTH).example(sample(3), np.random.default_rng(0)))).pairs[0])
    with torch.no_grad():
        assert_equal(net.eval().score_pairs(batch), start.match(start.trunk.packed(batch).pooled)[:, 1])
    again = UniterForPreTraining(CONFIG)  # pretraining that goes on with another run's weights takes all of the layer
    copy_weights(again, start, FAMILIES[0], "uniter", FAMILIES[0].starts["uniter"])
    assert torch.equal(again.match.weight, start.match.weight)


def test_padded_pairs_have_the_scores_of_packed_ones():
    net, found = noise(net_of()), regions(0, 4)
    ids = np.array([TOKENIZER.cls_id, 7, 8, TOKENIZER.sep_id])
    packed = RegionBatch(counts={}, **batch_of_pairs([ids], [found]))
    features, places = (torch.from_numpy(x).float()[None] for x in (found.features, found.locations))
    with torch.no_grad():
        assert_equal(net(torch.from_numpy(ids)[None], visual_feats=features, visual_pos=places), net.score_pairs(packed))


class Told:
    """Scores pairs by a table: of the caption's second token and the picture's number."""

    config = UniterConfig(vocab_size=TOKENIZER.vocab_size, visual_feat_dim=WIDTH, num_object_labels=CLASSES, **SHAPE)

    def __init__(self, table):
        self.table = table

    def score_pairs(self, batch):
        words = [int(row[1]) for row in batch.input_ids[0].split(list(batch.lengths))]
        pictures = [int(part[0, 0]) for part in batch.features.split(list(batch.counts_of_regions))]
        return torch.tensor([self.table[word][picture] for word, picture in zip(words, pictures)])


def test_recall_is_counted_over_every_pair_that_is_scored():
    """Three pictures, four captions: the second picture has two."""
    words = [TOKENIZER.encode(f"w{n}", add_special_tokens=False)[0] for n in range(4)]
    table = dict(zip(words, ([3.0, 1, 0], [2, 1.5, 0], [0, 9, 0], [1, 1, 1])))
    model = Told(table)
    assert isinstance(model, PairScorer) and isinstance(UniterForPreTraining(CONFIG), PairScorer) and isinstance(net_of(), PairScorer)
    measure = JointRecall(model, TOKENIZER, None, torch.device("cpu"))
    texts = ([b'{"captions": ["w0"]}'], [b'{"captions": ["w1", "w2"]}'], [b'{"captions": ["w3"]}'])
    for number in (2, 0, 1):
        found = regions(number, 2)
        found.features[:, 0] = number
        made = Sample("s", {"json": texts[number][0], **found.fields()}, number, "here")
        batch = measure.objective.collate(list(measure.objective.example(made, np.random.default_rng(0))))
        batch.sample_ids = [number]
        measure.add(batch)
    found = measure.result()
    # text to picture: w0 1st, w1 2nd, w2 1st, w3 ties with two others: 2nd; pictures: 0 has w0 1st, 1 has w2 1st, 2 has w3 1st
    assert found.metrics["text_to_image_recall@1"] == 0.5 and found.metrics["image_to_text_recall@1"] == 1
    assert found.metrics["text_to_image_median_rank"] == 1.5 and found.metrics["chance_recall@1"] == pytest.approx(1 / 3)
    assert found.details["counts"] == {"pictures": 3, "captions": 4}


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="margin is 2"):
        RankingSettings(margin=2.0)
    with pytest.raises(UserError, match="width 10, and those of the data have width 11"):
        pair_ranking.fitting(CONFIG, Context(regions=(WIDTH + 1, 3)))
    task = FAMILIES[0].task("retrieval")
    with pytest.raises(UserError, match="max_length is 60, the model has 32 positions"):
        task.build(UniterConfig(**{**SHAPE, "max_position_embeddings": 32}), {}, Context(TOKENIZER))
    assert task.build(CONFIG, {}, Context(TOKENIZER)).net.trunk.regions.mask.weight.requires_grad is False
