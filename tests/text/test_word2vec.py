"""Word2vec beside the papers' formulas in plain loops, its draws beside their numbers, and Huffman's tree."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from polymodal.pipelines.run.optim import OptimSettings, build_optimizer, clip_gradients, row_problems
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context, NoData
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text._windows import GROUP, Windows, Word2VecSettings, huffman, keep_probability
from polymodal.text.word2vec import FAMILIES, Word2Vec, Word2VecConfig, Word2VecSystem

WORDS = [f"w{n:02d}" for n in range(40)]
TOKENIZER = Tokenizer.train([" ".join(WORDS[: 40 - n]) for n in range(40)], "word", 45)  # w00 is the most frequent
COUNTS = np.array([0] * 5 + [40 * (40 - n) for n in range(40)])
KINDS = [("skip-gram", "negative"), ("cbow", "negative"), ("skip-gram", "hierarchical"), ("cbow", "hierarchical")]


def objective(**settings):
    return Windows(TOKENIZER, COUNTS, Word2VecSettings(**settings))


def row(rng, lengths=(50, 1, 33), size=45):
    ids = rng.integers(0, size, sum(lengths)).astype("<u2")  # special tokens among them
    return Sample("a", {"tokens.u16": ids.tobytes(), "lengths.u32": np.array(lengths, dtype="<u4").tobytes()})


def system(seed=0, width=7, **settings):
    torch.manual_seed(seed)
    made = Word2VecSystem(Word2VecConfig(vocab_size=45, hidden_size=width), Word2VecSettings(**settings), objective(**settings)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(-1, 1)
    return made


def in_loops(made, example):
    """Loss and gradients of the papers' formulas (and the tool's for CBOW), one number after another."""
    s, v, u = made.settings, made.net.input.weight.detach().numpy(), made.net.output.weight.detach().numpy()
    dv, du, tree = np.zeros_like(v), np.zeros_like(u), made.objective.tree
    total = 0.0
    ids = example.ids.tolist()

    def learn(vector, row, label, weight=1.0):
        """A logistic regression's loss; the error for the input."""
        nonlocal total
        score = float(vector @ u[row])
        total += weight * math.log1p(math.exp(-score if label else score))
        slope = weight * (1 / (1 + math.exp(-score)) - label)
        du[row] += slope * vector
        return slope * u[row]

    def predict(vector, word, place):
        error = np.zeros(len(vector))
        if s.output == "hierarchical":
            for i in range(tree.begins[word], tree.begins[word + 1]):
                error += learn(vector, tree.nodes[i], 1 - int(tree.codes[i]))
            return error
        error += learn(vector, word, 1)
        for other in example.noise[place // GROUP].tolist():
            if other != word:
                error += learn(vector, other, 0, s.negative / s.noise)
        return error

    for place, word in enumerate(ids):
        window = [p for p in range(place - example.left[place], place + example.right[place] + 1) if p != place]
        if not window:
            continue
        if s.architecture == "cbow":
            error = predict(np.mean([v[ids[p]] for p in window], axis=0), word, place)
            for p in window:
                dv[ids[p]] += error
        elif s.output == "negative":
            for p in window:
                dv[word] += predict(v[word], ids[p], place)
        else:  # as the tool has it: a word of the window predicts the middle
            for p in window:
                dv[ids[p]] += predict(v[ids[p]], word, place)
    return total, dv, du


@pytest.mark.parametrize(("architecture", "output"), KINDS)
def test_loss_and_gradients_are_those_of_the_formulas_in_loops(architecture, output):
    made = system(architecture=architecture, output=output, window=4, negative=3, noise=20, sample=0)
    rng = np.random.default_rng(0)
    examples = [e for n in range(3) for e in made.objective.example(row(rng), np.random.default_rng(n))]
    step = made(made.objective.collate(examples))
    step.terms["word"].total.backward()
    parts = [in_loops(made, e) for e in examples]
    assert step.terms["word"].total.item() == pytest.approx(sum(p[0] for p in parts), rel=1e-12)
    for parameter, place in ((made.net.input.weight, 1), (made.net.output.weight, 2)):
        expected = sum(p[place] for p in parts)
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-10, atol=1e-12)
    predicted = sum(int((e.left + e.right > 0).sum() if architecture == "cbow" else (e.left + e.right).sum()) for e in examples)
    assert step.metrics["prediction"][1] == predicted > 0


@pytest.mark.parametrize(("architecture", "output"), KINDS)
def test_gradients_are_those_of_finite_differences(architecture, output):
    """But for CBOW's inputs, whose error the tool hands on undivided."""
    made = system(width=3, architecture=architecture, output=output, window=2, noise=4, sample=0)
    batch = made.objective.collate(list(made.objective.example(row(np.random.default_rng(1)), np.random.default_rng(2))))
    made(batch).terms["word"].total.backward()
    for parameter in (made.net.output.weight, *([] if architecture == "cbow" else [made.net.input.weight])):
        found = torch.zeros_like(parameter)
        with torch.no_grad():
            for place in np.ndindex(*parameter.shape):
                ends = []
                for shift in (1e-5, -2e-5):
                    parameter[place] += shift
                    ends.append(made(batch).terms["word"].total.item())
                parameter[place] += 1e-5
                found[place] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(parameter.grad, found, rtol=1e-6, atol=1e-7)


def test_noise_that_is_shared_has_the_loss_of_noise_for_each_prediction():
    """On average: `negative` words drawn for each pair, the predicted one skipped."""
    made = system(window=3, negative=4, noise=16, sample=0)
    score = made.net.input.weight @ made.net.output.weight.T
    against = torch.nn.functional.softplus(score).detach().numpy()
    probability, sample, losses, expected = made.objective.noise, row(np.random.default_rng(3)), [], []
    with torch.no_grad():
        for n in range(300):
            (example,) = made.objective.example(sample, np.random.default_rng(n))
            losses.append(made(made.objective.collate([example])).terms["word"].total.item())
            total, ids = 0.0, example.ids
            for t in range(len(ids)):
                for p in (*range(t - example.left[t], t), *range(t + 1, t + 1 + example.right[t])):
                    others = probability * (np.arange(45) != ids[p])
                    total += math.log1p(math.exp(-float(score[ids[t], ids[p]]))) + 4 * float(others @ against[ids[t]])
            expected.append(total)
    differences = np.array(losses) - expected
    assert abs(differences.mean()) < 4 * differences.std() / math.sqrt(300) and differences.std() > 0


def test_words_stay_with_the_tools_probability_and_windows_are_uniform():
    made, rng = objective(sample=0.01, window=5), np.random.default_rng(0)
    share = COUNTS[5:] / COUNTS.sum()
    np.testing.assert_allclose(made.keep[5:], np.minimum(1, (np.sqrt(share / 0.01) + 1) * 0.01 / share))
    assert not made.keep[:5].any() and 0.2 < made.keep[5] < 0.7 and made.keep[44] == 1
    ids = np.repeat(np.arange(45), 2000).astype("<u2")
    rng.shuffle(ids)
    (example,) = made.example(Sample("a", {"tokens.u16": ids.tobytes()}), rng)
    kept = int((example.left + example.right > 0).sum())
    found = np.bincount(example.ids[:kept], minlength=45) / 2000
    np.testing.assert_allclose(found, made.keep, atol=4 * 0.5 / math.sqrt(2000))
    assert example.words == 2000 * 40
    inner = np.bincount(example.left[5 : kept - 5], minlength=6)
    assert inner[0] == 0 and (abs(inner[1:] / inner.sum() - 0.2) < 0.01).all() and (example.left == example.right)[5 : kept - 5].all()
    assert keep_probability(COUNTS, 0).all()


def test_noise_is_drawn_by_counts_to_the_power_of_three_quarters():
    made = objective(noise=64)
    (example,) = made.example(row(np.random.default_rng(0), (60_000,)), np.random.default_rng(1))
    drawn = np.bincount(example.noise.reshape(-1), minlength=45)
    expected = drawn.sum() * COUNTS**0.75 / (COUNTS**0.75).sum()
    assert not drawn[:5].any()
    assert (((drawn - expected)[5:] ** 2) / expected[5:]).sum() < 39 + 4 * math.sqrt(2 * 39)  # chi-squared


def test_windows_end_with_the_documents():
    made = objective(sample=0, window=5)
    lengths = (4, 1, 9, 2)
    (example,) = made.example(row(np.random.default_rng(0), lengths, size=40), np.random.default_rng(0))
    sample = Sample("a", {"tokens.u16": np.arange(5, 21).astype("<u2").tobytes(), "lengths.u32": np.array(lengths, "<u4").tobytes()})
    (example,) = made.example(sample, np.random.default_rng(0))
    begin = 0
    for length in lengths:
        for place in range(begin, begin + length):
            assert place - example.left[place] >= begin and place + example.right[place] < begin + length
        begin += length
    assert (example.left + example.right)[4] == 0 and not (example.left + example.right)[16:].any()


def test_texts_are_read_as_rows_are():
    made = objective(sample=0)
    (text,) = made.example(Sample("a", {"txt": b"w03 nobody w01 w02"}), np.random.default_rng(0))
    assert [TOKENIZER.id_to_token(i) for i in text.ids[:3].tolist()] == ["w03", "w01", "w02"], "an unknown word is left out"
    assert text.words == 3
    (nothing,) = made.example(Sample("a", {"txt": b"nobody"}), np.random.default_rng(0))
    batch = made.collate([nothing])
    assert batch.counts == {"words": 0}
    for architecture, output in KINDS:
        made = system(architecture=architecture, output=output)
        step = made(made.objective.collate([nothing]))
        step.terms["word"].total.backward()
        assert step.terms["word"].total == 0 and not made.net.input.weight.grad.any()
    with pytest.raises(BadSample, match="token 60, and the vocabulary has 45"):
        list(made.objective.example(Sample("a", {"tokens.u16": np.array([60], "<u2").tobytes()}), np.random.default_rng(0)))


# --------------------------------------------------------------------------------------------- the tree


def cost_in_loops(counts):
    """The least sum of counts times code lengths."""
    heap, total = [int(c) for c in counts if c], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


@pytest.mark.parametrize("counts", [COUNTS, np.array([0, 3, 3]), np.array([5, 0, 1, 1, 1, 1, 9]), 2 ** np.arange(30)[::-1]])
def test_huffmans_tree_is_a_prefix_code_of_least_cost(counts):
    tree = huffman(counts)
    paths = {w: tuple(zip(tree.nodes[a:b].tolist(), tree.codes[a:b].tolist())) for w, (a, b) in
             enumerate(zip(tree.begins[:-1].tolist(), tree.begins[1:].tolist()))}
    known = [w for w, c in enumerate(counts) if c]
    assert all(bool(paths[w]) == (w in known) for w in paths)
    assert int(counts @ tree.lengths) == cost_in_loops(counts)
    turns = {}
    for word in known:
        assert paths[word][0][0] == 0, "a path begins at the root"
        for depth, (node, code) in enumerate(paths[word]):
            turns.setdefault((node, code), set()).add(tuple(n for n, _ in paths[word][: depth + 2]))
    for (node, code), ways in turns.items():  # behind a turn lies one word, or one node and what hangs on it
        assert len({way[: len(way)] for way in ways}) == 1, (node, code)
    assert len({p for w, p in paths.items() if p}) == len(known)
    assert {n for p in paths.values() for n, _ in p} == set(range(len(known) - 1))


# ---------------------------------------------------------------------------------------- larger updates


@pytest.mark.parametrize(("architecture", "output"), KINDS)
def test_the_expected_predictions_of_a_row_are_those_that_are_drawn(architecture, output):
    made = objective(architecture=architecture, output=output, sample=0.02, window=3, negative=3)
    rng = np.random.default_rng(0)
    ids = rng.choice(45, 120_000, p=COUNTS / COUNTS.sum()).astype("<u2")
    (example,) = made.example(Sample("a", {"tokens.u16": ids.tobytes()}), rng)
    around, source, target = (example.left + example.right).astype(int), np.zeros(45), np.zeros(45)
    for place in np.flatnonzero(around).tolist():
        word = example.ids[place]
        aims = around[place] if architecture == "skip-gram" else 1
        window = example.ids[[*range(place - example.left[place], place), *range(place + 1, place + 1 + example.right[place])]]
        if output == "negative":
            if architecture == "skip-gram":
                source[word] += aims * 4
                np.add.at(target, window, 1)
            else:
                np.add.at(source, window, 4)
                target[word] += 1
            target += aims * 3 * made.noise
        else:
            path = made.tree.nodes[made.tree.begins[word] : made.tree.begins[word + 1]]
            np.add.at(source, window, len(path))
            target[path] += aims
    expected = made.shares()
    many = source > 200  # the others vary
    np.testing.assert_allclose(source[many] / example.words, expected[0][many], rtol=0.12)
    many = target > 400
    np.testing.assert_allclose(target[many] / example.words, expected[1][many], rtol=0.12)
    assert not expected[0][:5].any()


def test_frequent_words_take_smaller_steps_and_rare_ones_the_same():
    plain, held = system(sample=0), system(sample=0, max_share=0.5)
    examples = list(plain.objective.example(row(np.random.default_rng(0), (500,)), np.random.default_rng(0)))
    for made in (plain, held):
        made(made.objective.collate(examples)).terms["word"].total.backward()
    share = plain.objective.shares()
    for name, mine in (("input", share[0]), ("output", share[1])):
        scale = torch.tensor(np.minimum(1, 0.5 / np.maximum(mine, 1e-30)))[:, None]
        gradients = [made.net.get_parameter(f"{name}.weight").grad for made in (plain, held)]
        assert 0 < (scale == 1).sum() < 45
        torch.testing.assert_close(gradients[1], gradients[0] * scale, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------------------------- what is refused


def test_settings_and_data_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"window is 0.*; noise_power is -1"):
        Word2VecSettings(window=0, noise_power=-1)
    with pytest.raises(UserError, match="max_share is 0"):
        Word2VecSettings(max_share=0)
    with pytest.raises(UserError, match="window is 200"):
        objective(window=200)
    with pytest.raises(UserError, match="holds 1 different words"):
        Windows(TOKENIZER, np.eye(45, dtype=np.int64)[7] * 9, Word2VecSettings())
    (family,) = FAMILIES
    with pytest.raises(UserError, match=r"word2vec needs to know how often .* --tokenize"):
        family.pretraining.build(Word2VecConfig(vocab_size=45), {}, Context(TOKENIZER))
    assert isinstance(family.pretraining.build(Word2VecConfig(vocab_size=45), {}, Context(net_only=True)).objective, NoData)
    adapted = family.adapt(Word2VecConfig(), Context(TOKENIZER))
    assert adapted.vocab_size == 45 and adapted.special_token_ids == (0, 1, 2, 3, 4)


def test_first_weights_and_the_vector_of_a_text():
    net = Word2Vec(replace(Word2VecConfig(), vocab_size=2000, hidden_size=50, special_token_ids=(0, 1)))
    assert not net.output.weight.any() and abs(net.input.weight.detach().std().item() - 0.02 / math.sqrt(12)) < 1e-4
    assert net.input.weight.detach().abs().max() <= 0.01
    ids, mask = torch.tensor([[5, 6, 1, 0], [1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    found = net.get_text_features(ids, mask)
    torch.testing.assert_close(found[0], (net.input.weight[5] + net.input.weight[6]) / 2)
    assert not found[1].any(), "a text without known words has no direction"


# ------------------------------------------------------------------------------------------- rows alone


@pytest.mark.parametrize(("architecture", "output"), KINDS)
def test_sparse_gradients_are_the_dense_ones_and_hold_the_rows_that_are_read(architecture, output):
    whole, rows = (system(architecture=architecture, output=output, sample=0, max_share=0.5, sparse=sparse) for sparse in (False, True))
    batches = [whole.objective.collate(list(whole.objective.example(row(np.random.default_rng(n), size=20), np.random.default_rng(n))))
               for n in range(2)]
    for made in (whole, rows):
        for batch in batches:  # two micro-batches
            made(batch).terms["word"].total.backward()
    for dense, sparse in zip(whole.parameters(), rows.parameters(), strict=True):
        assert sparse.grad.is_sparse and not dense.grad.is_sparse
        torch.testing.assert_close(sparse.grad.to_dense(), dense.grad, rtol=1e-12, atol=1e-14)
    read = set(rows.net.input.weight.grad.coalesce().indices()[0].tolist())
    assert read <= {0, *range(5, 20)}, "the rows of these words, and what fills up"
    norms = [float(clip_gradients(made.parameters(), 0.1)) for made in (whole, rows)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-12) and norms[0] > 0.1
    before = rows.net.output.weight.detach().clone()
    for made in (whole, rows):
        build_optimizer(made, OptimSettings("sgd", lr=1.0, momentum=0.0, weight_decay=0.0)).step()
    for dense, sparse in zip(whole.parameters(), rows.parameters(), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-14)
    assert not torch.equal(before, rows.net.output.weight)


def test_an_optimizer_that_moves_whole_tables_is_refused_for_sparse_gradients():
    made = system(sparse=True)
    for wrong in (OptimSettings("adamw"), OptimSettings("sgd", momentum=0.9, weight_decay=0.0), OptimSettings("adagrad", weight_decay=0.1)):
        assert "net.input.weight are sparse" in "".join(row_problems(made, wrong))
    for right in (OptimSettings("sgd", momentum=0.0, weight_decay=0.0), OptimSettings("adagrad", weight_decay=0.0)):
        assert not list(row_problems(made, right))
    assert not list(row_problems(system(), OptimSettings("adamw")))
