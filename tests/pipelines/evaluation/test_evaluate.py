"""`polymodal evaluate perplexity`, and what every evaluation shares: the record, errors, bad samples, ranks."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import polymodal
import processes
import pytest
import torch
import transformers
from contract.letters import Config, LetterBatch, Reader
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.held_out import chosen_samples, evaluation_batches, even_batches, lane_batches
from polymodal.pipelines.evaluation.evaluate import EvaluationSettings, OutputFiles, evaluate
from polymodal.pipelines.evaluation.intervals import bootstrap, of_ratio, wilson
from polymodal.pipelines.evaluation.perplexity import OwnObjective, Perplexity, SlidingWindow
from polymodal.pipelines.model.export import export_system
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.pipelines.train.meter import Meter
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "and", "the", "small", "large", "old", "new"]
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 24}
SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 24},
    "bert": BERT,
    "electra": {**BERT, "embedding_size": 16},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
}
COUNT = 23


def documents():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, n)) + "." for n in rng.integers(3, 60, COUNT)]


@pytest.fixture(scope="module")
def tokenizers():
    texts = documents() * 2
    return {"gpt2": Tokenizer.train(texts, "byte-bpe", 300), "bert": Tokenizer.train(texts, "wordpiece", 79),
            "t5": Tokenizer.train(texts, "unigram", 135, style=STYLES["t5"])}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in documents()))
    pack(folder / "t.jsonl", folder / "data", console=Console(quiet=True))
    return folder / "data"


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizers):
    """Directories with weights that are far enough from zero to make a difference, and the systems they came from."""
    found = {}
    for name, size in SIZES.items():
        torch.manual_seed(0)
        tokenizer = tokenizers.get(name, tokenizers["bert"])
        system = polymodal.system(name, size="tiny", tokenizer=tokenizer, **size).eval()
        with torch.no_grad():
            for p in system.parameters():
                p.add_(0.1 * torch.randn_like(p))
        out = tmp_path_factory.mktemp("models") / name
        export_system(system, out, tokenizer)
        found[name] = (out, system)
    return found


def measured(evaluation, model, data, *, out=None, predictions=None, force=False, **settings):
    return evaluate(evaluation, model, data, EvaluationSettings(**settings), output=OutputFiles(out, predictions, force),
                    console=Console(quiet=True))


# --- the sliding window


def guide(model, ids, window, stride):
    """transformers' guide to perplexity, as it stands there: the sum of -log p over a document, and its number of targets."""
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        piece = torch.tensor([ids[begin:end]])
        labels = piece.clone()
        labels[:, :-(end - before)] = -100
        with torch.no_grad():
            loss = model(piece, labels=labels).loss
        targets = int((labels != -100).sum()) - int(labels[0, 0] != -100)
        total, count, before = total + float(loss) * targets, count + targets, end
        if end == len(ids):
            break
    return total, count


@pytest.mark.parametrize(("window", "stride", "eos"), [(24, 12, True), (10, 3, False), (24, 23, True), (2, 1, False)])
def test_a_sliding_window_is_that_of_transformers_guide(models, texts, tokenizers, window, stride, eos):
    out, _ = models["gpt2"]
    record = measured(Perplexity(window=window, stride=stride, eos=eos), out, texts)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(out).eval()
    tokenizer = tokenizers["gpt2"]
    rows = [tokenizer.encode(t, add_special_tokens=False) + ([tokenizer.eos_id] if eos else []) for t in documents()]
    sums = [guide(theirs, row, window, stride) for row in rows]
    total, count = sum(t for t, _ in sums), sum(n for _, n in sums)
    assert count == sum(len(r) - 1 for r in rows) == record["details"]["counts"]["tokens"]
    metrics = record["metrics"]
    assert metrics["nats_per_token"] == pytest.approx(total / count, rel=2e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    # the first token is read and not scored; its bytes and words do not count
    firsts = [tokenizer.offsets(t)[1][0][1] for t in documents()]
    size = sum(len(t[f:].encode()) for t, f in zip(documents(), firsts))
    words = sum(len(t[f:].split()) for t, f in zip(documents(), firsts))
    assert metrics["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=2e-6)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-4)
    assert record["intervals"]["nats_per_token"]["low"] < metrics["nats_per_token"] < record["intervals"]["nats_per_token"]["high"]


@pytest.mark.parametrize("stride", [1, 4, 9])
def test_each_token_is_scored_once_with_enough_before_it(stride):
    by = SlidingWindow.__new__(SlidingWindow)
    by.window, by.stride = 10, stride
    for length in range(2, 45):
        scored = []
        for piece, first in by._windows(np.arange(length)):
            assert len(piece) <= 10 and first >= 1
            for place in range(first, len(piece)):
                assert place >= min(10 - stride, piece[place])  # tokens before it in the window
                scored.append(int(piece[place]))
        assert scored == list(range(1, length))


def test_rows_of_tokens_give_what_their_texts_give(models, texts, tokenizers, tmp_path):
    out, _ = models["gpt2"]
    source = texts.parent / "t.jsonl"
    pack(source, tmp_path / "rows", PackSettings(tokenizer=tokenizers["gpt2"], block=200), console=Console(quiet=True))
    a, b = (measured(Perplexity(window=16, stride=8), out, data)["metrics"] for data in (texts, tmp_path / "rows"))
    assert a == pytest.approx(b, rel=1e-5)
    with pytest.raises(UserError, match="packed with another tokenizer"):
        measured(Perplexity(pseudo=True), models["bert"][0], tmp_path / "rows")


# --- by its own objective


@pytest.mark.parametrize("name", list(SIZES))
def test_a_directory_has_its_familys_objective(models, texts, name):
    """Against the system's own means over other batches of the same samples: every draw belongs to a sample."""
    out, system = models[name]
    record = measured(Perplexity(), out, texts, batch_size=5, seed=3)
    meter = Meter(torch.device("cpu"), chance=True)
    with torch.no_grad():
        parts = even_batches(chosen_samples(COUNT, 3), COUNT)
        for batch in evaluation_batches(DataSet.open(texts), system.objective, parts, seed=3):
            meter.add(system(batch), batch.counts)
    means = meter.means()
    for key, value in (means | meter.chances() | system.derive(means)).items():
        assert record["metrics"][key] == pytest.approx(value, rel=2e-5), key
    assert ("bits_per_byte" in record["metrics"]) == (name == "gpt2")  # the others do not predict every token


@pytest.mark.parametrize("name", ["gpt2-tiny", "bert-tiny"])
def test_a_runs_perplexity_is_its_last_evaluation(texts, tokenizers, tmp_path, name):
    family = name.removesuffix("-tiny")
    tokenizers[family].save(tmp_path / "tokenizer")
    sizes = [f"model.{k}={v}" for k, v in SIZES[family].items()]
    chosen = recipe(name, [*sizes, "precision=32", "data.global_batch=4", "seed=5", "evaluate.previews=0", "log.tensorboard=false"])
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in documents()[:9]))
    pack(tmp_path / "t.jsonl", tmp_path / "train", console=Console(quiet=True))
    done = pretrain(chosen, str(tmp_path / "train"), tmp_path / "run", eval_data=texts, tokenizer=tmp_path / "tokenizer", max_updates=2,
                    console=Console(quiet=True))
    record = measured(Perplexity(), tmp_path / "run", texts, batch_size=4)
    places = {"split", "update", "samples", "epoch", "tokens", "bad", "seconds"}
    row = {k: v for k, v in done["eval"].items() if k not in places}
    assert {k: record["metrics"][k] for k in row} == pytest.approx(row, rel=1e-12)
    assert record["settings"]["seed"] == 5
    manifest = tmp_path / "run" / "checkpoints" / "update-00000002" / "manifest.json"
    assert record["model"]["manifest_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest() and record["model"]["update"] == 2
    with pytest.raises(UserError, match="brings its own objective"):
        measured(Perplexity(objective={"max_length": 8}), tmp_path / "run", texts)


def test_the_length_of_the_memory(texts, tokenizers, tmp_path):
    tokenizer = Tokenizer.train(documents(), "word", 40)
    pack(texts.parent / "t.jsonl", tmp_path / "rows", PackSettings(tokenizer=tokenizer, block=9, in_order=True),
         console=Console(quiet=True))
    torch.manual_seed(0)
    size = {"d_model": 32, "d_embed": 32, "n_head": 2, "d_head": 16, "d_inner": 48, "n_layer": 2, "mem_len": 5}
    system = polymodal.system("transformer_xl", size="tiny", tokenizer=tokenizer, **size).eval()
    with torch.no_grad():
        for p in system.parameters():
            p.add_(0.2 * torch.randn_like(p))
    export_system(system, tmp_path / "model", tokenizer)
    found = measured(Perplexity(memory=(0, 7)), tmp_path / "model", tmp_path / "rows", batch_size=3)
    for length in (0, 7):
        system.net.memory_length = length
        meter, carry = Meter(torch.device("cpu")), None
        with torch.no_grad():
            rows = DataSet.open(tmp_path / "rows")
            for batch in evaluation_batches(rows, system.objective, lane_batches(len(rows), 3, 3), seed=0):
                step = system(batch, carry)
                carry = step.carry
                meter.add(step, batch.counts)
        assert found["metrics"][f"memory-{length}/loss"] == pytest.approx(meter.means()["loss"], rel=1e-6)
    assert abs(found["metrics"]["memory-0/loss"] - found["metrics"]["memory-7/loss"]) > 1e-3
    with pytest.raises(UserError, match="no memory"):
        measured(Perplexity(memory=(1,)), *_gpt_for(tmp_path, tokenizers, texts))


def _gpt_for(folder, tokenizers, texts):
    export_system(polymodal.system("gpt2", size="tiny", tokenizer=tokenizers["gpt2"], **SIZES["gpt2"]), folder / "gpt", tokenizers["gpt2"])
    return folder / "gpt", texts


def test_an_objective_without_cross_entropy_is_refused_with_its_first_batch():
    system = Reader(Config())
    measure = OwnObjective(SimpleNamespace(source="RUN", device=torch.device("cpu")), system)
    with pytest.raises(UserError, match=r"RUN: its objective has no cross-entropy \(its terms are square\), .* `polymodal inspect` shows"):
        measure.add(LetterBatch(x=torch.zeros(2, 5), y=torch.zeros(2), counts={"rows": 2}, tokens=2))


# --- masking word by word


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_pseudo_perplexity_by_brute_force(models, texts, tokenizers, name):
    """transformers' network, one masked token at a time; texts of more than 22 tokens in pieces."""
    out, _ = models[name]
    record = measured(Perplexity(pseudo=True), out, texts, limit=6)
    tokenizer = tokenizers["bert"]
    theirs = (transformers.BertForPreTraining.from_pretrained(out) if name == "bert" else
              transformers.ElectraForMaskedLM.from_pretrained(out / "generator")).eval()
    parts = even_batches(chosen_samples(COUNT, 0, 6), 6)
    batches = evaluation_batches(DataSet.open(texts), models["gpt2"][1].objective, parts, seed=0)
    chosen = {i for b in batches for i in b.sample_ids}
    total, count = 0.0, 0
    for text in (t for i, t in enumerate(_in_order_of(texts)) if i in chosen):
        ids = tokenizer.encode(text, add_special_tokens=False)
        for start in range(0, len(ids), 22):
            row = [tokenizer.cls_id, *ids[start:start + 22], tokenizer.sep_id]
            for place in range(1, len(row) - 1):
                masked = torch.tensor([row])
                masked[0, place] = tokenizer.mask_id
                with torch.no_grad():
                    result = theirs(masked)
                logits = result.prediction_logits if name == "bert" else result.logits
                total -= float(logits[0, place].log_softmax(-1)[row[place]])
                count += 1
    assert record["details"]["counts"]["tokens"] == count and record["data"]["measured"] == 6
    assert record["metrics"]["perplexity"] == pytest.approx(math.exp(total / count), rel=2e-5)


def _in_order_of(data):
    opened = DataSet.open(data)
    return [opened.read(i).text() for i in range(len(opened))]


# --- the record


def test_the_record_says_what_was_measured_on_what(models, texts, tmp_path):
    out, _ = models["gpt2"]
    target = tmp_path / "r.json"
    record = measured(Perplexity(window=20), out, texts, out=target, limit=7)
    assert json.loads(target.read_text()) == {k: v for k, v in json.loads(json.dumps(record)).items() if k != "rank"}
    assert record["data"] == {"source": str(texts), "fingerprint": DataSet.open(texts).fingerprint, "kind": "text", "samples": COUNT,
                              "measured": 7, "skipped": 0, "bad": []}
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert record["model"]["files"] == {"model.safetensors": weights} and record["model"]["architecture"] == "GPT2LMHeadModel"
    assert record["tokenizer"] == polymodal.tokenizer(out).fingerprint
    assert record["settings"]["window"] == 20 and record["settings"]["stride"] is None and "stride 10" in record["method"]
    assert record["environment"]["torch"] == torch.__version__ and record["seconds"] > 0
    with pytest.raises(UserError, match="there already"):
        measured(Perplexity(window=20), out, texts, out=target)
    again = measured(Perplexity(window=20), out, texts, out=target, limit=7, force=True)
    assert again["metrics"] == record["metrics"]
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]  # nothing half-written


def test_the_record_shows_no_secrets(models, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(texts))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://user:hunter2@127.0.0.1:{server.server_port}?sig=topsecret"
        record = measured(Perplexity(), models["gpt2"][0], address, out=tmp_path / "found.json")
        server.shutdown()
    for text in (json.dumps(record), (tmp_path / "found.json").read_text()):
        assert "127.0.0.1" in text and "hunter2" not in text and "topsecret" not in text


def test_compare(models, texts, tmp_path, capsys):
    out, _ = models["gpt2"]
    for name, window in (("a", 20), ("b", 8)):
        measured(Perplexity(window=window), out, texts, out=tmp_path / f"{name}.json", limit=3)
    assert cli.run(["evaluate", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    shown = capsys.readouterr().out
    assert "setting window differs: 20, 8" in shown and "perplexity" in shown
    (tmp_path / "c.json").write_text("{}")
    assert cli.run(["evaluate", "compare", str(tmp_path / "c.json")]) == 2
    assert "is not a result of" in capsys.readouterr().err


def test_the_command_prints_one_object(models, texts, capsys):
    out, _ = models["gpt2"]
    assert cli.run(["evaluate", "perplexity", "--model", str(out), "--data", str(texts), "--window", "16", "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]["perplexity"] > 1


def test_bad_samples_are_left_out_and_counted(models, tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in documents()[:5]))
    pack(tmp_path / "t.jsonl", tmp_path / "d", PackSettings(shuffle=None), console=Console(quiet=True))
    tar = next((tmp_path / "d").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    place = data.index(documents()[2].encode())
    data[place:place + 2] = b"\xff\xff"
    tar.write_bytes(bytes(data))
    out, _ = models["gpt2"]
    with pytest.raises(UserError, match="--on-bad skip"):
        measured(Perplexity(window=16), out, tmp_path / "d")
    for size in (1, 5):  # alone in its batch, and among others
        record = measured(Perplexity(window=16), out, tmp_path / "d", on_bad="skip", batch_size=size)
        assert (record["data"]["measured"], record["data"]["skipped"]) == (4, 1)


# --- mistakes


def refused(capsys, *arguments):
    assert cli.run(["evaluate", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_mistakes_are_told(models, texts, tokenizers, tmp_path, capsys):
    gpt, bert = models["gpt2"][0], models["bert"][0]
    message = refused(capsys, "zero-shot", "--model", gpt, "--data", texts)
    assert "holds the fields txt; zero-shot reads pictures or regions (" in message and "and class numbers (cls, json)" in message
    assert "generate reads targets" in refused(capsys, "generate", "--model", gpt, "--data", texts)
    assert "needs a causal language model" in refused(capsys, "perplexity", "--model", bert, "--data", texts, "--window", 8)
    assert "has no mask token" in refused(capsys, "perplexity", "--model", gpt, "--data", texts, "--pseudo")
    assert "expected 2 to 24" in refused(capsys, "perplexity", "--model", gpt, "--data", texts, "--window", 25)
    assert "expected 1 to 7" in refused(capsys, "perplexity", "--model", gpt, "--data", texts, "--window", 8, "--stride", 8)
    assert "give one of them" in refused(capsys, "perplexity", "--model", gpt, "--data", texts, "--window", 8, "--pseudo")
    assert "--precision is '8'" in refused(capsys, "perplexity", "--model", gpt, "--data", texts, "--precision", 8)
    assert "expected NAME=VALUE" in refused(capsys, "perplexity", "--model", gpt, "--data", texts, "--set", "x")
    assert "no index" in refused(capsys, "perplexity", "--model", gpt, "--data", tmp_path)
    assert "no folder" in refused(capsys, "perplexity", "--model", gpt, "--data", texts, "--out", tmp_path / "no" / "x.json")
    polymodal.save(models["gpt2"][1].net, tmp_path / "bare")
    assert "pass --tokenizer" in refused(capsys, "perplexity", "--model", tmp_path / "bare", "--data", texts, "--window", 8)
    polymodal.save(models["bert"][1].net, tmp_path / "other", tokenizer=tokenizers["bert"])
    assert "trains a BertForMaskedLM" in refused(capsys, "perplexity", "--model", tmp_path / "other", "--data", texts, "--set", "nsp=false")
    assert not list(tmp_path.glob("*.json"))


# --- numbers


def test_intervals():
    assert wilson(0, 10).low == 0 and 0.25 < wilson(0, 10).high < 0.31
    assert (wilson(8, 10).low, wilson(8, 10).high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # published: Wilson for 8 of 10
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):  # documents of different lengths whose mean is 2: the interval holds it 95 times in 100
        counts = rng.integers(5, 50, 60)
        totals = [rng.exponential(2, n).sum() for n in counts]
        found = of_ratio(totals, counts.tolist(), "documents")
        inside += found.low < 2 < found.high
    assert 0.92 < inside / 400 < 0.975
    values = rng.normal(3, 1, 200)
    found = bootstrap(lambda chosen: float(values[chosen].mean()), 200)
    assert found.low == pytest.approx(values.mean() - 1.96 * values.std() / 200**0.5, abs=0.03) and found.low < values.mean() < found.high


# --- ranks

def measure(gpt, bert, texts, out):
    found = [evaluate(task, model, texts, EvaluationSettings(batch_size=3, limit=limit)) for task, model, limit in (
        (Perplexity(window=16, stride=4), gpt, None), (Perplexity(), bert, None), (Perplexity(window=16), gpt, 1))]
    if found[0]["rank"] == 0:
        out.write_text(json.dumps([{k: r[k] for k in ("metrics", "intervals", "details", "data")} for r in found]))


@pytest.mark.slow
def test_two_ranks_measure_every_sample_once_and_the_same(models, texts, tmp_path):
    """23 samples in 8 batches, then a single sample, of which one rank gets none: the same to the last bit."""
    found = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        processes.together(processes.ranks(count, measure, models["gpt2"][0], models["bert"][0], texts, out))
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]
    assert [r["data"]["measured"] for r in found[0]] == [COUNT, COUNT, 1]
