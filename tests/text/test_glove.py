"""GloVe beside the paper's formula and the C tool's AdaGrad in plain loops, and the counts beside a count in loops."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from polymodal.pipelines import cli
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.cooccurrence import PairSettings, pack_pairs
from polymodal.pipelines.pack.settings import Reading
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.glove import TABLES, Cooccurrences, GloVeConfig, GloVeSettings, GloVeSystem

WORDS = [f"w{n:02d}" for n in range(30)]
TOKENIZER = Tokenizer.train([" ".join(WORDS)] * 2, "word", 35)


def sample(first, second, weight):
    def npy(values, kind):
        data = io.BytesIO()
        np.save(data, np.array(values, dtype=kind))
        return data.getvalue()

    return Sample("a", {"first.npy": npy(first, "<i4"), "second.npy": npy(second, "<i4"), "weight.npy": npy(weight, "<f4")})


def system(width=4):
    torch.manual_seed(0)
    made = GloVeSystem(GloVeConfig(vocab_size=35, hidden_size=width), GloVeSettings(x_max=10), Cooccurrences(TOKENIZER)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(-1, 1)
    return made


def batches(made, count):
    for n in range(count):
        rng = np.random.default_rng(n)
        pairs = np.unique(np.sort(rng.integers(5, 35, (40, 2)), axis=1), axis=0)
        (example,) = made.objective.example(sample(pairs[:, 0], pairs[:, 1], rng.uniform(0.1, 30, len(pairs))), rng)
        yield made.objective.collate([example])


def test_updates_are_the_tools_adagrad_in_loops():
    """All records of an update with the accumulators from before it; the tool multiplies by its rate before it squares."""
    made, rate = system(), 0.05
    w, c, b, d = (made.net.get_submodule(name).weight.detach().numpy().copy() for name in TABLES)
    squares = [np.ones_like(part) for part in (w, c, b, d)]
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
    for update, batch in enumerate(batches(made, 3)):
        batch.update = update
        cost, steps, added = 0.0, [np.zeros_like(p) for p in (w, c, b, d)], [np.zeros_like(p) for p in (w, c, b, d)]
        for i, j, x in zip(batch.words.tolist(), batch.contexts.tolist(), batch.weights.tolist(), strict=True):
            error = w[i] @ c[j] + b[i, 0] + d[j, 0] - math.log(x)
            slope = min(1.0, (x / 10) ** 0.75) * error
            cost += 0.5 * slope * error
            for part, row, gradient in ((0, i, slope * c[j]), (1, j, slope * w[i]), (2, i, slope), (3, j, slope)):
                steps[part][row] += rate * gradient / np.sqrt(squares[part][row])
                added[part][row] += (rate * gradient) ** 2
        for part, step, more, square in zip((w, c, b, d), steps, added, squares, strict=True):
            part -= step
            square += more
        total = made(batch).terms["block"].total
        assert total.item() == pytest.approx(cost, rel=1e-6)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        made.after_update(update)
    for name, part in zip(TABLES, (w, c, b, d), strict=True):
        np.testing.assert_allclose(made.net.get_submodule(name).weight.detach().numpy(), part, rtol=1e-6, atol=1e-9)


def test_an_update_that_is_left_out_leaves_no_squares():
    made = system()
    first, second = batches(made, 2)
    first.update, second.update = 0, 1
    made(first)
    made(second)
    made.after_update(1)
    other = system()
    other(second)
    other.after_update(1)
    for name in TABLES:
        torch.testing.assert_close(made.get_buffer(f"{name}_squares"), other.get_buffer(f"{name}_squares"), rtol=0, atol=0)
        assert (made.get_buffer(f"{name}_squares") >= 400).all() and (made.get_buffer(f"{name}_squares") > 400).any()


def test_records_are_read_in_both_directions_and_the_vectors_are_the_sum():
    made = system()
    (example,) = made.objective.example(sample([5, 6], [6, 6], [2, 3]), np.random.default_rng(0))
    assert list(zip(example.words.tolist(), example.contexts.tolist(), example.counts.tolist())) == [(5, 6, 2), (6, 6, 3), (6, 5, 2)]
    torch.testing.assert_close(made.net.word_vectors(), made.net.word.weight + made.net.context.weight)
    constant = made.derive({"factor": 0.5, "factor_log": 0.6, "factor_log_squared": 1.0})
    assert constant == {"squared_error_chance": pytest.approx(0.5 * (1.0 - 0.36 / 0.5))}


@pytest.mark.parametrize(("first", "second", "weight", "message"), [
    ([5], [35], [1], "beyond the 35 of the vocabulary"), ([-1], [5], [1], "beyond the 35"), ([5], [6], [0], "no positive number"),
    ([5], [6], [math.nan], "no positive number"), ([5, 6], [6], [1], "of one length"), ([], [], [], "of one length"),
])
def test_records_that_make_no_sense_are_bad_samples(first, second, weight, message):
    with pytest.raises(BadSample, match=message):
        list(Cooccurrences(TOKENIZER).example(sample(first, second, weight), np.random.default_rng(0)))
    with pytest.raises(BadSample, match=r"no field 'first.npy': glove reads .* --kind cooccurrence"):
        list(Cooccurrences(TOKENIZER).example(Sample("a", {"txt": b"a"}), np.random.default_rng(0)))
    with pytest.raises(UserError, match="x_max is 0, expected a positive number"):
        GloVeSettings(x_max=0)


# -------------------------------------------------------------------------------------------- the counts


def texts(path, count=60):
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice([*WORDS[:12], *WORDS[:3], "nobody"], int(n))) for n in rng.integers(1, 30, count)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return rows


def in_loops(rows, window):
    """X of both directions, by a dictionary."""
    found = {}
    for row in rows:
        ids = [TOKENIZER.token_to_id(word) for word in row.split() if word != "nobody"]
        for place, word in enumerate(ids):
            for other in range(max(0, place - window), min(len(ids), place + window + 1)):
                if other != place:
                    found[word, ids[other]] = found.get((word, ids[other]), 0) + 1 / abs(place - other)
    return found


def table_of(folder):
    data, found, order = DataSet.open(folder), {}, []
    for i in range(len(data)):
        (example,) = Cooccurrences(TOKENIZER).example(data.read(i), np.random.default_rng(0))
        for word, context, count in zip(example.words.tolist(), example.contexts.tolist(), example.counts.tolist(), strict=True):
            assert (word, context) not in found, "a pair stands there twice"
            found[word, context] = count
            order.append((word, context))
    return found, order


@pytest.mark.parametrize("held", [16, 100, 8_000_000])
def test_counts_are_those_of_a_count_in_loops_however_little_is_held(tmp_path, held):
    rows = texts(tmp_path / "t.jsonl")
    for out, more in (("a", {}), ("b", {"shard_bytes": 4096})):
        settings = PairSettings(window=4, block=10, held=held, **more)
        index = pack_pairs([tmp_path / "t.jsonl"], tmp_path / out, TOKENIZER, settings, Reading())
        found, order = table_of(tmp_path / out)
        expected = in_loops(rows, 4)
        assert found.keys() == expected.keys() and all(found[key] == pytest.approx(expected[key], rel=1e-6) for key in expected)
        assert index.kind == "cooccurrence" and index.schema["tokenizer"] == TOKENIZER.fingerprint
        upper = [pair for pair in order if pair[0] <= pair[1]]
        assert index.schema["records"] == len(upper) and index.samples == -(-len(upper) // 10)
        assert order != sorted(order) and DataSet.open(tmp_path / out).tokenizer_dir is not None
    assert len(DataSet.open(tmp_path / "b").index.shards) > 1


def test_what_is_held_changes_no_byte_of_a_record(tmp_path):
    texts(tmp_path / "t.jsonl")
    made = []
    for held in (50, 8_000_000):
        pack_pairs([tmp_path / "t.jsonl"], tmp_path / str(held), TOKENIZER, PairSettings(window=10, block=10**6, held=held), Reading())
        made.append(table_of(tmp_path / str(held)))
    assert made[0] == made[1]


def test_the_command_and_what_it_refuses(tmp_path, capsys):
    rows = texts(tmp_path / "t.jsonl")
    TOKENIZER.save(tmp_path / "tok")
    common = ["pack", str(tmp_path / "t.jsonl"), "--kind", "cooccurrence"]
    assert cli.run([*common, "--tokenize", str(tmp_path / "tok"), "--window", "3", "--out", str(tmp_path / "data"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["schema"]["window"] == 3 and table_of(tmp_path / "data")[0].keys() == in_loops(rows, 3).keys()
    (tmp_path / "one.txt").write_text("w01 nobody\n\nw02\n")
    for arguments, message in (
        ([*common, "--out", "no"], "give one with --tokenize"),
        ([*common, "--tokenize", str(tmp_path / "tok"), "--out", str(tmp_path / "data")], "is not empty"),
        ([*common, "--tokenize", str(tmp_path / "tok"), "--out", "no", "--window", "99"], "--window is 99"),
        ([*common, "--tokenize", str(tmp_path / "tok"), "--out", "no", "--holdout", "0.1"], "--holdout has no effect with --kind"),
        (["pack", str(tmp_path / "one.txt"), *common[2:], "--tokenize", str(tmp_path / "tok"), "--out", str(tmp_path / "no")],
         "no two words of the vocabulary stand near each other"),
        (["pack", str(tmp_path / "t.jsonl"), "--out", "no", "--window", "3"], "--window is for --kind cooccurrence"),
    ):
        assert cli.run(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error and not (tmp_path / "no").exists()
