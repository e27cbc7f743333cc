"""SpanBERT against the paper and its reference: spans, one draw for each, boundaries, both losses."""

import math

import numpy as np
import polymodal
import pytest
import torch
import torch.nn.functional as F
import transformers
from parity import assert_same_gradients, rows_of
from polymodal.pipelines.model.export import export_system
from polymodal.registry import family
from polymodal.shared.corrupt import replace_places
from polymodal.shared.errors import UserError
from polymodal.shared.loss import IGNORE
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.spanbert import SpanBertSettings, boundaries
from polymodal.text.words import choose_spans, geometric_shares, spans_of

WORDS = [a + b + c for a in ("ka", "mo", "ti") for b in ("ren", "sol") for c in ("o", "an", "es", "ul")]
Z = 3.89
"""Two-sided normal test at 0.0001."""


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS) + "."] * 20, "wordpiece", 60)


def rng(*key):
    return np.random.default_rng(key)


def sample(seed, words=60):
    return Sample(str(seed), {"txt": " ".join(rng(seed).choice(WORDS, words)).encode()}, seed)


def system(tok, config=None, **settings):
    torch.manual_seed(0)
    return polymodal.system("spanbert", size="tiny", tokenizer=tok, objective=settings, **(config or {}))


def bounds_of(sizes, start=1):
    edges = np.cumsum([start, *sizes])
    return np.stack([edges[:-1], edges[1:]], axis=1)


# --------------------------------------------------------------------------------------------------- spans


class First:
    """A generator for one sequence of 61 words of one token: the first span is drawn, the next fills the budget far from it."""

    def __init__(self, source):
        self.source, self.random, self.anchor, self.next = source, source.random, -1, 0

    def integers(self, count):
        if self.anchor < 0:
            self.anchor = int(self.source.integers(count))
            self.random, self.next = (lambda: 0.999999), 45 if self.anchor < 30 else 0
            return self.anchor
        self.next += 1
        return self.next - 1


@pytest.mark.slow
def test_lengths_are_geometric_up_to_ten_words():
    """10^5 spans, each the first of its sequence; any token is as likely to be where one begins."""
    shares, bounds, source = geometric_shares(0.2, 10), bounds_of([1] * 61), rng(1)
    counts, anchors = np.zeros(11), np.zeros(61)
    for _ in range(100_000):
        first = First(source)
        places = choose_spans(bounds, 10, first, shares)
        anchors[first.anchor] += 1
        if first.anchor <= 51:  # room for ten words
            counts[int((spans_of(places) == spans_of(places)[places == first.anchor + 1]).sum())] += 1
    total = counts.sum()
    for n, share in enumerate(shares, 1):
        assert abs(counts[n] / total - share) < Z * math.sqrt(share * (1 - share) / total), n
    assert (np.abs(anchors / 100_000 - 1 / 61) < Z * math.sqrt(1 / 61 / 100_000)).all()


def test_the_mean_length_is_that_of_the_papers_figure_2():
    shares = geometric_shares(0.2, 10)
    assert sum(n * share for n, share in enumerate(shares, 1)) == pytest.approx(3.8, abs=0.05)
    assert shares[9] / shares[8] == pytest.approx(0.8) and sum(shares) == pytest.approx(1)


def test_the_budget_is_exact_words_begin_spans_and_the_last_span_is_cut():
    shares, bounds, cut = geometric_shares(0.2, 10), bounds_of([3, 1, 2, 5, 1, 1, 4, 2, 2, 6]), 0
    begins, ends = set(bounds[:, 0].tolist()), set(bounds[:, 1].tolist())
    for seed in range(300):
        for count in (1, 4, 9):
            places = choose_spans(bounds, count, rng(seed), shares)
            assert len(places) == count and (np.diff(places) > 0).all() and places[0] >= 1 and places[-1] < bounds[-1, 1]
            spans = [places[spans_of(places) == n] for n in range(spans_of(places)[-1] + 1)]
            assert {int(span[0]) for span in spans} <= begins
            wrong = [span for span in spans if int(span[-1]) + 1 not in ends]
            assert len(wrong) <= 1, "only the last span is cut within a word"
            cut += len(wrong)
    assert cut
    assert choose_spans(bounds_of([2, 2]), 9, rng(0), shares).tolist() == [1, 2, 3, 4], "no more than there is"


def test_one_draw_for_a_span_80_10_10():
    """Binomial, 10^5 spans of one to three tokens."""
    positions = np.concatenate([np.arange(length) + start for start, length in zip(range(0, 4000, 4), [1, 2, 3, 2] * 250)])
    ids, units = np.full(4000, 7), spans_of(positions)
    assert units[-1] == 999
    kinds, source = np.zeros(3), rng(0)
    for _ in range(100):
        noisy = replace_places(ids, positions, source, mask_id=3, words=np.array([8, 9]), units=units).ids[positions]
        kind = np.select([noisy == 3, noisy > 7], [0, 1], 2)
        firsts = kind[np.flatnonzero(np.diff(units, prepend=-1))]
        assert (kind == firsts[units]).all(), "a span of two kinds"
        kinds += np.bincount(firsts, minlength=3)
    assert kinds.sum() == 100_000
    for found, share in zip(kinds / 100_000, (0.8, 0.1, 0.1)):
        assert abs(found - share) < Z * math.sqrt(share * (1 - share) / 100_000)


def test_sequences_are_single_texts_of_one_document_with_15_percent_in_spans(tok):
    made = system(tok)
    o = made.objective
    seen = runs = places = 0
    for seed in range(20):
        examples = list(o.example(sample(seed, 200), rng(1, seed)))
        ids = [i for e in examples for i in original(e)[1:-1]]
        assert ids == tok.encode(sample(seed, 200).text(), add_special_tokens=False), "every token is read once"
        for e in examples:
            assert not e.token_type_ids.any() and len(e.input_ids) <= 128
            assert len(e.positions) == math.ceil((len(e.input_ids) - 2) * 0.15)
            assert not set(e.targets.tolist()) & {tok.cls_id, tok.sep_id}
            runs, places, seen = runs + int(spans_of(e.positions)[-1]) + 1, places + len(e.positions), seen + 1
    assert seen > 40 and places / runs > 3


def original(example):
    ids = example.input_ids.copy()
    ids[example.positions] = example.targets
    return ids.tolist()


@pytest.mark.parametrize(("wrong", "message"), [
    ({"whole_words": False}, "spans are made of whole words"), ({"max_span_length": 0}, "max_span_length is 0"),
    ({"geometric_p": 1.5}, "geometric_p is 1.5"), ({"boundary_weight": -1.0}, "boundary_weight is -1"),
])
def test_settings_that_make_no_spans_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        SpanBertSettings(**wrong)


# ---------------------------------------------------------------------------------------------- boundaries


def test_boundaries_are_the_tokens_beside_a_span_that_touches_no_end():
    positions = np.array([1, 2, 5, 6, 7, 9, 13, 14])  # [CLS] 1 ... 14 [SEP]
    assert boundaries(positions, 16, 2).tolist() == [[2, 4, 8, 0], [3, 4, 8, 1], [5, 8, 10, 0]]
    longer = boundaries(positions, 17, 15).tolist()
    assert longer == [[2, 4, 8, 0], [3, 4, 8, 1], [4, 4, 8, 2], [5, 8, 10, 0], [6, 12, 15, 0], [7, 12, 15, 1]]
    assert boundaries(positions[:2], 16, 15).shape == boundaries(positions[:0], 16, 15).shape == (0, 4)


def batch_of(o, count=4):
    return o.collate([e for seed in range(count) for e in o.example(sample(seed, 20 + 15 * seed), rng(1, seed))])


def test_the_boundary_loss_is_the_papers_formula(tok):
    """Token by token in fp64, by the definition: f([x_{s-1}; x_{e+1}; p_{i-s}]) with f two layers of linear, GELU, norm."""
    made = system(tok, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}, max_length=64).double()
    batch = batch_of(made.objective)
    step = made(batch)
    head, total, count = made.boundary, 0.0, 0
    original = batch.input_ids[0].index_copy(0, batch.target_rows, batch.targets)
    begin = 0
    for length in batch.lengths:
        ids = batch.input_ids[:, begin:begin + length]
        states = made.net.trunk(ids).last_hidden_state[0]
        chosen = [int(r) - begin for r in batch.target_rows if begin <= r < begin + length]
        while chosen:
            span = [chosen.pop(0)]
            while chosen and chosen[0] == span[-1] + 1:
                span.append(chosen.pop(0))
            if span[0] > 1 and span[-1] < length - 2:
                for i in span[:15]:
                    x = torch.cat([states[span[0] - 1], states[span[-1] + 1], made.offsets.weight[i - span[0]]])
                    for layer in head.transform:
                        y = F.gelu(F.linear(x, layer.dense.weight, layer.dense.bias))
                        x = F.layer_norm(y, y.shape, layer.norm.weight, layer.norm.bias, 1e-12)
                    logits = made.net.trunk.embed.word.weight @ x + head.bias
                    total, count = total + F.cross_entropy(logits[None], original[begin + i][None]), count + 1
        begin += length
    assert batch.counts["bounded"] == count > 20
    torch.testing.assert_close(step.terms["sbo"].total, total, rtol=1e-9, atol=0)
    assert step.terms["sbo"].weight == 1.0
    made.eval()
    torch.testing.assert_close(made(batch).terms["sbo"].total, total, rtol=1e-9, atol=0)
    assert made.boundary.weight is made.net.trunk.embed.word.weight and made.boundary.bias is not made.net.head.bias


def test_a_weight_of_0_leaves_the_boundaries_out(tok):
    made = system(tok, boundary_weight=0.0)
    assert made(batch_of(made.objective)).terms.keys() == {"mlm"} and not hasattr(made, "boundary")


# -------------------------------------------------------------------------------------------- the reference


def test_the_words_loss_and_every_gradient_are_the_references_and_the_export_loads(tok, tmp_path):
    """A real batch, given to transformers' BertForMaskedLM as padded rows with labels."""
    made = system(tok, {"hidden_size": 32, "intermediate_size": 48, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
                        "initializer_range": 0.3}, max_length=48)
    batch = batch_of(made.objective)
    assert len(batch.lengths) > 4 and len(set(batch.lengths)) > 2
    export_system(made, tmp_path / "out", tok)
    theirs, report = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(polymodal.load(tmp_path / "out")) is type(made.net)
    labels = torch.full((batch.tokens,), IGNORE)
    labels[batch.target_rows] = batch.targets

    ids = rows_of(batch.input_ids[0], batch.lengths, tok.pad_id)
    expected = theirs.train()(input_ids=ids, attention_mask=(ids != tok.pad_id).long(), labels=rows_of(labels, batch.lengths, IGNORE)).loss
    expected.backward()
    term = made.train()(batch).terms["mlm"]
    loss = term.total / batch.counts[term.count]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(made.net, theirs, family("spanbert").nets[0].format("transformers").rules(made.net.config))
