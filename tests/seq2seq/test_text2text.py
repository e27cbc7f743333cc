"""Fine-tuning T5 from text to text: examples, losses, and a run that learns two tasks by their prefixes."""

from __future__ import annotations

import json

import numpy as np
import polymodal
import pytest
import torch
import transformers
from contract.cases import tokenizer as vocabulary
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.model.export import export_system
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.seq2seq.teacher_forcing import padded, smoothed_sum
from polymodal.seq2seq.text2text import Text2TextObjective, Text2TextSettings
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer

COUNT = [f"word{i}" for i in range(12)]
SMALL = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["next: previous: " + " ".join(COUNT)] * 9, "word", 127, style=STYLES["t5"])


def sample(text, target, **json_fields):
    fields = {"txt": text.encode(), "target.txt": target.encode()}
    return Sample("k", fields | ({"json": json.dumps(json_fields).encode()} if json_fields else {}))


def made(objective, *samples):
    return [e for s in samples for e in objective.example(s, np.random.default_rng(0))]


def test_prefix_text_and_target_end_with_the_end_token(tokenizer):
    objective = Text2TextObjective(tokenizer, Text2TextSettings(prefix="next: ", max_length=6, max_target_length=3), 0)
    own, shared = made(objective, sample("word1 word2", "word3", prefix="previous: "), sample("word1 " * 9, "word3 " * 9))

    def tokens(ids):
        return [tokenizer.id_to_token(int(i)) for i in ids]

    assert tokens(own.input_ids) == tokens([*tokenizer.encode("previous: word1 word2", add_special_tokens=False), tokenizer.eos_id])
    assert tokens(own.labels) == tokens([*tokenizer.encode("word3", add_special_tokens=False), tokenizer.eos_id])
    assert (len(shared.input_ids), len(shared.labels)) == (6, 3)
    assert shared.input_ids[-1] == shared.labels[-1] == tokenizer.eos_id
    assert tokens(shared.input_ids)[:1] == tokens(tokenizer.encode("next: ", add_special_tokens=False))[:1]
    with pytest.raises(BadSample, match="no target text"):
        made(objective, Sample("k", {"txt": b"word1"}))
    with pytest.raises(BadSample, match="prefix is 3"):
        made(objective, sample("word1", "word2", prefix=3))
    with pytest.raises(UserError, match="max_target_length is 1, expected at least 2"):
        Text2TextSettings(max_target_length=1)


def test_texts_are_no_longer_than_the_positions():
    tok, small = vocabulary("roberta"), {"max_position_embeddings": 24, "d_model": 16}
    for name in ("bart", "mass"):
        system = polymodal.system(name, size="tiny", task="text2text", tokenizer=tok, **small)
        (long,) = made(system.objective, sample("water flows " * 40, "old rose " * 40))
        assert len(long.input_ids) == 24 and len(long.labels) <= 24
        assert system(system.objective.collate([long])).terms["lm"].total.isfinite()
        with pytest.raises(UserError, match=r"objective.max_target_length is 25, the model has 24 positions"):
            polymodal.system(name, size="tiny", task="text2text", tokenizer=tok, objective={"max_target_length": 25}, **small)


def test_smoothing_is_torchs_and_evaluation_has_none():
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 11, dtype=torch.float64), torch.randint(11, (7,))
    expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(smoothed_sum(logits, targets, 0.1), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_transformers(tokenizer, tmp_path, smoothing):
    torch.manual_seed(0)
    system = polymodal.system("t5", size="tiny", task="text2text", tokenizer=tokenizer, objective={"label_smoothing": smoothing},
                              dropout_rate=0.0, **SMALL)
    batch = system.objective.collate(made(system.objective, sample("word1 word2", "word3"), sample("word4", "word5 word6 word7")))
    export_system(system, tmp_path / "out", tokenizer)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    labels = torch.nn.utils.rnn.pad_sequence(batch.targets.split(batch.decoder_lengths), batch_first=True, padding_value=-100)
    ids, mask = padded(batch.input_ids, batch.lengths, tokenizer.pad_id)
    logits = theirs(input_ids=ids, attention_mask=mask.long(), labels=labels).logits
    for training in (True, False):
        step = system.train(training)(batch)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum",
                                                     label_smoothing=smoothing if training else 0.0)
        torch.testing.assert_close(step.terms["lm"].total, expected, rtol=1e-5, atol=1e-5)
    assert batch.counts == {"targets": 6}


@pytest.mark.parametrize(("name", "style"), [("t5", "t5"), ("bart", "roberta"), ("mass", "roberta")])
def test_every_pretraining_loss_can_be_smoothed(name, style):
    tok = vocabulary(style)
    system = polymodal.system(name, size="tiny", tokenizer=tok, objective={"label_smoothing": 0.1}).eval()
    batch = system.objective.collate(list(system.objective.example(Sample("a", {"txt": b"water flows past stone bridge"}),
                                                                   np.random.default_rng(0))))
    logits = system.net.head(system.states(batch))
    for smoothing in (0.0, 0.1):  # an evaluation has none
        system.training = bool(smoothing)  # of the system alone: no dropout
        expected = torch.nn.functional.cross_entropy(logits, batch.targets, label_smoothing=smoothing, reduction="sum")
        torch.testing.assert_close(system(batch).terms["lm"].total, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="label_smoothing is 1"):
        polymodal.system(name, size="tiny", tokenizer=tok, objective={"label_smoothing": 1.0})


def test_the_loss_of_a_batch_is_the_sum_of_its_parts(tokenizer):
    torch.manual_seed(0)
    system = polymodal.system("t5", size="tiny", task="text2text", tokenizer=tokenizer, objective={"label_smoothing": 0.1},
                              dropout_rate=0.0, **SMALL).double().train()
    examples = made(system.objective, sample("word1 word2", "word3"), sample("word4", "word5 word6 word7"), sample("word8 " * 7, "word9"))
    whole, *parts = (system(system.objective.collate(e)).terms["lm"].total.item() for e in (examples, examples[:1], examples[1:]))
    assert whole == pytest.approx(sum(parts), rel=1e-9)


def test_a_mixture_of_two_tasks_is_told_apart_by_its_prefixes(tokenizer, tmp_path):
    """The same texts with two prefixes: the word that follows, and the one before."""
    rows = {name: [{"text": f"{name}: {word}", "out": COUNT[(i + step) % 12]} for i, word in enumerate(COUNT)]
            for name, step in (("next", 1), ("previous", -1))}
    tokenizer.save(tmp_path / "tok")
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        pack(tmp_path / f"{name}.jsonl", tmp_path / name, PackSettings(Reading(target_field="out")), workers=Workers(1))
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(line) + "\n" for lines in rows.values() for line in lines[::-1]))
    pack(tmp_path / "both.jsonl", tmp_path / "both", PackSettings(Reading(target_field="out")), workers=Workers(1))
    chosen = recipe("t5-text2text-tiny", [
        *(f"model.{k}={v}" for k, v in SMALL.items()), "objective.max_length=12", "objective.max_target_length=6", "data.global_batch=24",
        "optim.name=adamw", "optim.lr=0.01", "max_updates=120", "evaluate.every=60", "evaluate.previews=2", "checkpoint.every=0",
        "log.every=60", "log.tensorboard=false",
    ])
    result = pretrain(chosen, [(tmp_path / "next", 1.0), (tmp_path / "previous", 1.0)], tmp_path / "run", eval_data=tmp_path / "both",
                      tokenizer=tmp_path / "tok")
    assert result["eval"]["accuracy"] > 0.95, result["eval"]
    model, tok = polymodal.load(tmp_path / "run"), polymodal.tokenizer(tmp_path / "run")
    assert polymodal.generate(model, ["next: word3", "previous: word3"], tokenizer=tok, max_new_tokens=4) == ["word4", "word2"]
    previews = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {caption for p in previews for caption, _ in p["rows"]} == {"text", "target", "written"}
