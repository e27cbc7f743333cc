"""GPT fine-tuned: its four inputs, the loss L3 and its gradients, networks beside transformers, runs from a language model."""

import json
from collections.abc import Iterator

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import RELATIVE, assert_both_ways, assert_same_gradients, noise, rows_of, saved
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.inference.texts import classify_texts, text_classifier
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.registry import family
from polymodal.seq2seq import gpt
from polymodal.shared.convert import Alias, Rename
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from torch.nn import functional as F

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "and", "the", "small", "large"]
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 24, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
         "summary_first_dropout": 0.0}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS)] * 9, "word", 40, style=STYLES["plain"])


def built(tok, task, seed=0, objective=None, **options):
    torch.manual_seed(seed)
    classes = {"classes": ("no", "yes")} if task == "classify" else {}
    return polymodal.system("gpt", size="tiny", task=task, tokenizer=tok, objective=objective or {}, **classes, **{**SMALL, **options})


def sample(text, pair=None, cls=None, **annotations):
    fields = {name: value.encode() for name, value in (("txt", text), ("pair.txt", pair), ("cls", cls)) if value is not None}
    return Sample("k", {**fields, "json": json.dumps(annotations).encode()}, source="here")


TEXTS = {
    "classify": [sample("red cat", cls="0"), sample("the dog runs", "the small dog sleeps", cls="1"), sample("blue", cls="1")],
    "score": [sample("red cat", score=1), sample("the dog", "the house and the tree", score=4.5)],
    "choice": [sample("red cat", choices=["runs", "the house and the dog"], label=1),
               sample("dog", choices=["runs", "red", "cat"], label=0)],
}


def batch_of(system, samples):
    return system.objective.collate([e for s in samples for e in system.objective.example(s, np.random.default_rng(0))])


# ------------------------------------------------------------------------------------------------ inputs


def test_texts_stand_between_three_tokens_that_come_behind_the_vocabulary(tok):
    system = built(tok, "classify")
    more = system.objective.tokenizer
    assert more.vocabulary() == {**tok.vocabulary(), "_start_": len(tok), "_classify_": len(tok) + 1, "_delimiter_": len(tok) + 2}
    assert system.net.config.vocab_size == len(tok) + 3 == len(system.net.trunk.embed.word.weight)
    single, pair = (more.show(system.objective.frame(*text)[0]) for text in (("red cat",), ("red", "the dog")))
    assert (single, pair) == ("_start_ red cat _classify_", "_start_ red _delimiter_ the dog _classify_")
    choices = built(tok, "choice").objective.framed_choices("red", ["cat", "dog"]).choices
    assert [more.show(c.input_ids) for c in choices] == [f"_start_ red _delimiter_ {word} _classify_" for word in ("cat", "dog")]
    assert gpt.framed(more).fingerprint == more.fingerprint != tok.fingerprint
    text = "_start_"
    assert more.encode(text, add_special_tokens=False) == [len(tok)] and more.decode(more.encode("red cat")) == "red cat"


@pytest.mark.parametrize("kind", ["bpe", "published"])
def test_the_tokens_survive_files_and_transformers(kind, tmp_path):
    """Of a vocabulary by SentencePiece, and of one as it was published."""
    if kind == "bpe":
        plain = Tokenizer.train([" ".join(WORDS)] * 9, "bpe", 60, style=STYLES["plain"], lowercase=True)
    else:
        letters = sorted(set("".join(WORDS)))
        vocabulary = {t: i for i, t in enumerate(["<unk>", *letters, *(f"{c}</w>" for c in letters), "re", "red</w>"])}
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
        plain = Tokenizer.load(tmp_path)
    more = gpt.framed(plain)
    more.save(tmp_path / "saved")
    again, theirs = Tokenizer.load(tmp_path / "saved"), transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == more.fingerprint and again.vocab_size == plain.vocab_size + 3
    for text in (("the red cat",), ("the red cat", "runs")):
        ids = more.encode(text[0], pair=text[1] if len(text) > 1 else None)
        assert theirs(*text)["input_ids"] == ids == again.encode(text[0], pair=text[1] if len(text) > 1 else None)
    body = more.encode("the red cat", add_special_tokens=False)
    assert body == plain.encode("the red cat", add_special_tokens=False) == more.encode("the red cat")[1:-1]


# ---------------------------------------------------------------------------------------- beside transformers


def config():
    return transformers.OpenAIGPTConfig(vocab_size=61, n_embd=32, n_layer=2, n_head=2, n_positions=24, pad_token_id=0, num_labels=3)


def padded_ids(*shape):
    ids = torch.randint(1, 60, shape, generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, ..., 6:] = mask[1, ..., 6:] = 0
    return ids, mask


def test_the_classifier_both_ways(tmp_path):
    theirs = saved("OpenAIGPTForSequenceClassification", config(), tmp_path / "theirs")
    ids, mask = padded_ids(3, 9)
    with torch.no_grad():
        ours = polymodal.load(tmp_path / "theirs")
        logits = ours(ids, mask).logits
        assert float((logits - theirs(ids, attention_mask=mask).logits).abs().max()) < RELATIVE * float(logits.abs().max())
    assert_both_ways(theirs, tmp_path, ["logits"], [({"input_ids": padded_ids(3, 9)[0][:1]}, None)])


def test_the_chooser_both_ways(tmp_path):
    theirs = saved("OpenAIGPTDoubleHeadsModel", config(), tmp_path / "theirs")
    ids, mask = padded_ids(2, 3, 9)
    last = mask.sum(-1) - 1

    def same(ours, theirs):
        with torch.no_grad():
            found, expected = ours(ids, mask), theirs(ids, attention_mask=mask.flatten(0, 1), mc_token_ids=last)
            written = ours.head(found.last_hidden_state).view_as(expected.logits)
        places = mask.bool()
        for a, b in ((found.logits, expected.mc_logits), (written[places], expected.logits[places])):
            assert a.shape == b.shape and float((a - b).abs().max()) < RELATIVE * float(b.abs().max())

    ours = polymodal.load(tmp_path / "theirs")
    same(ours, theirs)
    noise(ours, seed=5)
    polymodal.save(ours, tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    same(ours, again.eval())
    same(polymodal.load(tmp_path / "ours"), again)
    mine, yours = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("ours", "theirs"))
    assert {k: v for k, v in yours.items() if k not in ("id2label", "label2id")}.items() <= {**mine, "dtype": yours["dtype"]}.items()


# ---------------------------------------------------------------------------------------------------- L3


def sequences(batch) -> Iterator[torch.Tensor]:
    yield from batch.input_ids[0].split(list(batch.lengths))


def independent(task, theirs, batch, weight):
    """L3 by transformers' networks on one sequence at a time, in fp64."""
    trunk, table = theirs.transformer, theirs.transformer.tokens_embed.weight
    states = [trunk(ids[None]).last_hidden_state[0] for ids in sequences(batch)]
    language = [F.cross_entropy(h[:-1] @ table.T, ids[1:]) for h, ids in zip(states, sequences(batch), strict=True)]
    if task == "choice":
        summary = theirs.multiple_choice_head.summary
        scores = torch.cat([summary(h[-1]) for h in states]).split(batch.choices)
        loss = torch.stack([F.cross_entropy(row[None], label[None]) for row, label in zip(scores, batch.labels)]).mean()
        parts = iter(language)
        language = [torch.stack([next(parts) for _ in range(count)]).mean() for count in batch.choices]
    else:
        logits = theirs.score(torch.stack([h[-1] for h in states]))
        loss = F.mse_loss(logits[:, 0], batch.scores.double()) if task == "score" else F.cross_entropy(logits, batch.labels)
    return loss + weight * torch.stack(language).mean()


@pytest.mark.parametrize(("task", "weight"), [("classify", 0.5), ("score", 0.5), ("choice", 0.5), ("choice", 2.0), ("classify", 0.0)])
def test_the_loss_and_every_gradient_are_those_of_its_parts(task, weight, tok, tmp_path):
    system = built(tok, task, objective={"lm_weight": weight})
    noise(system)
    polymodal.save(system.net, tmp_path)
    architecture = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    theirs = getattr(transformers, architecture).from_pretrained(tmp_path).double().train()
    batch = batch_of(system, TEXTS[task])
    step = system.double().train()(batch)
    assert set(step.terms) == {{"score": "regression", "classify": "classification"}.get(task, task), *(["lm"] if weight else [])}
    assert set(step.terms) <= set(system.measured())
    loss = torch.stack([t.weight * t.total / batch.counts[t.count] for t in step.terms.values()]).sum()
    expected = independent(task, theirs, batch, weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    loss.backward()
    expected.backward()
    nets = family("gpt").nets
    rules = next(net for net in nets if net.architecture == architecture).format("transformers").rules(system.net.config)
    table = Rename("transformer.tokens_embed.weight", "trunk.embed.word.weight")  # the chooser's file has it under its other name
    assert_same_gradients(system.net, theirs, [table if table.ours in r.our_keys else r for r in rules if not isinstance(r, Alias)])


def test_a_weight_below_zero_is_refused(tok):
    with pytest.raises(UserError, match=r"lm_weight is -1\.0, expected 0 or more"):
        built(tok, "classify", objective={"lm_weight": -1.0})


# ----------------------------------------------------------------------------------------------- both orders


def test_pairs_in_both_orders_do_not_depend_on_the_order(tok, tmp_path):
    system = built(tok, "classify", both_orders=True)
    noise(system)
    one, other = ("red cat", "the small dog runs"), ("the small dog runs", "red cat")
    net, objective = system.net, system.objective

    def logits(*texts):
        return system.logits(batch_of(system, [sample(*text, cls="0") for text in texts]))

    with torch.no_grad():
        both = logits(one, other, ("blue", None))
        # the states of each order alone, added
        states = [net.trunk(torch.tensor(objective.frame(*text)[0])[None]).last_hidden_state[0, -1] for text in (one, other)]
        torch.testing.assert_close(both[0], net.classifier(states[0] + states[1]))
        torch.testing.assert_close(both[0], both[1])
        alone = net.trunk(torch.tensor(objective.frame("blue")[0])[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(both[2], net.classifier(2 * alone))
        # padded rows are the packed ones
        batch = batch_of(system, [sample(*text, cls="0") for text in (one, ("blue", None), ("dog", "cat"))])
        ids, mask = (rows_of(x, batch.lengths, 0) for x in (batch.input_ids[0], torch.ones_like(batch.input_ids[0])))
        torch.testing.assert_close(net(ids, mask).logits, logits(one, ("blue", None), ("dog", "cat")))
    polymodal.save(net, tmp_path)
    again = polymodal.load(tmp_path)
    assert again.config == net.config and again.config.both_orders and json.loads((tmp_path / "config.json").read_text())[
        "model_type"] == "polymodal-gpt"
    with pytest.raises(UserError, match="cannot hold this network, which has pairs in both orders"):
        polymodal.save(net, tmp_path, format="transformers")


def test_the_language_model_reads_both_orders(tok):
    system = built(tok, "classify", both_orders=True).double().eval()
    noise(system)
    one, other = ("red cat", "the small dog runs"), ("the small dog runs", "red cat")
    plain = built(tok, "classify").double().eval()
    plain.net.load_state_dict(system.net.state_dict())
    with torch.no_grad():
        both = system(batch_of(system, [sample(*one, cls="0")])).terms["lm"]
        each = [plain(batch_of(plain, [sample(*text, cls="0")])).terms["lm"].total for text in (one, other)]
    torch.testing.assert_close(both.total, (each[0] + each[1]) / 2)


def test_both_orders_of_choices_are_refused(tok):
    with pytest.raises(UserError, match="both_orders is true, and a text and its choices have one order"):
        built(tok, "choice", both_orders=True)


# ------------------------------------------------------------------------------------------------------ runs


SETTINGS = ["data.global_batch=8", "data.window=16", "log.every=4", "log.tensorboard=false", "precision=32", "accelerator=cpu",
            "checkpoint.every=2", "schedule.warmup=1"]
TINY = ["model.n_embd=32", "model.n_layer=2", "model.n_head=2", "model.n_positions=24"]


@pytest.fixture(scope="module")
def runs(tok, tmp_path_factory):
    """A language model of a few updates, labelled texts, and a run that was fine-tuned from it, stopped and continued."""
    root = tmp_path_factory.mktemp("gpt")
    tok.save(root / "tok")
    rng = np.random.default_rng(0)
    rows = [{"text": f"the {a} {b} {c}", "label": c} for a, b, c in zip(
        rng.choice(["red", "green", "blue"], 48), rng.choice(["cat", "dog"], 48), rng.choice(["runs", "sleeps"], 48))]
    for name, part in (("train", rows[:40]), ("held", rows[40:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        labelled = PackSettings(Reading(label_field="label", classes=("runs", "sleeps")))
        pack(root / f"{name}.jsonl", root / name, labelled, workers=Workers(1))
    (root / "raw.txt").write_text("\n".join(row["text"] for row in rows))
    pack(root / "raw.txt", root / "raw", PackSettings(Reading(split="line")), workers=Workers(1))
    pretrain(recipe("gpt-tiny", [*SETTINGS, *TINY, "max_updates=2"]), root / "raw", root / "lm", tokenizer=root / "tok", console=QUIET)
    return root


class Listener(Console):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def finetune(runs, out, *overrides, model="lm", **options):
    listener = Listener()
    pretrain(recipe("gpt-classify", [*SETTINGS, "max_updates=4", "optim.lr=0.01", *overrides]), runs / "train", out,
             model=runs / model if model else None, eval_data=runs / "held", console=listener, **options)
    return listener.lines


def test_a_language_model_gets_three_rows_more_and_a_run_goes_on_exactly(runs, tok, tmp_path):
    said = finetune(runs, tmp_path / "run", "checkpoint.keep_last=5")
    rows, width = polymodal.load(runs / "lm").trunk.embed.word.weight.shape
    assert f"fitted to this network: trunk.embed.word.weight [{rows}, {width}] -> [{rows + 3}, {width}]" in said
    assert "randomly initialized: classifier (1 tensor)" in said
    begun, net = Run(tmp_path / "run"), polymodal.load(tmp_path / "run")
    assert begun.tokenizer().vocab_size == len(tok) + 3 == net.config.vocab_size
    assert {"classification", "lm", "accuracy"} <= set(begun.metrics("eval")[-1])
    # the same from a checkpoint, with no model named
    finetune(runs, tmp_path / "again", "max_updates=2")
    finetune(runs, tmp_path / "again")
    for a, b in zip(net.state_dict().values(), polymodal.load(tmp_path / "again").state_dict().values(), strict=True):
        assert torch.equal(a, b)
    # in use, and as a start: it has the rows already
    by = text_classifier(net, str(tmp_path / "run"), None, [])
    ((best, *_),) = classify_texts(by, [("the red cat runs", None)], top=2, batch_size=4, console=QUIET)
    assert best[0] in ("runs", "sleeps")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "export")
    assert theirs.config.id2label == {0: "runs", 1: "sleeps"}
    ids = torch.tensor([begun.tokenizer().encode("the red cat runs")])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, net(ids).logits, rtol=1e-5, atol=1e-6)
    said = finetune(runs, tmp_path / "third", "max_updates=1", model=str(tmp_path / "run"))
    assert not any("randomly" in line for line in said)


def test_rows_of_a_model_are_kept(runs, tmp_path):
    finetune(runs, tmp_path / "run", "max_updates=1", "optim.lr=1e-12", "optim.weight_decay=0")
    before, after = (polymodal.load(p).trunk.embed.word.weight for p in (runs / "lm", tmp_path / "run"))
    torch.testing.assert_close(after[:len(before)], before, atol=1e-8, rtol=1e-6)
    assert len(after) == len(before) + 3 and after[len(before):].abs().min().item() > 0


def test_a_smaller_table_is_still_refused(runs, tmp_path):
    with pytest.raises(UserError, match=r"trunk\.embed\.position\.weight is \[24, 32\], this run needs \[48, 32\]"):
        finetune(runs, tmp_path / "run", "model.n_positions=48")
