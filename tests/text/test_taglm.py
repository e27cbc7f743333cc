"""TagLM against the paper written out in loops, what it reads of the language models, and the tagger without them."""

import itertools
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
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.plan.plan import Cluster, plan
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train import loop
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text._characters import FILLING, WORD_BEGIN, WORD_END
from polymodal.text.elmo import Elmo, ElmoConfig
from polymodal.text.taglm import OneDirection, TagLMConfig, TagLMTagger
from torch import nn

SENTENCES = (["John", "naïve", "John", "to"], ["猫"], ["to", "unheard-of"])
TAGS = ("B-LOC", "B-PER", "O")
SMALL = {"embedding_size": 3, "filters": ((3, 4), (2, 2)), "character_size": 2, "max_characters_per_token": 9, "hidden_size": 3,
         "dropout": 0.0}


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train(["John went to Paris", "John to"], "word", 20, style=STYLES["plain"])


@pytest.fixture(scope="module")
def models(tmp_path_factory, words):
    """Two language models, of different widths."""
    root = tmp_path_factory.mktemp("elmos")
    for seed, (name, width) in enumerate((("forward", 4), ("backward", 5))):
        torch.manual_seed(seed)
        net = polymodal.system("elmo", size="tiny", tokenizer=words, hidden_size=width, cell_size=6, filters=((1, 3), (2, 4))).net
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.5)
        polymodal.save(net, root / name, tokenizer=words)
    return {name: str(root / name) for name in ("forward", "backward")}


def built(words, models, **more):
    torch.manual_seed(3)
    system = polymodal.system("taglm", size="tiny", tokenizer=words, companions=models, classes=TAGS, **(SMALL | more))
    for parameter in system.net.parameters():
        nn.init.normal_(parameter, std=0.6)
    system.double().eval()
    return system


def batch_of(system, tags):
    samples = [Sample(f"{n}", {"json": json.dumps({"words": w, "tags": [TAGS[y] for y in t]}).encode()}, n, "here")
               for n, (w, t) in enumerate(zip(SENTENCES, tags))]
    return system.objective.collate([e for s in samples for e in system.objective.example(s, np.random.default_rng(0))])


# -------------------------------------------------------------------------------- the paper, written out in loops


def naive_characters(w, config, word):
    data = word.encode()[: config.max_characters_per_token - 2]
    ids = [WORD_BEGIN, *data, WORD_END]
    rows = [w["characters.embed.weight"][i] for i in ids + [FILLING] * (config.max_characters_per_token - len(ids))]
    found = []
    for number, (width, count) in enumerate(config.filters):
        kernel, bias = (w[f"characters.convolutions.{number}.{part}"] for part in ("weight", "bias"))
        for n in range(count):
            sums = [bias[n] + sum(kernel[n, :, k] @ rows[p + k] for k in range(width)) for p in range(len(rows) - width + 1)]
            found.append(max(torch.tanh(one) for one in sums))
    return torch.stack(found)


def naive_lstm(w, at, xs):
    h = c = torch.zeros(w[f"{at}.state_linearity.weight"].shape[1]).double()
    states = []
    for x in xs:
        gates = w[f"{at}.input_linearity.weight"] @ x + w[f"{at}.state_linearity.weight"] @ h + w[f"{at}.state_linearity.bias"]
        i, f, g, o = gates.chunk(4)
        c = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f + 1) * c
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return states


def naive_bilstm(w, at, xs):
    ahead, back = naive_lstm(w, f"{at}.forwards.0", xs), naive_lstm(w, f"{at}.backwards.0", xs[::-1])[::-1]
    return [torch.cat(pair) for pair in zip(ahead, back)]


def naive_scores(w, net, tokenizer, sentence):
    """[S, K] of one sentence."""
    ids = [tokenizer.vocabulary().get(word, tokenizer.unk_id) for word in sentence]
    xs = [torch.cat([w["embed.weight"][i], naive_characters(w, net.config, word)]) for i, word in zip(ids, sentence)]
    states = naive_bilstm(w, "first", xs)
    for name in net.reads:  # all of a whole ELMo's layers, and of the highest one the half of this direction
        elmo = net.companions[name].net.trunk.double()
        top = elmo(torch.from_numpy(elmo.characters(sentence))[None]).last_hidden_state[0]
        half = top.chunk(2, -1)[name == "backward"]
        states = [torch.cat(pair) for pair in zip(states, half)]
    return torch.stack([w["classifier.weight"] @ s + w["classifier.bias"] for s in naive_bilstm(w, "second", states)])


def naive_score(w, scores, tags):
    total = w["crf.first"][tags[0]] + w["crf.last"][tags[-1]] + sum(scores[t, y] for t, y in enumerate(tags))
    return total + sum(w["crf.transitions"][a, b] for a, b in itertools.pairwise(tags))


@pytest.mark.parametrize("read", [("forward", "backward"), ("backward",), ()])
def test_scores_loss_gradients_and_best_tags_are_the_papers(words, models, read):
    system = built(words, {name: models[name] for name in read}, language_models=read)
    net, truth = system.net, ([0, 2, 0, 2], [1], [2, 1])
    w = {name: parameter.detach().clone().requires_grad_() for name, parameter in net.named_parameters()}
    loss, best = 0, []
    for sentence, tags in zip(SENTENCES, truth):
        scores = naive_scores(w, net, words, sentence)
        every = {y: naive_score(w, scores, y) for y in itertools.product(range(len(TAGS)), repeat=len(sentence))}
        loss = loss + torch.stack(list(every.values())).logsumexp(0) - every[tuple(tags)]
        best.append(list(max(every, key=lambda y: every[y].item())))
    found = system(batch_of(system, truth)).terms["tagging"].total
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=0)
    wanted = torch.autograd.grad(loss, list(w.values()))
    for name, ours, theirs in zip(w, torch.autograd.grad(found, list(net.parameters())), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    assert net.tag(SENTENCES, words) == best
    assert not any(p.requires_grad for each in net.companions.values() for p in each.net.parameters())


def test_one_direction_of_a_language_model_is_its_half_of_both():
    torch.manual_seed(0)
    elmo = Elmo(ElmoConfig(vocab_size=9, hidden_size=6, cell_size=7, filters=((1, 3), (2, 4)), cutoffs=())).double().eval()
    for backwards in (False, True):
        reader = OneDirection(SimpleNamespace(net=elmo), backwards)
        inputs, lengths = reader.collate(SENTENCES), [len(s) for s in SENTENCES]
        (found,) = reader.states(elmo, inputs, lengths)
        both = elmo.states(inputs["characters"], lengths, inputs["words"])[-1]
        assert found.shape == (sum(lengths), reader.width)
        torch.testing.assert_close(found, both.chunk(2, -1)[backwards], rtol=1e-12, atol=1e-12)


def test_the_papers_chunker_has_its_parameters():
    with torch.device("meta"):
        net = TagLMTagger(TagLMConfig(vocab_size=1000, num_labels=22))
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["characters.convolutions.0.weight"] == (30, 25, 3) and shapes["embed.weight"] == (1000, 50)
    assert shapes["first.forwards.0.input_linearity.weight"] == (800, 80)
    assert shapes["second.backwards.0.input_linearity.weight"] == (800, 400 + 1024)
    assert shapes["classifier.weight"] == (22, 400) and "characters.projection.weight" not in shapes


# ------------------------------------------------------------------------------------------------ mistakes


def test_what_is_named_is_read_and_what_is_read_is_named(words, models):
    with pytest.raises(UserError, match=r"companions.forward is named, and model.language_models, \[\], leaves it out"):
        polymodal.system("taglm", size="tiny", tokenizer=words, companions=models, classes=TAGS, language_models=())
    with pytest.raises(UserError, match=r"language_models are .'backward', 'forward'., expected forward, backward"):
        TagLMConfig(language_models=("backward", "forward"))
    with pytest.raises(UserError, match=r"taglm needs a forward beside the network that it trains: set companions.forward=DIR"):
        plan(recipe("taglm-tiny", []), None, Cluster(), console=Console(quiet=True))
    with pytest.raises(UserError, match=r"tagging needs classes .* give --data"):  # nothing else is lacking
        plan(recipe("taglm-tiny", ["model.language_models=[]"]), None, Cluster(), console=Console(quiet=True))
    with pytest.raises(UserError, match="taglm needs a network of elmo there"):
        polymodal.system("taglm", size="tiny", tokenizer=words, companions={"forward": saved("dvae")}, classes=TAGS)


def test_a_vocabulary_of_pieces_is_refused_and_none_is_named(words):
    pieces = Tokenizer.train(["John went to Paris"] * 3, "wordpiece", 30, style=STYLES["bert"])
    with pytest.raises(UserError, match=r"TagLM reads words, and this tokenizer has pieces of words.*--for taglm"):
        polymodal.system("taglm", size="tiny", tokenizer=pieces, classes=TAGS, language_models=())
    net = polymodal.system("taglm", size="tiny", tokenizer=words, classes=TAGS, language_models=()).net
    with pytest.raises(UserError, match="no tokenizer is given"):
        net.tag([["John"]])


# ---------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("taglm")
    known = (("John", "B-PER"), ("Smith", "B-PER"), ("went", "O"), ("to", "O"), ("Paris", "B-LOC"))
    rng = np.random.default_rng(0)
    rows = [[known[i] for i in rng.integers(len(known), size=rng.integers(1, 7))] for _ in range(40)]
    for name, part in (("data", rows[:32]), ("held", rows[32:])):
        table = root / f"{name}.jsonl"
        table.write_text("\n".join(json.dumps({"words": [w for w, _ in row], "tags": [t for _, t in row]}) for row in part))
        pack([table], root / name, PackSettings(Reading("tag", classes=TAGS)), workers=Workers(1))
    return root


@pytest.mark.parametrize("beside", [True, False])
def test_a_run_learns_and_its_export_tags_alone(words, models, data, tmp_path, beside):
    words.save(tmp_path / "words")
    more = [f"companions.{name}={place}" for name, place in models.items()] if beside else ["model.language_models=[]"]
    overrides = ["model.hidden_size=12", "data.global_batch=8", "max_updates=40", "evaluate.every=0", "checkpoint.every=40", "precision=32",
                 "accelerator=cpu", "log.tensorboard=false", "model.dropout=0", "optim.lr=0.02", *more]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:  # with language models, and no --tokenizer, theirs
        run = loop.pretrain(recipe("taglm-tiny", overrides), str(data / "data"), tmp_path / "run", eval_data=str(data / "held"),
                            tokenizer=None if beside else str(tmp_path / "words"), console=Console(quiet=True))
    finally:
        torch.set_num_threads(threads)
    assert run["ending"] == "complete"
    moved = (tmp_path / "run" / "export").rename(tmp_path / "moved")
    model, tokenizer = polymodal.load(moved), polymodal.tokenizer(moved)
    assert [TAGS[y] for y in model.tag([["John", "Smith", "went"]], tokenizer)[0]] == ["B-PER", "B-PER", "O"]
    last = [row for row in loop.Run(tmp_path / "run").metrics() if row["split"] == "eval"][-1]
    found = evaluate(Tag(), str(moved), str(data / "held"), console=Console(quiet=True))
    assert found["metrics"]["entity_f1"] == pytest.approx(last["entity_f1"], abs=1e-6) and last["entity_f1"] > 0.9
