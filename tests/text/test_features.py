"""Features of any trained network: what is read of it, what is trained, and what lies in an export."""

import json
from types import SimpleNamespace

import numpy as np
import polymodal
import pytest
import torch
from contract.cases import saved
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.evaluation.evaluate import evaluate
from polymodal.pipelines.evaluation.tasks import Tag
from polymodal.pipelines.model.frontdoor import opened
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train import loop
from polymodal.registry import family
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text._readers import TokenReader, reader_of, trunk_of

WORDS = (("John", "B-PER"), ("Smith", "B-PER"), ("went", "O"), ("to", "O"), ("Paris", "B-LOC"), ("today", "O"))
TEXT = [" ".join(w for w, _ in WORDS)] * 3
OVERRIDES = ["model.hidden_size=12", "data.global_batch=8", "max_updates=12", "evaluate.every=0", "checkpoint.every=6", "precision=32",
             "accelerator=cpu", "log.tensorboard=false", "model.dropout=0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    rows = [[WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(1, 7))] for _ in range(40)]
    for name, part in (("data", rows[:32]), ("held", rows[32:])):
        table = root / f"{name}.jsonl"
        table.write_text("\n".join(json.dumps({"words": [w for w, _ in row], "tags": [t for _, t in row]}) for row in part))
        pack([table], root / name, PackSettings(Reading("tag", classes=("B-LOC", "B-PER", "O"))), workers=Workers(1))
    tok = Tokenizer.train(TEXT, "wordpiece", 40, style=STYLES["bert"])
    torch.manual_seed(0)
    for name, more in (("bert", {"max_position_embeddings": 24}), ("gpt2", {"n_positions": 24})):
        net = polymodal.system(name, size="tiny", tokenizer=tok if name == "bert" else Tokenizer.train(TEXT, "byte-bpe", 265), **more)
        polymodal.save(net.net, root / name, tokenizer=net.objective.tokenizer)
    return SimpleNamespace(root=root, data=str(root / "data"), held=str(root / "held"),
                           elmo=str(saved("elmo")), bert=str(root / "bert"), gpt2=str(root / "gpt2"))


def companion(source):
    return opened({"features": source}, family("features").pretraining, "features")["features"]


def sentence(words, tags, index=0):
    return Sample(f"{index}", {"json": json.dumps({"words": words, "tags": tags}).encode()}, index, "here")


@pytest.mark.parametrize("name", ["elmo", "bert", "gpt2"])
def test_the_layers_of_a_word_are_those_of_its_sentence_alone(made, name):
    source = companion(getattr(made, name))
    reader, trunk = reader_of(source), trunk_of(source.net)
    sentences = [["John", "Smith", "went"], ["Paris"], ["unheard", "of", "Paris", "today", "to"]]
    with torch.no_grad():
        together = reader.states(trunk, reader.collate(sentences), [3, 1, 5])
        alone = [reader.states(trunk, reader.collate([s]), [len(s)]) for s in sentences]
    assert len(together) == reader.layers and all(layer.shape == (9, reader.width) for layer in together)
    for layer, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(layer, torch.cat(parts), rtol=1e-4, atol=1e-5)


def test_a_word_of_several_tokens_is_read_at_its_first(made):
    source = companion(made.bert)
    reader = reader_of(source)
    assert isinstance(reader, TokenReader)
    inputs = reader.collate([["John", "zzz", "to"]])
    pieces = [len(reader.tokenizer.encode(f" {w}", add_special_tokens=False)) for w in ("John", "zzz")]
    assert inputs["places"].tolist() == [1, 1 + pieces[0], 1 + sum(pieces)]


def test_a_sentence_that_does_not_fit_is_bad(made):
    built = polymodal.system("features", size="tiny", companions={"features": made.bert}, classes=("O", "B-PER"))
    with pytest.raises(BadSample, match="tokens, the network has 24 positions: pack shorter sentences"):
        list(built.objective.example(sentence(["John"] * 40, ["O"] * 40), np.random.default_rng(0)))
    with pytest.raises(BadSample, match="the tag 'X'; the model has O, B-PER"):
        list(built.objective.example(sentence(["John"], ["X"]), np.random.default_rng(0)))
    with pytest.raises(UserError, match="the sentence 'John John"):
        built.net.tag([["John"] * 40])


def test_who_reads_no_words_is_refused(made, tmp_path):
    polymodal.save(polymodal.system("dvae", size="tiny").net, tmp_path)
    with pytest.raises(UserError, match="features needs a network of elmo or bert"):
        polymodal.system("features", size="tiny", companions={"features": tmp_path}, classes=("O",))
    with pytest.raises(UserError, match="features needs a features beside the network that it trains"):
        family("features").pretraining.build(family("features").config(), {}, polymodal.shared.family.Context(classes=("a",)))


def run(made, out, name, *more, held=None):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chosen = recipe("features-tiny", [*OVERRIDES, f"companions.features={getattr(made, name)}", *more])
        return loop.pretrain(chosen, made.data, out, eval_data=held, console=Console(quiet=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "tuned"), [("elmo", False), ("bert", True)])
def test_one_key_says_whether_the_network_learns_and_an_export_needs_nothing_else(made, tmp_path, name, tuned):
    out, before = tmp_path / "run", polymodal.load(getattr(made, name)).state_dict()
    assert run(made, out, name, *(["objective.tuned=true"] if tuned else []))["ending"] == "complete"
    moved = (out / "export").rename(tmp_path / "moved")
    loaded = polymodal.load(moved)
    inside = loaded.companions["features"].net.state_dict()
    changed = {key for key, tensor in inside.items() if not torch.equal(tensor, before[key])}
    assert bool(changed) == tuned and all(key.startswith("trunk.") or "decoder" in key or "head" in key for key in changed)
    tags = loaded.tag([["John", "went"], ["Paris"]])
    assert [len(row) for row in tags] == [2, 1]
    (moved / "features").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"reads another one \(features\), which does not lie beside it"):
        polymodal.load(moved).tag([["John"]])
    newest = max((out / "checkpoints").iterdir())
    assert polymodal.load(newest).tag([["John", "went"], ["Paris"]]) == tags


def test_evaluation_and_the_run_measure_the_same(made, tmp_path):
    out = tmp_path / "run"
    run(made, out, "elmo", held=made.held)
    last = [row for row in loop.Run(out).metrics() if row["split"] == "eval"][-1]
    found = evaluate(Tag(), str(out), made.held, console=Console(quiet=True))
    for name in ("accuracy", "entity_f1"):
        assert found["metrics"][name] == pytest.approx(last[name], abs=1e-6)


def test_pairs_and_texts_are_classified(made):
    torch.manual_seed(0)
    built = polymodal.system("features", size="tiny", task="classify", companions={"features": made.elmo}, classes=("a", "b"), dropout=0.0)
    alone, pair = ("John went", None), ("John went", "to Paris.")
    together = built.eval().net.logits([alone, pair, pair])
    for row, text in zip(together, (alone, pair, pair)):
        torch.testing.assert_close(row, built.net.logits([text])[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])
    with pytest.raises(UserError, match="the text '' has no words"):
        built.net.logits([(" ", None)])
    with pytest.raises(BadSample, match="class 2, the model has 2"):
        list(built.objective.example(Sample("a", {"txt": b"John", "cls": b"2"}, 0, "here"), np.random.default_rng(0)))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A network of each kind that has word vectors; `John` is known as it is spelt, `paris` in lower case alone."""
    root, places = tmp_path_factory.mktemp("vectors"), {}
    tok = Tokenizer.train(["John went to paris today"], "word", 20, style=STYLES["plain"])
    for seed, name in enumerate(("word2vec", "glove", "nnlm")):
        torch.manual_seed(seed)
        net = polymodal.system(name, size="tiny", tokenizer=tok).net
        polymodal.save(net, root / name, tokenizer=tok)
        places[name] = str(root / name)
    return SimpleNamespace(**places, tok=tok)


@pytest.mark.parametrize("name", ["word2vec", "glove", "nnlm"])
def test_word_vectors_are_one_layer_that_knows_no_sentence(vectors, name):
    source = companion(getattr(vectors, name))
    reader, table = reader_of(source), polymodal.load(getattr(vectors, name)).word_vectors()
    (states,) = reader.states(trunk_of(source.net), reader.collate([["John", "Paris", "<unk>"], ["unheard", "of", "John"]]), [3, 3])
    assert (reader.layers, reader.width) == (1, table.shape[1]) and reader.fits(["a"] * 9999) is None
    ids = vectors.tok.vocabulary()
    for row, word in enumerate(("John", "paris", None, None, None, "John")):
        assert torch.equal(states[row], torch.zeros(table.shape[1]) if word is None else table[ids[word]])


def test_word_vectors_are_frozen_or_learn_and_the_rest_of_their_network_does_not(vectors):
    for task in ("", "classify"):
        for name, learns in (("word2vec", {"input.weight"}), ("glove", {"word.weight", "context.weight"}), ("nnlm", {"embed.weight"})):
            for tuned in (False, True):
                built = polymodal.system("features", size="tiny", task=task, companions={"features": getattr(vectors, name)},
                                         classes=("O", "B-PER"), dropout=0.0, objective={"tuned": tuned})
                sample = Sample("a", {"json": b'{"words": ["John", "went"], "tags": ["B-PER", "O"]}', "txt": b"John went",
                                      "pair.txt": b"to", "cls": b"1"}, 0, "here")
                batch = built.objective.collate(list(built.objective.example(sample, np.random.default_rng(0))))
                sum(term.total for term in built.train()(batch).terms.values()).backward()
                trained = {key: p for key, p in built.named_parameters() if p.requires_grad}
                assert all(p.grad is not None for p in trained.values())
                moved = {key.removeprefix("sources.features."): p.grad for key, p in trained.items() if key.startswith("sources.")}
                assert set(moved) == (learns if tuned else set()) and all(grad.any() for grad in moved.values())
