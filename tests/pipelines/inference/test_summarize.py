"""`polymodal summarize`: cutting, merging, prefixes, and both kinds of models."""

import io
import json
import sys
from itertools import pairwise

import polymodal
import pytest
import torch
from polymodal.pipelines import cli
from polymodal.pipelines.inference.summarize import HINT, summaries, summarize
from polymodal.pipelines.inference.trained import Trained, trained
from polymodal.shared.decoder import ConditionedDecoder, DecoderInfo
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer

LISTED = "alpha beta gamma delta epsilon zeta eta theta iota kappa lam mu nu xi omicron pi rho sigma tau upsilon summarize : ."
WORDS = LISTED.split()


@pytest.fixture(scope="module")
def tok():
    """One token a word, and T5's end behind every text."""
    corpus = [" ".join(WORDS)] * 3 + [w.capitalize() for w in WORDS] * 3
    return Tokenizer.train(corpus, "word", 200, style=STYLES["t5"], split_punctuation=True)


class Copier(torch.nn.Module):
    """An encoder-decoder that writes the first words of what it reads, behind the prefix, and keeps what it read."""

    def __init__(self, tok, skip=0, words=3):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.tok, self.skip, self.words, self.read_texts = tok, skip, words, []

    def decoder_for(self, input_ids, attention_mask=None):
        kept = [row[mask.bool()] for row, mask in zip(input_ids, attention_mask if attention_mask is not None else input_ids.ge(0))]
        self.read_texts += [self.tok.decode(row) for row in kept]
        return Copying(self, [[*row[self.skip:self.skip + self.words].tolist(), self.tok.eos_id] for row in kept])


class Copying(ConditionedDecoder):
    def __init__(self, owner, scripts):
        super().__init__()
        self.owner, self.scripts = owner, scripts
        self.start = torch.full((len(scripts), 1), owner.tok.pad_id)

    @property
    def decoder_info(self):
        return DecoderInfo(max_positions=10_000, num_layers=1, eos_token_id=self.owner.tok.eos_id, pad_token_id=self.owner.tok.pad_id)

    def next_logits(self, input_ids, attention_mask, position_ids, cache):
        copies = len(input_ids) // len(self.scripts)
        cache.advance(input_ids.shape[1])
        at = int(position_ids[0, -1])
        rows = [s[at] if at < len(s) else self.owner.tok.eos_id for s in self.scripts for _ in range(copies)]
        return 20 * torch.nn.functional.one_hot(torch.tensor(rows), self.owner.tok.vocab_size).float()


def text(count, words=7):
    """Sentences of `words` words and a full stop; each begins with a word of its own (in turn)."""
    return " ".join(f"{WORDS[i % 20].capitalize()} {' '.join(WORDS[(i + j) % 20] for j in range(1, words))}." for i in range(count))


def test_a_short_text_is_one_piece(tok):
    model = Copier(tok)
    (found,) = summaries(model, [text(1)], tok, max_length=40, max_new_tokens=8)
    assert found.text == "Alpha beta gamma" and [len(r) for r in found.rounds] == [1]
    assert summarize(model, text(1), tokenizer=tok, max_length=40, max_new_tokens=8) == "Alpha beta gamma"
    assert summarize(model, [text(1)] * 2, tokenizer=tok, max_length=40, max_new_tokens=8) == ["Alpha beta gamma"] * 2


def test_long_texts_are_cut_at_sentences_and_merged(tok):
    model = Copier(tok)
    given = text(10)  # 80 tokens, and a piece has room for 34: four of them, two or three sentences each
    (found,) = summaries(model, [given], tok, max_length=36, max_new_tokens=16)
    pieces = [p.text for p in found.rounds[0]]
    assert " ".join(pieces) == given and all(p.endswith(".") for p in pieces)
    assert [p.count(".") for p in pieces] == [3, 2, 3, 2]
    assert all(len(tok.encode(p)) <= 36 for p in pieces)
    assert found.text == " ".join(" ".join(p.split()[:3]) for p in pieces), "12 words are a summary short enough"
    assert len(found.rounds) == 1


def test_summaries_that_are_too_long_are_summarized_again(tok):
    model = Copier(tok, words=8)
    (found, short) = summaries(model, [text(40), text(1)], tok, max_length=40, max_new_tokens=10)
    assert len(found.rounds) >= 3
    for before, after in pairwise(found.rounds):
        assert len(after) < len(before)
        assert " ".join(p.text for p in after) == " ".join(p.summary for p in before)
    assert len(tok.encode(found.text, add_special_tokens=False)) <= 10 and found.text.startswith("Alpha beta")
    assert len(short.rounds) == 1


def test_a_sentence_without_end_is_cut_within(tok):
    endless = " ".join(WORDS[i % 20] for i in range(200))
    (found,) = summaries(Copier(tok), [endless], tok, max_length=40, max_new_tokens=12)
    pieces = [p.text for p in found.rounds[0]]
    assert " ".join(pieces) == endless and all(len(tok.encode(p)) <= 40 for p in pieces)


def test_the_prefix_stands_before_every_piece(tok):
    model = Copier(tok, skip=2)
    (found,) = summaries(model, [text(10)], tok, prefix="summarize : ", max_length=36, max_new_tokens=14)
    assert model.read_texts and all(t.startswith("summarize :") for t in model.read_texts)
    assert all(len(tok.encode(t)) <= 36 for t in model.read_texts)
    assert found.text.startswith("Alpha beta gamma")


def save_t5(tok, directory, **config):
    torch.manual_seed(0)
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, **config}
    polymodal.save(polymodal.system("t5", size="tiny", tokenizer=tok, **small).net, directory, tokenizer=tok)


def test_what_a_model_was_trained_with_is_found(tok, tmp_path):
    run = tmp_path / "run"
    save_t5(tok, run / "export")
    assert trained(polymodal.load(run / "export")) == Trained()
    (run / "system.json").write_text(json.dumps({"objective": {"prefix": "sum up: ", "max_length": 64, "max_target_length": 12}}))
    assert trained(polymodal.load(run / "export")) == trained(polymodal.load(run)) == Trained("sum up: ", 64, 12)
    save_t5(tok, tmp_path / "plain")
    config = json.loads((tmp_path / "plain/config.json").read_text())
    config["task_specific_params"] = {"summarization": {"prefix": "summarize: ", "num_beams": 4}}
    (tmp_path / "plain/config.json").write_text(json.dumps(config))
    assert trained(polymodal.load(tmp_path / "plain")) == Trained("summarize: ")


def test_a_decoder_gets_a_hint_and_three_sentences_stay(tmp_path):
    tok = Tokenizer.train([text(20), HINT] * 3, "byte-bpe", 300)
    torch.manual_seed(0)
    model = polymodal.system("gpt2", size="tiny", tokenizer=tok, n_embd=16, n_layer=1, n_positions=128).net.eval()
    seen = []
    plain = model.next_logits

    def next_logits(ids, *rest):
        if ids.shape[1] > 1:
            seen.extend(tok.decode(row) for row in ids)
        return plain(ids, *rest)

    object.__setattr__(model, "next_logits", next_logits)
    given = text(12)
    (found,) = summaries(model, [given], tok, max_new_tokens=30)
    assert seen and all(t.endswith(HINT) for t in seen)
    assert len(found.rounds[0]) >= 2 and " ".join(p.text for p in found.rounds[0]) == given
    assert summarize(model, given, tokenizer=tok, max_new_tokens=30) == found.text, "the draws have a seed"
    assert summarize(model, given, tokenizer=tok, max_new_tokens=30, num_beams=2) != found.text
    script = tok.encode(" One. Two. Three. Four.", add_special_tokens=False)
    object.__setattr__(model, "next_logits", lambda ids, mask, at, cache: 50 * torch.nn.functional.one_hot(torch.tensor(
        [script[cache.advance(ids.shape[1]) or min(cache.length - first, len(script) - 1)]] * len(ids)), tok.vocab_size).float())
    first = len(tok.encode(text(1) + HINT, add_special_tokens=False))
    assert summarize(model, text(1), tokenizer=tok, max_new_tokens=len(script)) == "One. Two. Three."


@pytest.mark.parametrize(("given", "options", "message"), [
    ([" \n"], {}, "text 1 of 1 is empty"), ([text(1)], {"max_length": 20, "max_new_tokens": 12}, "max_new_tokens of at most 9"),
    ([text(1)], {"num_return_sequences": 2, "num_beams": 2}, "one text"),
    ([text(1)], {"num_beams": 1, "length_penalty": 2.0}, "length_penalty is of beams")])
def test_mistakes(tok, given, options, message):
    with pytest.raises(UserError, match=message):
        summaries(Copier(tok), given, tok, **options)


def test_other_networks_are_refused(tok):
    with pytest.raises(UserError, match="writes no text"):
        summarize(polymodal.system("bert", size="tiny").net, "a", tokenizer=tok)
    with pytest.raises(UserError, match="for encoder-decoders"):
        summarize(polymodal.system("gpt2", size="tiny").net, "a", tokenizer=tok, prefix="x")


# ------------------------------------------------------------------------------------------ the command


def run(capsys, *arguments):
    code = cli.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command(tok, tmp_path, capsys, monkeypatch):
    directory = tmp_path / "run/export"
    save_t5(tok, directory)
    objective = {"prefix": "summarize : ", "max_length": 40, "max_target_length": 6}
    (tmp_path / "run/system.json").write_text(json.dumps({"objective": objective}))
    (tmp_path / "a.txt").write_text(text(12))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text(2)}) + "\n" + json.dumps({"text": text(1)}) + "\n")
    arguments = ("summarize", "--model", tmp_path / "run", "--max-new-tokens", 6, "--min-new-tokens", 4, "--device", "cpu")
    code, out, err = run(capsys, *arguments, tmp_path / "a.txt", tmp_path / "b.jsonl", text(1), "--json")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert [r["source"] for r in found["results"]] == [str(tmp_path / "a.txt"), *[str(tmp_path / "b.jsonl")] * 2, "text"]
    assert len(found["results"][0]["pieces"]) == 3 and "scores" not in found
    model, vocabulary = polymodal.load(tmp_path / "run"), polymodal.tokenizer(tmp_path / "run")
    want = polymodal.summarize(model, [text(12), text(2), text(1), text(1)], tokenizer=vocabulary, max_new_tokens=6, min_new_tokens=4)
    assert [r["summary"] for r in found["results"]] == want
    assert not any("extra_id" in w for w in want)
    assert run(capsys, *arguments, tmp_path / "a.txt")[1].strip() == want[0].strip()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{text(2)}\n{text(1)}\n".encode()), encoding="utf-8"))
    code, out, _ = run(capsys, *arguments, "-", "--lines", "--json")
    assert [r["summary"] for r in json.loads(out)["results"]] == want[1:3]
    # the right summaries score 1, where there is anything to score
    (tmp_path / "right.txt").write_text("".join(f"{w or 'nothing'}\n" for w in want[1:3]))
    code, out, err = run(capsys, *arguments, tmp_path / "b.jsonl", "--reference", tmp_path / "right.txt", "--json")
    assert code == 0, err
    scores = json.loads(out)["scores"]
    assert set(scores) == {"rouge1", "rouge2", "rougeL", "bleu", "chrf"}
    assert scores["rouge1"] == pytest.approx(sum(bool(w.strip(" .:")) for w in want[1:3]) / 2)
    (tmp_path / "wrong.txt").write_text("one\n")
    for extra, message in ((("--reference", tmp_path / "wrong.txt"), "holds 1 references for 2"), (("--max-new-tokens", 30), "at most"),
                           (("--reference", tmp_path / "none.txt"), "no file")):
        code, out, err = run(capsys, *arguments, tmp_path / "b.jsonl", *extra)
        assert code == 2 and message in err and not out and len(err.strip().splitlines()) == 1, err


@pytest.mark.slow
def test_a_fine_tuned_model_writes_clean_text_and_the_run_knows_its_prefix(tmp_path, capsys):
    """Eight pairs learned by heart: `generate` and `summarize` of the run say what was learned, and nothing else."""
    animals = ["cat", "dog", "fox", "owl", "bee", "ant", "cow", "hen"]
    pairs = [{"text": f"In the long morning the {a} went out. It found the river. It came back home.",
              "summary": f"The {a} went to the river."} for a in animals]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    tok = Tokenizer.train([p[k] for p in pairs for k in p] * 4, "unigram", 138, style=STYLES["t5"], max_length=64)
    save_t5(tok, tmp_path / "model", d_model=32, d_kv=16, d_ff=64, num_heads=2, num_layers=2)
    assert run(capsys, "pack", tmp_path / "pairs.jsonl", "--out", tmp_path / "data", "--target-field", "summary")[0] == 0
    changes = ['objective.prefix="summarize: "', "data.global_batch=8", "max_updates=250", "schedule.warmup=10", "precision=32",
               "checkpoint.keep_best=false"]
    code, _, err = run(capsys, "finetune", "t5-text2text-tiny", "--model", tmp_path / "model", "--data", tmp_path / "data", "--out",
                       tmp_path / "run", *(word for change in changes for word in ("--set", change)))
    assert code == 0, err
    given, want = [p["text"] for p in pairs], [p["summary"] for p in pairs]
    found = json.loads(run(capsys, "summarize", "--model", tmp_path / "run", *given, "--json", "--device", "cpu")[1])
    assert [r["summary"] for r in found["results"]] == want
    found = json.loads(run(capsys, "generate", "--model", tmp_path / "run", *(f"summarize: {g}" for g in given), "--json",
                           "--device", "cpu")[1])
    assert [r["text"] for r in found["results"]] == want
    long = " ".join(given)
    found = json.loads(run(capsys, "summarize", "--model", tmp_path / "run", long, "--json", "--device", "cpu", "--max-length", 80,
                           "--max-new-tokens", 20)[1])["results"][0]
    assert " ".join(p["text"] for p in found["pieces"]) == long and len(found["pieces"]) >= 3
