"""MASS: its spans and noise against the paper's numbers, a real batch beside transformers' BART with the same positions, languages."""

import math

import numpy as np
import polymodal
import pytest
import torch
import transformers
from contract.cases import tokenizer as vocabulary
from parity import RELATIVE, assert_equal, assert_same_gradients, noise
from polymodal.seq2seq import mass
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.seq2seq.languages import Languages
from polymodal.seq2seq.mass import MassObjective, MassSettings, hidden_span
from polymodal.seq2seq.teacher_forcing import padded
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from safetensors.torch import load_file

SMALL = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 2,
         "encoder_ffn_dim": 40, "decoder_ffn_dim": 36, "max_position_embeddings": 64, "dropout": 0.0, "attention_dropout": 0.0}
TWO = {"languages": ("old", "new")}
TEXTS = ("water flows past stone bridge.", "salt boils with onion pepper rice and then the old rose grows near apple hedge birds.",
         "violin plays slow notes.")


def sample(text, number=0, **more):
    return Sample(f"{number}", {"txt": text.encode(), **more}, number)


def objective(settings=None, max_length=512, tok=None):
    return MassObjective(tok or vocabulary("roberta"), settings or MassSettings(), max_length, Languages(()))


def built(task="", **more):
    torch.manual_seed(0)
    settings = more.pop("objective", {})
    system = polymodal.system("mass", size="tiny", task=task, tokenizer=vocabulary("roberta"), objective=settings, **SMALL, **more)
    noise(system.net, scale=0.15)
    return system.train()


def batch_of(system, texts=TEXTS, **fields):
    made = [e for n, text in enumerate(texts) for e in system.objective.example(sample(text, n, **fields), np.random.default_rng(n))]
    return system.objective.collate(made)


# ------------------------------------------------------------------------------------------------ the noise


@pytest.mark.parametrize("length", [3, 4, 20, 21, 22])
def test_a_span_has_half_of_the_text_and_stands_where_the_code_puts_it(length):
    rng, count = np.random.default_rng(length), 100_000
    spans = np.array([hidden_span(length, 0.5, 0.2, 0.2, rng) for _ in range(count)])
    size, places = round(length / 2), length - round(length / 2)
    assert (spans[:, 1] - spans[:, 0] == size).all() and spans[:, 0].min() == 1 and spans[:, 1].max() == length
    found = np.bincount(spans[:, 0], minlength=places + 1)[1:] / count
    expected = np.full(places, 0.6 / places)
    expected[0] += 0.2
    expected[-1] += 0.2
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1e-12).all()


def test_of_a_spans_tokens_80_percent_are_masked_15_random_and_5_kept():
    made = objective()
    ids = np.resize(made.words, 100_002)
    text, (example,) = made.framed(ids), list(spans_of(made, ids))
    places = np.arange(len(example.labels)) + example.place + 1
    assert len(places) == len(text) // 2 and (text[places] == example.labels).all()
    outside = np.delete(np.arange(len(text)), places)
    assert (example.input_ids[outside] == text[outside]).all()
    noisy, drawn = example.input_ids[places], len(made.words)
    n = len(places)
    masked, kept = (noisy == made.mask_id).mean(), (noisy == example.labels).mean()
    assert n > 50_000
    for found, expected in ((masked, 0.8), (kept, 0.05 + 0.15 / drawn)):
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    assert set(noisy.tolist()) - {made.mask_id} <= set(made.words.tolist())


def spans_of(made, ids):
    """The example of a text of these ids, which no tokenizer splits."""
    row = Sample("a", {"tokens.u16": ids.astype("<u2").tobytes()})
    long = objective(made.settings, max_length=len(ids) + 2)
    return long.example(row, np.random.default_rng(0))


def test_one_token_is_a_masked_language_model_and_all_of_them_a_language_model():
    one, all_of_them = (objective(MassSettings(span_ratio=ratio)) for ratio in (0.0, 1.0))
    (few,), (most,) = (list(made.example(sample(TEXTS[1]), np.random.default_rng(0))) for made in (one, all_of_them))
    assert len(few.labels) == 1
    assert len(most.labels) == len(most.input_ids) - 1 and most.place == 0


def test_the_decoder_reads_the_tokens_before_at_their_places_and_the_mask_is_hidden():
    system = built()
    batch, texts = batch_of(system), [system.objective.framed(vocabulary("roberta").encode(t, add_special_tokens=False)) for t in TEXTS]
    inputs, places, targets = (t.reshape(-1).split(batch.decoder_lengths) for t in (batch.decoder_input_ids, batch.decoder_position_ids,
                                                                                   batch.targets))
    for text, read, at, wanted in zip(texts, inputs, places, targets):
        assert (text[at] == read.numpy()).all() and (text[at + 1] == wanted.numpy()).all()
        assert at.tolist() == list(range(int(at[0]), int(at[0]) + round(len(text) / 2)))
    hidden = np.setdiff1d(np.arange(sum(batch.lengths)), batch.seen)
    mask = system.objective.mask_id
    assert (batch.input_ids[0, hidden] == mask).all() and mask not in batch.input_ids[0, batch.seen]
    assert sum(batch.seen_lengths) == len(batch.seen) and batch.counts == {"targets": len(batch.targets)}
    with torch.no_grad():  # the row behind a masked place does not matter to the decoder
        memory = system.net.trunk.encode(batch.input_ids, position_ids=batch.position_ids, lengths=batch.lengths)
        assert memory.index_select(1, batch.seen).shape[1] < memory.shape[1]


def test_long_documents_are_cut_where_the_positions_end():
    made = objective(max_length=24)
    text = " ".join(TEXTS * 4)
    examples = list(made.example(sample(text), np.random.default_rng(0)))
    assert len(examples) > 3 and max(len(e.input_ids) for e in examples) == 24
    shown = dict(made.describe(examples[0]).rows)
    assert "<mask>" in shown["input"] and "<mask>" not in shown["target"]


# ----------------------------------------------------------------------------------- beside transformers


def theirs_of(system, tmp_path):
    """Transformers' BART with the weights of a system."""
    polymodal.save(system.net, tmp_path / "ours")
    net, info = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    return net.train()


def their_loss(theirs, batch, mask_id):
    """The loss of a batch by transformers: positions at the decoder's table, masked places hidden from the cross-attention."""
    ids, there = padded(batch.input_ids, batch.lengths, 1)
    read, places, labels = (padded(t, batch.decoder_lengths, fill)[0] for t, fill in (
        (batch.decoder_input_ids, 1), (batch.decoder_position_ids, 0), (batch.targets[None], -100)))
    table = theirs.model.decoder.embed_positions
    table.forward = lambda *_, **__: torch.nn.functional.embedding(places + 2, table.weight)
    encoded = theirs.model.encoder(input_ids=ids, attention_mask=there.long())
    return theirs(encoder_outputs=encoded, attention_mask=(there & (ids != mask_id)).long(), decoder_input_ids=read, labels=labels).loss


def test_the_loss_and_every_gradient_of_a_batch_are_those_of_bart_with_the_same_positions(tmp_path):
    system = built()
    batch = batch_of(system)
    theirs = theirs_of(system, tmp_path)
    term = system(batch).terms["lm"]
    loss, expected = term.total / batch.counts[term.count], their_loss(theirs, batch, system.objective.mask_id)
    assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE)
    loss.backward()
    expected.backward()
    assert_same_gradients(system.net, theirs, mass.NETS[0].format("transformers").rules(system.net.config))


def test_a_network_without_languages_is_barts_both_ways(tmp_path):
    system = built()
    theirs = theirs_of(system, tmp_path).eval()
    noise(theirs, seed=5)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = polymodal.load(tmp_path / "theirs")
    ids, targets = torch.randint(4, 99, (2, 9)), torch.randint(4, 99, (2, 6))
    with torch.no_grad():
        assert_equal(ours(ids, decoder_input_ids=targets).logits, theirs(ids, decoder_input_ids=targets).logits)
    files = [load_file(tmp_path / d / "model.safetensors").keys() for d in ("ours", "theirs")]
    assert files[0] == files[1]
    again = mass.build(system.net.config).eval()
    again.load_state_dict(ours.state_dict())
    found = generate_ids(again, ids, max_new_tokens=8, no_repeat_ngram_size=1)
    assert torch.equal(found, theirs.generate(ids, max_new_tokens=8, do_sample=False, no_repeat_ngram_size=1))
    assert found[0, 0] == vocabulary("roberta").bos_id


def test_languages_are_vectors_on_both_sides(tmp_path):
    """Beside transformers' BART, which gets the sum of the vectors of words and of languages."""
    system = built("text2text", **TWO).eval()
    net = system.net
    config = transformers.BartConfig(**{k: v for k, v in net.config.to_dict().items() if k != "languages"})
    theirs = transformers.BartForConditionalGeneration(config).eval()
    polymodal.save(net, tmp_path / "ours")
    state = load_file(tmp_path / "ours" / "model.safetensors")
    vectors = [state.pop(f"model.{side}.embed_languages.weight") for side in ("encoder", "decoder")]
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    theirs.tie_weights()
    ids, targets = torch.randint(4, 99, (2, 9)), torch.randint(4, 99, (2, 6))
    words = theirs.model.shared
    with torch.no_grad():
        found = net(ids, decoder_input_ids=targets, token_type_ids=torch.tensor([[0]]), decoder_token_type_ids=torch.tensor([[1], [0]]))
        expected = theirs(inputs_embeds=words(ids) + vectors[0][0], decoder_inputs_embeds=words(targets) + vectors[1][[1, 0]][:, None])
    assert_equal(found.logits, expected.logits)
    again = polymodal.load(tmp_path / "ours")
    assert again.languages == ("old", "new") and again.origin.family == "mass"
    with torch.no_grad():
        assert torch.equal(again(ids, decoder_input_ids=targets, token_type_ids=torch.tensor([[0]]),
                                 decoder_token_type_ids=torch.tensor([[1], [0]])).logits, found.logits)
    with pytest.raises(UserError, match=r"languages \(old, new\)"):
        polymodal.save(net, tmp_path / "theirs", format="transformers")


# ------------------------------------------------------------------------------------------------ languages


def test_the_loss_of_a_batch_in_languages_is_the_sum_of_its_texts():
    for task in ("", "text2text"):
        system = built(task, **TWO).double()
        fields = [{"json": b'{"language": "%s", "source_language": "old", "target_language": "%s"}' % (name, name),
                   "target.txt": b"old rose"} for name in (b"new", b"old", b"new")]
        examples = [e for n, more in enumerate(fields)
                    for e in system.objective.example(sample(TEXTS[n], n, **more), np.random.default_rng(n))]
        whole, *parts = (system(system.objective.collate(e)).terms["lm"].total for e in (examples, *([e] for e in examples)))
        assert whole.item() == pytest.approx(sum(p.item() for p in parts), rel=1e-9)
        whole.backward()
        for embed in (system.net.trunk.embed, system.net.trunk.decoder_embed):
            assert bool(embed.token_type.weight.grad.abs().sum(1).all()) or task
        assert [e.target_language for e in examples] == [1, 0, 1]


def test_generation_writes_in_the_language_that_is_asked_for():
    system = built("text2text", **TWO).eval()
    ids = torch.randint(4, 99, (3, 9), generator=torch.Generator().manual_seed(1))
    new, old = (generate_ids(system.net.between("old", name), ids, max_new_tokens=8, num_beams=beams, no_repeat_ngram_size=1)
                for beams in (1,) for name in ("new", "old"))
    assert not torch.equal(new, old)
    pairs = torch.tensor([[0], [0], [0]]), torch.tensor([[1], [0], [1]])
    for beams in (1, 3):
        mixed, one, two = (generate_ids(net, ids, max_new_tokens=8, num_beams=beams, no_repeat_ngram_size=1) for net in (
            mass.InLanguages(system.net, *pairs), system.net.between("old", "new"), system.net.between("old", "old")))
        width = mixed.shape[1]
        assert torch.equal(mixed[[0, 2]], torch.nn.functional.pad(one, (0, 9 - one.shape[1]), value=1)[[0, 2], :width])
        assert torch.equal(mixed[1], torch.nn.functional.pad(two, (0, 9 - two.shape[1]), value=1)[1, :width])
    fields = {"json": b'{"source_language": "old", "target_language": "new"}', "target.txt": b"old rose"}
    shown = system.preview(batch_of(system, **fields), limit=2)
    assert len(shown) == 2 and [name for name, _ in shown[0].rows] == ["text", "target", "written"]


@pytest.mark.parametrize(("call", "said"), [
    (lambda net: generate_ids(net, torch.tensor([[5, 6]])), "say which one a text is in"),
    (lambda net: net.between("old", "greek"), "the language is 'greek', expected one of old, new"),
    (lambda net: net.between("", "new"), "say which one the text is in"),
])  # fmt: skip
def test_a_language_that_is_not_there_is_refused(call, said):
    net = built("text2text", **TWO).net
    with pytest.raises(UserError, match=said):
        call(net)


def test_settings_and_samples_with_wrong_languages_are_refused():
    with pytest.raises(UserError, match=r"objective\.target_language is 'greek', expected one of old, new"):
        built("text2text", objective={"target_language": "greek"}, **TWO)
    with pytest.raises(UserError, match=r"objective\.language is 'old', expected none"):
        built(objective={"language": "old"})
    system = built(objective={"language": "old"}, **TWO)
    (example,) = system.objective.example(sample("water"), np.random.default_rng(0))
    assert example.language == example.target_language == 0
    with pytest.raises(BadSample, match="'greek'; the model has old, new"):
        list(system.objective.example(sample("water", json=b'{"language": "greek"}'), np.random.default_rng(0)))
    with pytest.raises(BadSample, match=r"no language: expected 'language' in json, a class, or objective\.language"):
        list(built(**TWO).objective.example(sample("water"), np.random.default_rng(0)))
    for languages in (("one",), ("a", "a"), ("a", "")):
        with pytest.raises(UserError, match="expected none, or at least two different names"):
            mass.MassConfig(languages=languages)


def test_the_class_of_a_text_is_its_language_where_the_classes_are_languages():
    languages = Languages(("old", "new"), ("new", "old"))
    assert [languages.of(sample("a", cls=number), "language", "old") for number in (b"0", b"1")] == [1, 0]
    with pytest.raises(BadSample, match="the language 'number 7'"):
        languages.of(sample("a", cls=b"7"), "language", "")
    assert Languages(("old", "new"), ("river", "garden")).of(sample("a", cls=b"1"), "language", "old") == 0


# ------------------------------------------------------------------------------------------------ the rest


def test_a_fine_tuned_target_does_not_repeat_what_the_decoder_starts_from():
    system = built("text2text")
    batch = batch_of(system, TEXTS[:1], **{"target.txt": b"old rose"})
    tok = vocabulary("roberta")
    ids = tok.encode("old rose", add_special_tokens=False)
    assert batch.targets.tolist() == [*ids, tok.eos_id] and batch.decoder_input_ids[0].tolist() == [tok.bos_id, *ids]
    assert batch.decoder_position_ids[0].tolist() == list(range(len(ids) + 1))


@pytest.mark.parametrize(("settings", "said"), [
    ({"span_ratio": 1.5}, "span_ratio is 1.5"), ({"front_prob": 0.7, "end_prob": 0.6}, "a sum of at most 1"),
    ({"replaced_by_mask": 0.9, "replaced_at_random": 0.2}, "a sum of at most 1"), ({"max_length": 4}, "max_length is 4"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        MassSettings(**settings)


@pytest.mark.parametrize("style", ["plain", "t5"])
def test_what_mass_cannot_read_is_refused(style):
    sizes = {"plain": ("word", 12), "t5": ("unigram", 106)}[style]
    with pytest.raises(UserError, match="MASS needs a special token before each text"):
        polymodal.system("mass", size="tiny", tokenizer=Tokenizer.train(["a b"], *sizes, style=STYLES[style]))
    with pytest.raises(UserError, match="128 positions"):
        polymodal.system("mass", size="tiny", tokenizer=vocabulary("roberta"), objective={"max_length": 200})


def test_the_size_of_the_summarisation_model():
    with without_weights():
        net = mass.build(mass.MassConfig(**{**mass.SIZES["base"], "vocab_size": 30522}))
    assert sum(p.numel() for p in net.parameters()) == 123_471_360
