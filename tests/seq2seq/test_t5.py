"""T5's data side and its loss: spans, sentinels, batches, and what does not depend on them."""

import math

import numpy as np
import polymodal
import pytest
import torch
from polymodal.seq2seq import t5
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.seq2seq.spans import SpanObjective, SpanSettings, sentinel_ids
from polymodal.seq2seq.teacher_forcing import padded
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer

WORDS = ["the", "river", "stone", "walks", "under", "every", "old", "bridge", "while", "seven", "birds", "sing", "and", "about", "winter",
         "bright", "small", "rain", "a", "jump", "quiz", "fox", "yellow", "morning", "people", "company", "question", "zebra",
         *(a + b + c for a in ("ka", "mo", "ti", "lu") for b in ("ren", "sol", "vid") for c in ("o", "an", "es"))]


def text(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, size=words))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([text(200, seed) for seed in range(20)], "unigram", 165, style=STYLES["t5"])


def row(ids, lengths=None, index=0) -> Sample:
    fields = {"tokens.u16": np.asarray(ids, "<u2").tobytes()}
    if lengths is not None:
        fields["lengths.u32"] = np.asarray(lengths, "<u4").tobytes()
    return Sample("row", fields, index)


def objective(tokenizer, **settings) -> SpanObjective:
    return SpanObjective(tokenizer, SpanSettings(**settings), 0)


def restored(example, tokenizer) -> list[int]:
    """The text before corruption, put together again from input and target."""
    sentinels = sentinel_ids(tokenizer).tolist()
    spans: dict[int, list[int]] = {}
    for i in example.labels[:-1].tolist():
        if i in sentinels:
            spans[i] = last = []
        else:
            last.append(i)
    return [j for i in example.input_ids[:-1].tolist() for j in spans.get(i, [i])]


def test_a_full_text_fills_input_and_target_of_the_paper(tokenizer):
    """568 tokens become 512 and 114."""
    made = objective(tokenizer)
    assert (made.text_length, made.target_length) == (568, 114)
    ids = np.random.default_rng(0).integers(3, 60, size=1136 + 300)
    examples = list(made.example(row(ids), np.random.default_rng(1)))
    assert [(len(e.input_ids), len(e.labels)) for e in examples[:2]] == [(512, 114)] * 2
    assert [i for e in examples for i in restored(e, tokenizer)] == ids.tolist()


def test_sentinels_descend_in_the_vocabulary_and_ascend_in_name(tokenizer):
    found = sentinel_ids(tokenizer)
    assert len(found) == 100
    assert found[0] == tokenizer.vocab_size - 1 and (np.diff(found) == -1).all()
    example = next(iter(objective(tokenizer, max_length=64).example(row(3 + np.arange(70) % 60), np.random.default_rng(0))))
    for side in (example.input_ids, example.labels):
        used = side[np.isin(side, found)]
        assert (used == found[:len(used)]).all() and len(used) > 1
        assert side[-1] == tokenizer.eos_id
    assert example.labels[0] == found[0], "the first token is never cut out"
    assert example.input_ids[-2] in found, "the last one always is"
    assert example.labels[-2] not in found, "so no sentinel closes the target"


def test_documents_of_a_row_are_joined_and_texts_are_read_alone(tokenizer):
    made = objective(tokenizer, max_length=32)
    eos = tokenizer.eos_id
    pieces = list(made.example(row([5, 6, 7, eos, 8, 9, 10, 11, eos], [4, 5]), np.random.default_rng(0)))
    assert [restored(p, tokenizer) for p in pieces] == [[5, 6, 7, 8, 9, 10, 11]]
    raw = text(60)
    pieces = list(made.example(Sample("a", {"txt": raw.encode()}), np.random.default_rng(0)))
    assert [i for p in pieces for i in restored(p, tokenizer)] == tokenizer.encode(raw, add_special_tokens=False)
    assert [len(restored(p, tokenizer)) for p in pieces[:-1]] == [made.text_length] * (len(pieces) - 1) and len(pieces) > 1


def test_a_text_of_one_token_is_a_bad_sample_and_a_last_piece_has_two_or_more(tokenizer):
    made = objective(tokenizer, max_length=32)
    for ids in ([7], [7, tokenizer.eos_id]):
        with pytest.raises(BadSample, match="two tokens"):
            list(made.example(row(ids), np.random.default_rng(0)))
    pieces = list(made.example(row(np.full(made.text_length + 1, 7)), np.random.default_rng(0)))
    read = [sum(int((part == 7).sum()) for part in (piece.input_ids, piece.labels)) for piece in pieces]
    assert read == [made.text_length - 1, 2]
    assert len(list(made.example(row([7, 8]), np.random.default_rng(0)))) == 1


def test_a_batch_is_packed_and_counts_its_targets(tokenizer):
    made = objective(tokenizer, max_length=32)
    examples = [next(iter(made.example(row(3 + np.arange(n) % 60), np.random.default_rng(n)))) for n in (35, 12, 4)]
    batch = made.collate(examples)
    assert batch.counts == {"targets": sum(len(e.labels) for e in examples)} == {"targets": sum(batch.decoder_lengths)}
    assert batch.tokens == sum(len(e.labels) + len(e.input_ids) for e in examples) == batch.input_ids.numel() + batch.targets.numel()
    texts, targets = batch.input_ids[0].split(list(batch.lengths)), batch.targets.split(list(batch.decoder_lengths))
    read = batch.decoder_input_ids[0].split(list(batch.decoder_lengths))
    for e, text, target, seen in zip(examples, texts, targets, read, strict=True):
        assert (text.numpy() == e.input_ids).all() and (target.numpy() == e.labels).all()
        assert seen[0] == 0 and (seen[1:] == target[:-1]).all()
    for places, lengths in ((batch.position_ids, batch.lengths), (batch.decoder_position_ids, batch.decoder_lengths)):
        assert places[0].tolist() == [p for n in lengths for p in range(n)]


@pytest.mark.parametrize(("settings", "said"), [
    ({"max_length": 8}, "max_length is 8"), ({"noise_density": 0.0}, "noise_density"), ({"mean_noise_span_length": 0.5}, "mean_noise_span"),
])
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        SpanSettings(**settings)


def test_a_tokenizer_without_what_t5_needs_is_refused(tokenizer):
    bert = Tokenizer.train([text(100)], "wordpiece", 60)
    with pytest.raises(UserError, match="eos"):
        objective(bert)
    with pytest.raises(UserError, match=r"133 sentinels .* has 100: lower objective\.max_length"):
        objective(tokenizer, max_length=2400)


def test_previews_show_sentinels_among_the_text(tokenizer):
    ids = tokenizer.encode("the old river", add_special_tokens=False)
    s = sentinel_ids(tokenizer)
    shown = objective(tokenizer).readable(np.array([*ids, s[0], *ids, s[1], tokenizer.eos_id]))
    assert shown == "the old river <extra_id_0> the old river <extra_id_1>"


# ------------------------------------------------------------------------------------------------ the loss


TINY = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3}
VARIANTS = {"tied": {}, "v1.1": t5.V1_1}


def system(tokenizer, variant="tied", **overrides):
    torch.manual_seed(0)
    sizes = {**TINY, **VARIANTS[variant], **overrides}
    return polymodal.system("t5", size="tiny", tokenizer=tokenizer, objective={"max_length": 32}, **sizes)


def examples(tokenizer, sizes=(35, 12, 4, 30)):
    made = objective(tokenizer, max_length=32)
    return [next(iter(made.example(row(3 + np.arange(n) % 60), np.random.default_rng(n)))) for n in sizes]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient_and_the_first_loss_is_near_chance(tokenizer, variant):
    built = system(tokenizer, variant).train()
    batch = built.objective.collate(examples(tokenizer))
    term = built(batch).terms["lm"]
    loss = term.total / batch.counts[term.count]
    loss.backward()
    assert abs(loss.item() - math.log(tokenizer.vocab_size)) < 1.0
    for name, p in built.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_that_of_the_network_with_padded_rows(tokenizer, variant):
    built = system(tokenizer, variant).eval()
    batch = built.objective.collate(examples(tokenizer))
    ids, mask = padded(batch.input_ids, batch.lengths, tokenizer.pad_id)
    labels = padded(batch.targets[None], batch.decoder_lengths, -100)[0]
    logits = built.net(ids, mask, labels=labels).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    step = built(batch)
    assert step.terms["lm"].total.item() == pytest.approx(expected.item(), rel=1e-5)
    hits, count = step.metrics["accuracy"]
    assert hits == (logits.argmax(-1) == labels).sum() and count == len(batch.targets)
    assert built.derive({"lm": 2.0}) == {"perplexity": pytest.approx(math.e**2)}
    grads = []
    for loss in (expected, step.terms["lm"].total):
        built.zero_grad()
        loss.backward()
        grads.append({name: p.grad for name, p in built.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()), msg=name)


def test_no_target_sees_its_future_and_no_example_another(tokenizer):
    built = system(tokenizer).eval()
    batch = built.objective.collate(examples(tokenizer))
    trunk = built.net.trunk

    def states(texts=batch.input_ids, read=batch.decoder_input_ids):
        memory = trunk.encode(texts, position_ids=batch.position_ids, lengths=batch.lengths)
        out = trunk.decode(read, memory, decoder_position_ids=batch.decoder_position_ids, lengths=batch.decoder_lengths,
                           memory_lengths=batch.lengths)
        return out[0].split(list(batch.decoder_lengths))

    with torch.no_grad():
        before = states()
        later = batch.decoder_input_ids.clone()
        later[:, batch.decoder_lengths[0] - 2:batch.decoder_lengths[0]] = 9  # the end of the first target
        after = states(read=later)
        assert torch.equal(before[0][:-2], after[0][:-2]) and not torch.equal(before[0][-2:], after[0][-2:])
        assert all(torch.equal(a, b) for a, b in zip(before[1:], after[1:]))
        other = batch.input_ids.clone()
        other[:, batch.lengths[0]:batch.lengths[0] + batch.lengths[1]] = 9  # the second text
        after = states(texts=other)
        assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, False, True, True]


def test_one_batch_is_learnt_and_filled_in(tokenizer):
    built = system(tokenizer, dropout_rate=0.0).train()
    words = tokenizer.encode(text(100), add_special_tokens=False)
    made = built.objective
    batch = made.collate([next(iter(made.example(row(words[i:i + 35]), np.random.default_rng(i)))) for i in range(4)])
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-2)
    for _ in range(60):
        loss = built(batch).terms["lm"].total / batch.counts["targets"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    built.eval()
    assert built.derive({"lm": loss.item()})["perplexity"] < 1.2
    previews = built.preview(batch, limit=3)
    assert len(previews) == 3
    rows = dict(previews[0].rows)
    assert rows["guess"] == rows["cut out"] and "<extra_id_0>" in rows["text"]
    written = polymodal.generate(built.net, ["the old river", "rain"], tokenizer=tokenizer, max_new_tokens=8)
    assert written == [polymodal.generate(built.net, t, tokenizer=tokenizer, max_new_tokens=8) for t in ("the old river", "rain")]
    ids = generate_ids(built.net, torch.tensor([tokenizer.encode("the old river")]), max_new_tokens=8)
    assert ids[0, 0] == tokenizer.pad_id and written[0] == tokenizer.decode(ids[0, 1:])
    assert dict(made.describe(next(iter(made.example(row(words), np.random.default_rng(0))))).rows).keys() == {"input", "target"}
