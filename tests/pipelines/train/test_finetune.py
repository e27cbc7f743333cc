"""Runs that start from a trained network: what is copied, what is fresh, what is refused; early stopping; resuming."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import polymodal
import processes
import pytest
import torch
import transformers
from PIL import Image
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.model.export import export
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer

COLOURS, ANIMALS, VERBS = ("red", "green", "blue"), ("cat", "dog", "cow", "hen"), ("runs", "sleeps", "eats")
SMALL = ["model.hidden_size=16", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.intermediate_size=32",
         "model.max_position_embeddings=24"]
SHORT = ["data.global_batch=8", "data.window=16", "max_updates=24", "log.every=4", "log.tensorboard=false", "evaluate.every=6",
         "checkpoint.every=5", "precision=32", "accelerator=cpu", "schedule.warmup=2", "objective.max_length=24"]
TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")


def sentences(count, seed):
    rng = np.random.default_rng(seed)
    verbs = rng.choice(VERBS, size=count, p=(0.2, 0.6, 0.2))
    return [(f"the {rng.choice(COLOURS)} {rng.choice(ANIMALS)} {verb} and the {rng.choice(ANIMALS)}", verb) for verb in verbs]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Labelled texts (the verb tells the class, six in ten are of one), raw text, a tokenizer."""
    root = tmp_path_factory.mktemp("labelled")
    tokenizer = Tokenizer.train([" ".join((*COLOURS, *ANIMALS, *VERBS, "the and"))] * 9, "word", 17, style=STYLES["bert"])
    tokenizer.save(root / "tok")
    for name, count in (("train", 120), ("held", 40)):
        rows = sentences(count, len(name))
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in rows))
        pack(root / f"{name}.jsonl", root / name, PackSettings(Reading(label_field="label", classes=tuple(VERBS))), workers=Workers(1))
    (root / "raw.txt").write_text("\n".join(t for t, _ in sentences(80, 9)))
    pack(root / "raw.txt", root / "raw", PackSettings(Reading(split="line")), workers=Workers(1))
    return SimpleNamespace(train=root / "train", held=root / "held", raw=root / "raw", tok=root / "tok", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    """Short pretraining runs of BERT and ELECTRA."""
    root = tmp_path_factory.mktemp("pretrained")
    for name, more in (("bert", ["objective.nsp=false"]), ("electra", ["model.embedding_size=16", "objective.generator_hidden_size=1.0"])):
        pretrain(recipe(f"{name}-tiny", [*SMALL, *SHORT, *more, "max_updates=6"]), data.raw, root / name, tokenizer=data.tok)
    return root


def finetune(data, out, model, *overrides, base="bert-classify-tiny", **options):
    console = Listener()
    given = {"eval_data": data.held, "tokenizer": data.tok if model is None else None} | options
    result = pretrain(recipe(base, [*SHORT, *overrides]), data.train, out, model=model, console=console, **given)
    return result, console.lines


class Listener(Console):
    """Keeps what is said."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def rows(run):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in open_run(run).metrics()]


# --- what is copied


def test_a_bert_without_pooler_gives_its_trunk(data, pretrained, tmp_path):
    """One update at a rate of nearly nothing leaves what was taken."""
    result, said = finetune(data, tmp_path / "run", pretrained / "bert", "max_updates=1", "optim.lr=1e-12")
    source, net = polymodal.load(pretrained / "bert").state_dict(), polymodal.load(tmp_path / "run").state_dict()
    trunk = [key for key in net if key.startswith("trunk.") and "pooler" not in key]
    assert len(trunk) > 20
    for key in trunk:
        torch.testing.assert_close(net[key], source[key], atol=1e-9, rtol=1e-6)
    told = "\n".join(said)
    assert f"loaded {len(trunk)} tensors (" in told
    assert "randomly initialized: trunk.pooler (2 tensors), classifier (2 tensors)" in told and "not used: head (5 tensors)" in told
    assert result["updates"] == 1
    config = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2 and config["hidden_size"] == 16, "the size is the model's, not the recipe's"


def test_a_head_is_taken_where_it_has_the_same_classes_and_is_fresh_where_it_has_others(data, pretrained, tmp_path):
    finetune(data, tmp_path / "first", pretrained / "bert", "max_updates=2")
    _, said = finetune(data, tmp_path / "again", tmp_path / "first", dry_run=True)
    assert not any("randomly" in line for line in said) and any("loaded" in line for line in said)
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({"text": t, "label": v == "runs"}) + "\n" for t, v in sentences(20, 1)))
    pack(tmp_path / "two.jsonl", tmp_path / "two", PackSettings(Reading(label_field="label"), holdout=4, holdout_out=tmp_path / "two-held"),
         workers=Workers(1))
    console = Listener()
    pretrain(recipe("bert-classify-tiny", SHORT), tmp_path / "two", tmp_path / "other", model=tmp_path / "first", console=console,
             dry_run=True, eval_data=tmp_path / "two-held")
    assert "randomly initialized: classifier (2 tensors)" in console.lines and "not used: classifier (2 tensors)" in console.lines


def test_a_directory_of_transformers_with_the_bare_trunk_is_a_start(data, tmp_path):
    torch.manual_seed(0)
    theirs = transformers.BertModel(transformers.BertConfig(
        vocab_size=17, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, max_position_embeddings=24))
    theirs.save_pretrained(tmp_path / "theirs")
    data.tokenizer.save(tmp_path / "theirs")
    _, said = finetune(data, tmp_path / "run", tmp_path / "theirs", "max_updates=1", "optim.lr=1e-12")
    assert "randomly initialized: classifier (2 tensors)" in said
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "run" / "export")
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(again.bert.state_dict()[name], tensor, atol=1e-9, rtol=1e-6)


def test_electras_discriminator_head_is_no_classification_head(data, pretrained, tmp_path):
    """Both have a layer `head.dense` of one shape, and it means different things."""
    _, said = finetune(data, tmp_path / "run", pretrained / "electra", base="electra-classify-tiny", dry_run=True)
    assert "randomly initialized: head (4 tensors)" in said and "not used: head (4 tensors)" in said


def test_pretraining_goes_on_with_every_network_of_a_run(data, pretrained, tmp_path):
    console = Listener()
    chosen = recipe("electra-tiny", [*SMALL, *SHORT, "model.embedding_size=16", "objective.generator_hidden_size=1.0", "max_updates=1",
                                     "optim.lr=1e-12"])
    pretrain(chosen, data.raw, tmp_path / "run", model=pretrained / "electra", console=console)
    assert not any("randomly" in line for line in console.lines)
    for place in ("", "generator"):
        before, after = (polymodal.load(root / "export" / place) for root in (pretrained / "electra", tmp_path / "run"))
        for (name, old), new in zip(before.state_dict().items(), after.state_dict().values()):
            torch.testing.assert_close(new, old, atol=1e-9, rtol=1e-6, msg=name)


def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(data, pretrained, tmp_path):
    with pytest.raises(UserError, match=r"do not fit this network: trunk.stack.blocks.2.*is missing.*leave overrides of model"):
        finetune(data, tmp_path / "run", pretrained / "bert", "model.num_hidden_layers=3")
    with pytest.raises(UserError, match=r"trunk.embed.position.weight is \[24, 16\], this run needs \[30, 16\]"):
        finetune(data, tmp_path / "run", pretrained / "bert", "model.max_position_embeddings=30")
    with pytest.raises(UserError, match=r"holds a BertForMaskedLM \(bert\), recipe electra-classify-tiny trains electra"):
        finetune(data, tmp_path / "run", pretrained / "bert", base="electra-classify-tiny")
    with pytest.raises(UserError, match="there is no model directory"):
        finetune(data, tmp_path / "run", tmp_path / "nowhere.d" / "x" / "y")
    with pytest.raises(UserError, match="needs classes and the data set names none"):
        pretrain(recipe("bert-classify-tiny", SHORT), data.raw, tmp_path / "run", model=pretrained / "bert",
                 console=Listener())
    assert not (tmp_path / "run").exists()


def test_dropout_may_be_overridden(data, pretrained, tmp_path):
    finetune(data, tmp_path / "run", pretrained / "bert", "max_updates=1", "model.hidden_dropout_prob=0.3")
    assert json.loads((tmp_path / "run" / "export" / "config.json").read_text())["hidden_dropout_prob"] == 0.3


# --- what is learnt


def test_accuracy_rises_above_the_majority_class(data, tmp_path):
    result, _ = finetune(data, tmp_path / "run", None, *SMALL, "model.hidden_size=32", "model.hidden_dropout_prob=0.0", "optim.lr=0.01",
                         "optim.layer_decay=1.0", "data.global_batch=32", "max_updates=90", "evaluate.every=45")
    truth = [json.loads(line)["label"] for line in (data.held.parent / "held.jsonl").read_text().splitlines()]
    majority = max(truth.count(verb) for verb in VERBS) / len(truth)
    assert result["eval"]["accuracy"] > 0.9 > majority + 0.2, (result["eval"], majority)
    assert result["eval"]["macro_f1"] > 0.85


@pytest.mark.parametrize(("count", "layout"), [(1, ["data.micro_batch=2"]), (2, ["devices=2", "strategy=ddp"])])
def test_the_curve_is_the_same_in_any_layout(data, pretrained, tmp_path, count, layout):
    """Accumulated, and on two ranks: one global batch."""
    fixed = ["max_updates=8", "model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0", "optim.lr=0.01"]
    finetune(data, tmp_path / "whole", pretrained / "bert", *fixed)
    sets = [part for o in (*SHORT, *fixed, *layout) for part in ("--set", o)]
    words = ["bert-classify-tiny", "--model", pretrained / "bert", "--data", data.train, "--eval-data", data.held]
    processes.together(processes.ranks(count, "finetune", *words, "--out", tmp_path / "parts", *sets))
    for whole, parts in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert whole.pop("split") == parts.pop("split")
        assert whole == pytest.approx(parts, rel=1e-4, abs=1e-6)


def test_frozen_parts_keep_their_weights_and_the_rest_moves(data, pretrained, tmp_path):
    _, said = finetune(data, tmp_path / "run", pretrained / "bert", "max_updates=3", "optim.lr=0.01",
                       "optim.freeze=[embed, 'layers:1']", "optim.weight_decay=0.1")
    before, after = polymodal.load(pretrained / "bert").state_dict(), polymodal.load(tmp_path / "run").state_dict()
    same = {key for key in before if key in after and torch.equal(before[key], after[key])}
    expected = {key for key in after if key.startswith(("trunk.embed.", "trunk.stack.blocks.0."))}
    assert same == expected
    assert any(line.startswith("frozen (embed, layers:1): ") for line in said)


def test_frozen_layers_over_a_first_token_that_was_never_trained_are_told(data, pretrained, tmp_path):
    """A BERT without next sentences has no summary in [CLS]: 0.557, the majority, where the mean of its tokens gave 0.685."""
    def notes(model, layers, **more):
        _, said = finetune(data, tmp_path / "none", model, f"optim.freeze=[embed, 'layers:{layers}']", dry_run=True, **more)
        return [line for line in said if line.startswith("note: all layers are frozen")]

    (note,) = notes(pretrained / "bert", 2)
    assert str(pretrained / "bert") in note and "features-base" in note
    assert not notes(pretrained / "bert", 1)
    net = polymodal.system("bert", size="tiny", tokenizer=data.tokenizer, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=32, max_position_embeddings=24).net
    polymodal.save(net, tmp_path / "paired", tokenizer=data.tokenizer)  # with next sentences, and so with a pooler
    assert not notes(tmp_path / "paired", 2)


# --- when it ends


def test_a_run_ends_when_it_no_longer_gets_better_and_exports_its_best(data, pretrained, tmp_path):
    """The rate is far too high, so the first evaluation is the best."""
    result, said = finetune(data, tmp_path / "run", pretrained / "bert", "max_updates=200", "optim.lr=0.5", "schedule.name=constant",
                            "evaluate.every=3", "evaluate.monitor=loss", "evaluate.patience=3", "optim.clip=null", "checkpoint.keep_last=1",
                            "checkpoint.every=2")
    losses = [row["loss"] for row in open_run(tmp_path / "run").metrics("eval")]
    best = int(np.argmin(losses))
    assert result["ending"] == "no progress" and result["updates"] == 3 * (best + 4) < 200 and len(losses) == best + 4
    kept = [c.update for c in checkpoint.all_checkpoints(tmp_path / "run" / "checkpoints")]
    assert kept == [3 * (best + 1), result["updates"]]
    exported, at_best = polymodal.load(tmp_path / "run"), open_run(tmp_path / "run").system().net
    at_end = open_run(tmp_path / "run").system(checkpoint.newest(tmp_path / "run" / "checkpoints")).net
    assert all(torch.equal(a, b) for a, b in zip(exported.state_dict().values(), at_best.state_dict().values()))
    assert not all(torch.equal(a, b) for a, b in zip(exported.state_dict().values(), at_end.state_dict().values()))
    assert any(f"the best loss was {min(losses):.4f}, after update {3 * (best + 1)}" in line for line in said)
    again, _ = finetune(data, tmp_path / "run", None, "max_updates=200", "optim.lr=0.5", "schedule.name=constant", "evaluate.every=3",
                        "evaluate.monitor=loss", "evaluate.patience=3", "optim.clip=null", "checkpoint.keep_last=1", "checkpoint.every=2",
                        tokenizer=None)
    assert (again["ending"], again["updates"]) == ("no progress", result["updates"]), "a run that has ended stays ended"


@pytest.mark.parametrize("cut", [7, 12])
def test_a_run_that_was_cut_and_resumed_without_its_model_is_the_same(data, pretrained, tmp_path, cut, monkeypatch):
    settings = ["optim.lr=0.01", "evaluate.every=3", "evaluate.patience=4", "evaluate.min_delta=0.03", "max_updates=40"]
    whole, _ = finetune(data, tmp_path / "whole", pretrained / "bert", *settings)
    assert whole["ending"] == "no progress" and whole["updates"] > 12, "the cut must lie inside the run"

    from polymodal.pipelines.train import loop

    count = iter(range(1000))

    def broken(*_):
        if next(count) == cut:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("polymodal.text.classify.ClassifySystem.after_update", broken)
        with pytest.raises(KeyboardInterrupt):
            finetune(data, tmp_path / "cut", pretrained / "bert", *settings)
    assert loop.checkpoint.all_checkpoints(tmp_path / "cut" / "checkpoints")
    resumed, _ = finetune(data, tmp_path / "cut", None, *settings, tokenizer=None)
    assert (resumed["ending"], resumed["updates"]) == (whole["ending"], whole["updates"])
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    ours, theirs = (polymodal.load(tmp_path / name).state_dict() for name in ("cut", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_that_ended_before_its_first_checkpoint_still_knows_its_model(data, pretrained, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("polymodal.text.classify.ClassifySystem.after_update", broken)
        with pytest.raises(KeyboardInterrupt):
            finetune(data, tmp_path / "run", pretrained / "bert")
    assert not checkpoint.all_checkpoints(tmp_path / "run" / "checkpoints")
    _, said = finetune(data, tmp_path / "run", None, "max_updates=2", tokenizer=None)
    assert any(line.startswith(f"weights of {pretrained / 'bert'}: ") for line in said)


def test_the_defaults_of_generation_that_a_model_came_with_stay_with_its_runs(data, tmp_path):
    """In the export, in a checkpoint, after a resume, and in a run that goes on from it; a run of its own has none."""
    small = ["model.n_embd=16", "model.n_layer=1", "model.n_head=2", "model.n_positions=24"]
    short = [s for s in SHORT if "max_length" not in s and "max_updates" not in s]
    vocabulary = Tokenizer.train([text for text, _ in sentences(20, 1)], "byte-bpe", 280)
    vocabulary.save(tmp_path / "tok")
    torch.manual_seed(0)
    net = polymodal.system("gpt2", size="tiny", tokenizer=vocabulary, n_embd=16, n_layer=1, n_head=2, n_positions=24).net
    polymodal.save(net, tmp_path / "model", tokenizer=vocabulary)
    said = {"do_sample": True, "top_k": 7, "repetition_penalty": 1.5}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(said))

    def run(out, *more, updates, **options):
        pretrain(recipe("gpt2-tiny", [*small, *short, *more, f"max_updates={updates}"]), data.raw, tmp_path / out, **options)
        path = tmp_path / out / "export/generation_config.json"
        return json.loads(path.read_text()) if path.is_file() else None

    assert run("own", updates=1, tokenizer=tmp_path / "tok") is None and not (tmp_path / "own/start").exists()
    assert run("tuned", updates=1, model=tmp_path / "model") == said
    assert run("tuned", updates=2) == said, "without the model"
    assert run("next", updates=1, continue_from=tmp_path / "tuned") == said
    newest = max((tmp_path / "tuned/checkpoints").iterdir())
    assert polymodal.load(newest).generation_defaults.record == said
    export(newest, tmp_path / "exported")
    assert json.loads((tmp_path / "exported/generation_config.json").read_text()) == said


def test_a_model_of_pictures_gets_a_head_for_other_classes_and_is_told_of_other_preprocessing(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "pictures" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    pack(tmp_path / "pictures", tmp_path / "data", workers=Workers(1))
    net = polymodal.system("vit", size="tiny", classes=("red", "green", "blue"), hidden_size=16, num_attention_heads=2,
                           intermediate_size=16, image_size=16, objective={"image_mean": [0.1, 0.2, 0.3]}).net
    polymodal.save(net, tmp_path / "vit")
    settings = ["data.global_batch=4", "max_updates=1", "log.tensorboard=false", "precision=32"]
    with pytest.raises(UserError, match=r"the model's classes are red, green, blue, the data's are cat, dog: set task=classify"):
        pretrain(recipe("vit-tiny", settings), tmp_path / "data", tmp_path / "run", model=tmp_path / "vit", console=Listener())
    console = Listener()
    pretrain(recipe("vit-tiny", [*settings, "task=classify"]), tmp_path / "data", tmp_path / "run", model=tmp_path / "vit", console=console)
    assert "randomly initialized: head (2 tensors)" in console.lines
    assert any("preprocessor_config.json has image_mean [0.1, 0.2, 0.3] (here [0.5, 0.5, 0.5])" in line for line in console.lines)
    assert polymodal.load(tmp_path / "run").config.labels == ("cat", "dog")


def test_a_run_with_fresh_weights_takes_no_model_later(data, pretrained, tmp_path):
    finetune(data, tmp_path / "run", None, *SMALL, "max_updates=5")
    with pytest.raises(UserError, match="began with randomly initialized weights and cannot go on with those of"):
        finetune(data, tmp_path / "run", pretrained / "bert", *SMALL, "max_updates=9")


def test_mistakes_in_what_is_watched_are_told(data, tmp_path):
    with pytest.raises(UserError, match=r"evaluate.monitor is 'acuracy', which the evaluations of the task classify of bert do not "
                                        "measure: set it to one of loss, classification, .*accuracy"):
        finetune(data, tmp_path / "run", None, *SMALL, "evaluate.monitor=acuracy")
    with pytest.raises(UserError, match=r"give --eval-data and set evaluate.every"):
        finetune(data, tmp_path / "other", None, *SMALL, eval_data=None)


def test_higher_is_better_where_the_name_says_so():
    from polymodal.pipelines.run.recipe import EvaluateSettings
    from polymodal.pipelines.train.best import Best

    def seen(values, **settings):
        best = Best(EvaluateSettings(**settings))
        for update, value in enumerate(values):
            best.see({"update": update, settings["monitor"]: value})
        return best.update, best.waited

    assert seen([0.3, 0.5, 0.4], monitor="accuracy") == (1, 1)
    assert seen([0.3, 0.5, 0.4], monitor="perplexity") == (0, 2)
    assert seen([0.3, 0.5, 0.4], monitor="perplexity", mode="max") == (1, 1)
    assert seen([0.3, float("nan"), 0.29, 0.2], monitor="loss", min_delta=0.05) == (3, 0)
    assert seen([float("nan"), 7.0], monitor="loss") == (1, 0)


# --- from the command line


def test_finetune_and_classify_from_the_command_line(data, pretrained, tmp_path, capsys):
    cli._register()
    sets = [part for o in (*SHORT, "max_updates=4") for part in ("--set", o)]
    assert cli.run(["finetune", "bert-classify-tiny", "--model", str(pretrained / "bert"), "--data", str(data.train), "--eval-data",
                    str(data.held), "--out", str(tmp_path / "run"), *sets]) == 0
    (tmp_path / "texts.jsonl").write_text('{"text": "the red cat runs"}\n{"text": "the hen", "text_pair": "sleeps"}\n')
    (tmp_path / "lines.txt").write_text("the cow eats\nthe dog runs\n")
    capsys.readouterr()
    assert cli.run(["classify", "--model", str(tmp_path / "run"), "the blue cow eats", str(tmp_path / "texts.jsonl"),
                    str(tmp_path / "lines.txt"), "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [r["text"] for r in found["results"]] == ["the blue cow eats", "the red cat runs", "the hen", "the cow eats", "the dog runs"]
    assert found["results"][2]["text_pair"] == "sleeps" and "text_pair" not in found["results"][0]
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "run" / "export").eval()
    a, b = (data.tokenizer.encode(t, add_special_tokens=False) for t in ("the hen", "sleeps"))
    t = data.tokenizer
    ids, types = torch.tensor([[t.cls_id, *a, t.sep_id, *b, t.sep_id]]), torch.tensor([[0] * (len(a) + 2) + [1] * (len(b) + 1)])
    with torch.no_grad():
        scores = theirs(input_ids=ids, token_type_ids=types).logits.softmax(-1)[0]
    for guess in found["results"][2]["predictions"]:
        assert guess["score"] == pytest.approx(scores[theirs.config.label2id[guess["label"]]].item(), abs=1e-5)
    assert cli.run(["classify", "--model", str(tmp_path / "run"), str(tmp_path / "nothing.txt")]) == 2
    assert cli.run(["classify", "--model", str(tmp_path / "run"), "text", "--labels", "a,b"]) == 2
    assert "leave --labels and --template out" in capsys.readouterr().err
    assert cli.run(["finetune", "bert-classify-tiny", "--data", str(data.train), "--out", str(tmp_path / "other")]) == 2
