"""`polymodal translate` and the evaluation of translations: languages, pieces, scores, and what is refused."""

import json

import polymodal
import pytest
import sacrebleu
from contract.cases import tokenizer as vocabulary
from parity import noise
from polymodal.pipelines import cli
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.evaluation.scores import text_scores
from polymodal.pipelines.inference.pieces import Pieces
from polymodal.pipelines.inference.trained import Trained, trained
from polymodal.pipelines.inference.translate import in_languages, translations
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.errors import UserError

SMALL = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
         "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 48}
TEXTS = ["water flows past stone bridge.", "the old rose grows near apple hedge."]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A directory with languages, one without, and a decoder."""
    root, tok = tmp_path_factory.mktemp("models"), vocabulary("albert")
    for name, options in (("mass", {"languages": ("old", "new")}), ("bart", {})):
        net = noise(polymodal.system(name, size="tiny", tokenizer=tok, **SMALL, **options).net, scale=1.0)
        polymodal.save(net, root / name, tokenizer=tok)
    decoder = vocabulary("gpt2")
    polymodal.save(polymodal.system("gpt2", size="tiny", tokenizer=decoder, n_embd=16, n_layer=1).net, root / "gpt2", tokenizer=decoder)
    return root


def last_json(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_texts_go_between_the_languages_and_long_ones_in_pieces(models):
    model, tok = polymodal.load(models / "mass"), polymodal.tokenizer(models / "mass")
    given = {"max_new_tokens": 6, "no_repeat_ngram_size": 1}
    old_new, old_old = ({"source_language": "old", "target_language": name} for name in ("new", "old"))
    found = translations(model, TEXTS, tok, **old_new, **given)
    expected = polymodal.generate(model.between("old", "new"), TEXTS, tokenizer=tok, num_beams=4, length_penalty=0.6, **given)
    assert found == [text.strip() for text in expected] and all(found)
    assert translations(model, TEXTS, tok, **old_old, **given) != found
    whole, limit = " ".join(TEXTS), max(len(tok.encode(text)) for text in TEXTS) + 4
    parts = Pieces(tok, limit).cut(whole)
    assert len(parts) > 1
    assert translations(model, [whole], tok, max_length=limit, **old_new, **given) == [" ".join(translations(model, parts, tok, **old_new,
                                                                                                             **given))]


def test_what_a_run_was_trained_with_is_the_default(models, tmp_path, monkeypatch):
    model = polymodal.load(models / "mass")
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / "system.json").write_text(json.dumps({"objective": {"source_language": "new", "target_language": "old", "max_target_length": 9,
                                                               "label_smoothing": 0.1}}))
    object.__setattr__(model.origin, "directory", run / "export")
    assert trained(model) == Trained(source_language="new", target_language="old", max_target_length=9)
    assert in_languages(model, "", "").target_language.tolist() == [[0]]
    assert in_languages(model, "", "new").target_language.tolist() == [[1]]


def test_the_command_reads_lines_and_scores(models, tmp_path, capsys):
    (tmp_path / "old.txt").write_text("\n".join(TEXTS))
    (tmp_path / "new.txt").write_text("the river\nthe garden\n")
    arguments = ["translate", str(tmp_path / "old.txt"), "--model", str(models / "mass"), "--source-language", "old",
                 "--target-language", "new", "--num-beams", "1", "--max-new-tokens", "5"]
    assert cli.run([*arguments, "--reference", str(tmp_path / "new.txt"), "--json"]) == 0
    record = last_json(capsys)
    assert [r["text"] for r in record["results"]] == TEXTS and set(record["scores"]) == {"bleu", "chrf"}
    written = [r["translation"] for r in record["results"]]
    assert cli.run(arguments) == 0
    assert capsys.readouterr().out.rstrip("\n").split("\n") == "\n".join(written).split("\n")
    assert cli.run(["translate", TEXTS[0], "--model", str(models / "bart"), "--max-new-tokens", "3", "--json"]) == 0
    assert len(last_json(capsys)["results"]) == 1


def test_an_evaluation_writes_in_the_language_that_is_asked_for(models, tmp_path, capsys):
    rows = [{"text": text, "target": target} for text, target in zip(TEXTS, ("the river", "the garden"))]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(tmp_path / "pairs.jsonl", tmp_path / "data", PackSettings(Reading(target_field="target")), workers=Workers(1))
    arguments = ["evaluate", "generate", "--model", str(models / "mass"), "--data", str(tmp_path / "data"), "--max-new-tokens", "5",
                 "--predictions", str(tmp_path / "texts.jsonl"), "--json"]
    assert cli.run([*arguments, "--source-language", "old", "--target-language", "new"]) == 0
    assert {"bleu", "chrf"} <= set(last_json(capsys)["metrics"])
    written = {r["text"]: r["prediction"] for r in map(json.loads, (tmp_path / "texts.jsonl").read_text().splitlines())}
    model, tok = polymodal.load(models / "mass"), polymodal.tokenizer(models / "mass")
    expected = translations(model, TEXTS, tok, source_language="old", target_language="new", max_new_tokens=5, num_beams=1)
    assert [written[text] for text in TEXTS] == [text.strip() for text in expected]
    assert cli.run([*arguments, "--force"]) == 2
    assert "say which one the text is in" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "arguments", "said"), [
    ("mass", [], "the model has the languages old, new: say which one the text is in"),
    ("mass", ["--source-language", "old", "--target-language", "greek"], "the language is 'greek', expected one of old, new"),
    ("bart", ["--target-language", "new"], "this model has no languages"),
    ("gpt2", [], "writes no text beside another one"),
    ("bart", ["--prefix", "water " * 60], "which the prefix"),
    ("bart", ["--reference", "absent.txt"], "absent.txt"),
    ("bart", ["--num-beams", "1", "--length-penalty", "2"], "length_penalty is of beams"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(models, model, arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["translate", "water flows", "--model", str(models / model), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_pairs_without_a_target_are_refused(models, tmp_path, capsys):
    (tmp_path / "alone.jsonl").write_text('{"text": "water flows"}\n' * 4)
    pack(tmp_path / "alone.jsonl", tmp_path / "data", PackSettings(), workers=Workers(1))
    settings = {"objective.source_language": "old", "objective.target_language": "new", "objective.max_length": 40,
                "objective.max_target_length": 20, "evaluate.every": 0, "checkpoint.keep_best": "false"}
    assert cli.run(["finetune", "mass-text2text-tiny", "--model", str(models / "mass"), "--data", str(tmp_path / "data"), "--max-updates",
                    "1", "--out", str(tmp_path / "run"), *(word for k, v in settings.items() for word in ("--set", f"{k}={v}"))]) == 2
    assert "no target text" in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_empty_text_is_refused(models):
    model, tok = polymodal.load(models / "bart"), polymodal.tokenizer(models / "bart")
    with pytest.raises(UserError, match="text 2 of 2 is empty"):
        translations(model, ["water", " "], tok)


def test_bleu_and_chrf_are_sacrebleus():
    written, wanted = ["the cat sat on the mat today", "a dog"], ["the cat sat on the mat", "the dog ran"]
    scores = text_scores(written, wanted)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, [wanted], smooth_method="none").score / 100)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, [wanted]).score / 100)
