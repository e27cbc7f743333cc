"""RoBERTa's data side against the paper: full sequences, dynamic masking, lengths, framing."""

import pickle
from types import SimpleNamespace

import numpy as np
import polymodal
import pytest
from polymodal.pipelines.evaluation.perplexity import PseudoPerplexity
from polymodal.pipelines.inference.embed import embed
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.masking import MaskingSettings
from polymodal.text.roberta import RobertaObjective

WORDS = [a + b + c for a in ("ka", "mo", "ti") for b in ("ren", "sol") for c in ("o", "an", "es", "ul")]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS)] * 20, "byte-bpe", 300, style=STYLES["roberta"])


def text(seed, words=60):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def sample(seed, words=60):
    return Sample(str(seed), {"txt": text(seed, words).encode()}, seed)


def row(tok, *texts):
    """As `pack --tokenize` writes it: every document is framed."""
    parts = [tok.encode(t) for t in texts]
    return Sample("row", {"tokens.u16": np.concatenate(parts).astype("<u2").tobytes(),
                          "lengths.u32": np.array([len(p) for p in parts], "<u4").tobytes()})


def rng(*key):
    return np.random.default_rng(key)


def objective(tok, max_length=32, **settings):
    return RobertaObjective(tok, MaskingSettings(**settings), max_length)


def original(example):
    ids = example.input_ids.copy()
    ids[example.positions] = example.targets
    return ids.tolist()


def test_documents_of_a_row_are_one_sequence_with_a_separator_between_them(tok):
    texts = [text(1, 5), text(2, 9), text(3, 1)]
    (made,) = objective(tok, 128).example(row(tok, *texts), rng(0))
    plain = [tok.encode(t, add_special_tokens=False) for t in texts]
    assert original(made) == [tok.cls_id, *plain[0], tok.sep_id, *plain[1], tok.sep_id, *plain[2], tok.sep_id]
    assert len(made.input_ids) == sum(len(tok.encode(t)) for t in texts) - 2, "a row of `pack` never needs more room than it has"
    assert not made.token_type_ids.any()


def test_long_texts_are_cut_into_full_sequences_and_no_token_is_lost(tok):
    for source in (sample(5, 200), row(tok, text(5, 120), text(6, 80))):
        made = list(objective(tok).example(source, rng(0)))
        assert {len(e.input_ids) for e in made[:-1]} == {32} and len(made[-1].input_ids) <= 32
        assert all(original(e)[0] == tok.cls_id and original(e)[-1] == tok.sep_id for e in made)
        inside = [i for e in made for i in original(e)[1:-1]]
        documents = [text(5, 200)] if source.key == "5" else [text(5, 120), text(6, 80)]
        plain = [tok.encode(t, add_special_tokens=False) for t in documents]
        assert inside == (plain[0] if len(plain) == 1 else [*plain[0], tok.sep_id, *plain[1]])


def test_masks_are_drawn_anew_and_follow_from_the_generator(tok):
    o = pickle.loads(pickle.dumps(objective(tok)))
    first, again, other = ([e.positions.tolist() for e in o.example(sample(1), rng(epoch))] for epoch in (0, 0, 1))
    assert first == again and first != other


def test_fifteen_percent_eighty_ten_ten_and_no_random_special_token(tok):
    """Normal and chi-square tests at 0.001; a word drawn at random is the original one time in V."""
    kinds, drawn, predicted, tokens = np.zeros(3), [], 0, 0
    for n in range(130):
        for e in objective(tok, 128).example(row(tok, text(n, 90), text(n + 1000, 90)), rng(n)):
            now = e.input_ids[e.positions]
            assert len(now) == max(1, round(0.15 * len(e.input_ids)))
            assert not set(e.targets.tolist()) & {tok.cls_id, tok.sep_id}
            masked, kept = now == tok.mask_id, now == e.targets
            kinds += [masked.sum(), (~masked & ~kept).sum(), kept.sum()]
            drawn.extend(now[~masked & ~kept].tolist())
            predicted, tokens = predicted + len(now), tokens + len(e.input_ids)
    words = tok.vocab_size - len(tok.special_ids)
    assert predicted > 4000 and predicted / tokens == pytest.approx(0.15, abs=0.003)
    shares = np.array([0.8, 0.1 - 0.1 / words, 0.1 + 0.1 / words])
    assert ((kinds - predicted * shares) ** 2 / (predicted * shares)).sum() < 13.82  # 2 degrees of freedom
    assert not set(drawn) & tok.special_ids and len(set(drawn)) > 0.6 * words


def test_the_longest_text_has_as_many_tokens_as_there_are_positions(tok):
    """514 rows are 512 positions: for training, for classifying and for vectors of texts."""
    settings = {"size": "tiny", "tokenizer": tok, "max_position_embeddings": 42}
    assert polymodal.system("roberta", **settings).objective.max_length == 40
    for task, more in (("", {}), ("classify", {"classes": ("a", "b")})):
        with pytest.raises(UserError, match="max_length is 41, the model has 40 positions"):
            polymodal.system("roberta", **settings, **more, task=task, objective={"max_length": 41})
    net = polymodal.system("roberta", **settings).net
    assert embed(net, [text(0, 200), "ka"], tok).shape == (2, 128)
    assert PseudoPerplexity(SimpleNamespace(tokenizer=tok, model=net, source="net", device="cpu")).room == 38


def test_a_pair_is_framed_with_two_separators(tok):
    system = polymodal.system("roberta", size="tiny", tokenizer=tok, task="classify", classes=("a", "b"))
    ids, types = system.objective.frame(text(0, 3), text(1, 2))
    assert ids.tolist() == tok.encode(text(0, 3), pair=text(1, 2)) and not types.any()
    assert [tok.id_to_token(i) for i in ids if i in tok.special_ids] == ["<s>", "</s>", "</s>", "</s>"]
