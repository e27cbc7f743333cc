"""UniLM beside transformers' BERT with 4-D masks: weights both ways, loss and gradients of each task; writing, with and without a cache."""

from __future__ import annotations

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import RELATIVE, assert_equal, assert_same_gradients, noise, rows_of
from polymodal.registry import family
from polymodal.seq2seq.cloze import TASKS
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.seq2seq.unilm import UnilmConfig, UnilmForConditionalGeneration
from polymodal.shared.attention.cache import KVCache
from polymodal.shared.errors import UserError
from polymodal.shared.loss import IGNORE
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer

WORDS = [a + b for a in ("ka", "mo", "ti", "su") for b in ("ren", "sol", "an", "es")]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 42, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0}
SEP, MASK = 3, 4
TINY = {"vocab_size": 40, "num_hidden_layers": 2, "sep_token_id": SEP, "mask_token_id": MASK, **SMALL}


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS)] * 9, "wordpiece", 50)


def allowed(task, kinds, width):
    """A 4-D mask of one padded row by the table of the paper, [1, L, L]; padding sees itself."""
    n, places = len(kinds), np.arange(width)
    query, key = places[:, None], places[None]
    seen = {"bidirectional": key >= 0, "left_to_right": key <= query, "right_to_left": key >= query,
            "seq2seq": (np.pad(kinds, (0, width - n))[None] == 4) | (key <= query)}[task]
    return torch.from_numpy((seen & (key < n) & (query < n)) | (key == query))[None]


@pytest.mark.parametrize("task", TASKS)
def test_loss_and_every_gradient_of_a_batch_are_the_references(task, tok, tmp_path):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    system = polymodal.system("unilm", size="tiny", tokenizer=tok, **SMALL)
    noise(system).train()
    objective = system.objective.by_turn()[task]
    # their word table learns nothing from padding, not even from a token that was drawn at random
    objective.words = np.setdiff1d(np.arange(tok.vocab_size), [tok.pad_id])
    texts = [". ".join(" ".join(rng.choice(WORDS, 6)) for _ in range(1 + 6 * n)) for n in range(3)]
    samples = [Sample(str(n), {"txt": text.encode()}, n) for n, text in enumerate(texts)]
    for sample, other in zip(samples, [samples[-1], *samples]):
        sample.pair_with(lambda other=other: other)
    made = [e for s in samples for e in objective.example(s, rng)]
    batch = objective.collate(made)
    assert len(batch.lengths) > 3 and len(set(batch.lengths)) > 2

    polymodal.save(system.net, tmp_path)
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path).train()
    labels = torch.full((batch.tokens,), IGNORE)
    labels[batch.target_rows] = batch.targets
    labels = rows_of(labels, batch.lengths, IGNORE)
    width = labels.shape[1]
    out = theirs(input_ids=rows_of(batch.input_ids[0], batch.lengths, tok.pad_id),
                 token_type_ids=rows_of(batch.token_type_ids[0], batch.lengths, 0),
                 attention_mask=torch.stack([allowed(task, e.token_type_ids, width) for e in made]))
    expected = torch.nn.functional.cross_entropy(out.prediction_logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    if task == "bidirectional":
        expected = expected + torch.nn.functional.cross_entropy(out.seq_relationship_logits, batch.next_sentence)
    else:  # their second head is not used, ours runs on no rows
        expected = expected + 0 * out.seq_relationship_logits.sum()
    expected.backward()
    step = system(batch)
    loss = sum(term.total / batch.counts[term.count] for term in step.terms.values())
    loss.backward()
    assert step.terms.keys() == ({"mlm", "nsp"} if task == "bidirectional" else {"mlm"})
    assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE)
    assert_same_gradients(system.net, theirs, family("unilm").nets[0].format("transformers").rules(system.net.config))


def test_weights_go_both_ways(tmp_path):
    """transformers reads what we write, as BERT, and we read what it writes: the id of [MASK] in config.json says that it is UniLM."""
    torch.manual_seed(0)
    theirs = noise(transformers.BertForPreTraining(transformers.BertConfig(type_vocab_size=6, **TINY)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = polymodal.load(tmp_path / "theirs")
    assert isinstance(ours.config, UnilmConfig) and ours.config.mask_token_id == MASK and ours.origin.family == "unilm"
    polymodal.save(ours, tmp_path / "ours")
    again = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "ours").eval()
    assert isinstance(again, transformers.BertForPreTraining)
    assert polymodal.load(tmp_path / "ours").config == ours.config
    transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "back")
    assert (polymodal.load(tmp_path / "back").origin.family, polymodal.load(tmp_path / "back").config) == ("unilm", ours.config)
    described = tmp_path / "theirs" / "config.json"  # as exports were called before
    described.write_text(described.read_text().replace('"model_type": "bert"', '"model_type": "unilm"'))
    assert polymodal.load(tmp_path / "theirs").origin.family == "unilm"
    ids = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    types = torch.tensor([4] * 5 + [5] * 4).expand(2, -1)
    with torch.no_grad():
        found = ours(ids, None, types)
        for model in (theirs, again):
            wanted = model(input_ids=ids, token_type_ids=types)
            assert_equal(found.prediction_logits, wanted.prediction_logits)
            assert_equal(found.seq_relationship_logits, wanted.seq_relationship_logits)


# ---------------------------------------------------------------------------------------------- writing


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return noise(UnilmForConditionalGeneration(UnilmConfig(**TINY)))


def texts(*lengths, left=True):
    """Texts with [CLS] (2) and [SEP], padded."""
    generator = torch.Generator().manual_seed(7)
    rows = [torch.cat([torch.tensor([2]), torch.randint(5, 40, (n - 2,), generator=generator), torch.tensor([SEP])]) for n in lengths]
    width = max(lengths)
    pads = [torch.zeros(width - len(row), dtype=torch.long) for row in rows]
    ids = torch.stack([torch.cat([pad, row] if left else [row, pad]) for row, pad in zip(rows, pads)])
    keep = torch.stack([torch.cat([pad, row] if left else [row, pad]) for row, pad in zip(map(torch.ones_like, rows), pads)])
    return ids, keep


def next_by_bert(bert, source, written):
    """Log-probabilities of the next token, by transformers: the whole text again, [MASK] behind it, and the table of the paper."""
    ids = torch.cat([source, torch.tensor([*written, MASK])])
    kinds = torch.tensor([4] * len(source) + [5] * (len(written) + 1))
    out = bert(input_ids=ids[None], token_type_ids=kinds[None], attention_mask=allowed("seq2seq", kinds.numpy(), len(ids))[None])
    return out.logits[0, -1].log_softmax(-1)


@pytest.fixture(scope="module")
def bert(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    polymodal.save(net, folder)
    return transformers.BertForMaskedLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("left", [True, False])
def test_greedy_writing_is_that_of_bert_read_again_for_each_token(net, bert, left):
    ids, keep = texts(9, 4, 12, left=left)
    with torch.no_grad():
        for cache in (True, False):
            found = generate_ids(net, ids, keep, max_new_tokens=8, eos_token_id=-1, use_cache=cache)
            assert found.shape == (3, 9) and found[:, 0].tolist() == [SEP] * 3
            for row, text, there in zip(found[:, 1:].tolist(), ids, keep):
                for n, token in enumerate(row):
                    scores = next_by_bert(bert, text[there.bool()], row[:n])
                    assert float(scores.max() - scores[token]) < 1e-4, (n, cache)


def test_the_cache_changes_no_logits(net):
    """Each step's scores with keys and values kept, and read again; the cache holds what was written, and no [MASK]."""
    ids, keep = texts(9, 4)
    with torch.no_grad():
        decoder = net.decoder_for(ids, keep)
        cache, written = KVCache(2, 8), decoder.start
        for n in range(6):
            places = torch.arange(written.shape[1]).expand(2, -1)
            kept = decoder.next_logits(written[:, n:], None, places[:, n:], cache)
            again = decoder.next_logits(written, None, places, KVCache(2, 8))
            assert cache.length == n + 1
            assert_equal(kept, again)
            behind = net(ids, keep, torch.cat([written[:, 1:], torch.full((2, 1), MASK)], 1)).logits[:, -1]
            assert_equal(kept, behind)
            written = torch.cat([written, kept.argmax(-1, keepdim=True)], 1)


def test_beams_are_those_of_a_plain_search(net, bert):
    """Three beams without an end, step by step by transformers' BERT; and the same without a cache, and in a batch."""
    ids, keep = texts(7, 10)
    options = {"num_beams": 3, "max_new_tokens": 5, "eos_token_id": -1, "num_return_sequences": 3}
    found = generate_ids(net, ids, keep, **options)
    assert torch.equal(found, generate_ids(net, ids, keep, use_cache=False, **options))
    with torch.no_grad():
        for number, (text, there) in enumerate(zip(ids, keep)):
            beams = [((), 0.0)]
            for _ in range(5):
                more = [((*written, token), total + float(score)) for written, total in beams
                        for token, score in enumerate(next_by_bert(bert, text[there.bool()], written))]
                beams = sorted(more, key=lambda beam: -beam[1])[:3]
            assert found[3 * number:3 * number + 3, 1:].tolist() == [list(written) for written, _ in beams]


def test_what_is_written_ends_with_sep(net):
    ids, keep = texts(6)
    with torch.no_grad():
        first = int(net.decoder_for(ids, keep).next_logits(ids[:, -1:], None, torch.zeros(1, 1, dtype=torch.long), KVCache(2, 4)).argmax())
    assert generate_ids(net, ids, keep, max_new_tokens=6, eos_token_id=first).tolist() == [[SEP, first]]
    assert net.decoder_info.eos_token_id == SEP


def test_a_text_and_its_answer_share_the_positions(net):
    ids, keep = texts(40)
    assert generate_ids(net, ids, keep, max_new_tokens=2, eos_token_id=-1).shape == (1, 3)
    with pytest.raises(UserError, match=r"more than the model's 3 positions: ask for at most 2"):
        generate_ids(net, ids, keep, max_new_tokens=3)
    with pytest.raises(UserError, match="42 tokens, and the model 42 positions for a text and its answer: shorten the text to at most 41"):
        generate_ids(net, *texts(42))
