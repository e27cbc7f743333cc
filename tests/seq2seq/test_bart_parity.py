"""BART against transformers: outputs, weights both ways, the loss and its gradients, greedy and beam generation."""

import json

import polymodal
import pytest
import torch
import transformers
from parity import assert_equal, assert_same_gradients, noise, saved
from polymodal.pipelines.run.optim import freeze
from polymodal.pipelines.run.recipe import recipe
from polymodal.seq2seq import bart
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.seq2seq.teacher_forcing import Seq2SeqExample, packed_pairs, padded
from polymodal.shared.convert import to_ours
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from safetensors.torch import load_file, save_file
from transformers.models.bart.modeling_bart import BartEncoder

SIZES = {"vocab_size": 60, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 36, "max_position_embeddings": 40}


def config(**more):
    return transformers.BartConfig(**{**SIZES, **more})


def arguments():
    """Texts padded on the right, targets too."""
    g = torch.Generator().manual_seed(1)
    ids, targets = torch.randint(3, 60, (3, 30), generator=g), torch.randint(3, 60, (3, 25), generator=g)
    mask, target_mask = torch.ones(3, 30, dtype=torch.long), torch.ones(3, 25, dtype=torch.long)
    mask[1, 20:], target_mask[1, 15:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": targets, "decoder_attention_mask": target_mask}


@torch.no_grad()
def assert_same(ours, theirs):
    given = arguments()
    a, b = ours(**given, output_hidden_states=True), theirs(**given, output_hidden_states=True)
    name = "logits" if hasattr(b, "logits") else "last_hidden_state"
    seen, read = given["decoder_attention_mask"].bool(), given["attention_mask"].bool()
    assert_equal(getattr(a, name)[seen], getattr(b, name)[seen])
    for mine, other, places in ((a.encoder_hidden_states, b.encoder_hidden_states, read),
                                (a.decoder_hidden_states, b.decoder_hidden_states, seen)):
        assert len(mine) == len(other)
        for x, y in zip(mine, other):
            assert_equal(x[places], y[places])


@pytest.mark.parametrize("architecture", ["BartForConditionalGeneration", "BartModel"])
@pytest.mark.parametrize("more", [{}, {"activation_function": "relu"}], ids=["gelu", "relu"])
def test_both_ways(architecture, more, tmp_path):
    theirs = saved(architecture, config(**more), tmp_path / "theirs")
    ours = polymodal.load(tmp_path / "theirs")
    assert ours.architecture == architecture
    assert_same(ours, theirs)
    noise(ours, seed=5)
    polymodal.save(ours, tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert_same(ours, again.eval())
    assert_same(polymodal.load(tmp_path / "ours"), again)
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == load_file(tmp_path / "theirs" / "model.safetensors").keys()
    mine, yours = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("ours", "theirs"))
    assert mine == yours


@pytest.mark.parametrize(("architecture", "names"), [
    ("BartForSequenceClassification", ("logits",)), ("BartForQuestionAnswering", ("start_logits", "end_logits"))])
def test_task_networks_both_ways_padded_and_packed(architecture, names, tmp_path):
    theirs = saved(architecture, config(), tmp_path / "theirs")
    ours = polymodal.load(tmp_path / "theirs")
    g = torch.Generator().manual_seed(3)
    texts = [torch.cat([torch.randint(3, 60, (n,), generator=g), torch.tensor([2])]) for n in (20, 9, 9)]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
    mask, lengths = (ids != 1).long(), tuple(map(len, texts))

    def assert_alike(ours, theirs):
        with torch.no_grad():
            a, b = ours(ids, mask), theirs(ids, attention_mask=mask)
            row = ours(torch.cat(texts)[None], position_ids=torch.cat([torch.arange(n) for n in lengths])[None], lengths=lengths)
        for name in names:
            found, expected = getattr(a, name), getattr(b, name)
            seen = slice(None) if name == "logits" else mask.bool()
            assert_equal(found[seen], expected[seen])
            assert_equal(getattr(row, name) if name == "logits" else getattr(row, name)[0], expected[seen])

    assert_alike(ours, theirs)
    noise(ours, seed=5)
    polymodal.save(ours, tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert_alike(ours, again.eval())
    assert_alike(polymodal.load(tmp_path / "ours"), again)


def test_tags_are_read_off_the_decoders_top_states(tmp_path):
    """Transformers has no such network: a linear map over its trunk, whose decoder reads the text behind `</s>`."""
    theirs = saved("BartModel", config(), tmp_path / "theirs")
    torch.manual_seed(0)
    ours = polymodal.system("bart", task="tag", size="tiny", num_labels=5, **SIZES).net.eval()
    ours.trunk.load_state_dict(polymodal.load(tmp_path / "theirs").state_dict())
    texts = [torch.randint(3, 60, (n,)) for n in (20, 9, 12)]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
    mask, lengths = (ids != 1).long(), tuple(map(len, texts))
    polymodal.save(ours, tmp_path / "ours")
    again = polymodal.load(tmp_path / "ours")
    assert again.architecture == "BartForTokenClassification" and again.config.num_labels == 5
    with torch.no_grad():
        shifted = torch.cat([torch.full((3, 1), 2), ids[:, :-1]], dim=1)
        top = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=shifted).last_hidden_state
        expected = (top @ ours.classifier.weight.T + ours.classifier.bias)[mask.bool()]
        assert_equal(ours(ids, mask).logits[mask.bool()], expected)
        row = ours(torch.cat(texts)[None], position_ids=torch.cat([torch.arange(n) for n in lengths])[None], lengths=lengths)
        assert_equal(row.logits[0], expected)
        assert torch.equal(again(ids, mask).logits, ours(ids, mask).logits)
    with pytest.raises(UserError, match="no format 'transformers'"):
        polymodal.save(ours, tmp_path / "no", format="transformers")


def test_a_translator_is_an_encoder_before_bart_both_ways(tmp_path):
    """Beside transformers' encoder, whose states are the vectors that its BART reads in place of words."""
    theirs = saved("BartForConditionalGeneration", config(), tmp_path / "theirs")
    source = BartEncoder(config(encoder_layers=2))
    noise(source, seed=3)
    torch.manual_seed(0)
    ours = polymodal.system("bart", task="translate", size="tiny", source_layers=2, **SIZES).net.eval()
    rules = bart.NETS[-1].format("polymodal").rules(ours.config)
    state = {**theirs.state_dict(), **{f"model.source.{name}": value for name, value in source.state_dict().items()}}
    ours.load_state_dict(to_ours(rules, state))
    given = arguments()
    ids, mask, targets = given["input_ids"], given["attention_mask"], given["decoder_input_ids"]
    polymodal.save(ours, tmp_path / "ours")
    again = polymodal.load(tmp_path / "ours")
    assert again.architecture == "BartForTranslation" and again.config == ours.config
    with torch.no_grad():
        states = source(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = theirs(inputs_embeds=states, attention_mask=mask, decoder_input_ids=targets).logits
        assert_equal(ours(ids, mask, targets).logits, expected)
        assert torch.equal(again(ids, mask, targets).logits, ours(ids, mask, targets).logits)
    for task in ("", "text2text"):
        with pytest.raises(UserError, match="only the task translate has an encoder of another language"):
            polymodal.system("bart", size="tiny", task=task, source_layers=2)
    assert "source_layers" not in polymodal.load(tmp_path / "theirs").config.to_dict()


def test_the_first_phase_of_translation_trains_what_the_paper_names():
    system = polymodal.system("bart", task="translate", size="tiny", source_layers=1, **SIZES)
    freeze(system, recipe("bart-translate").optim.freeze)
    trained = {name for name, p in system.named_parameters() if p.requires_grad and ".source." not in name}
    assert trained == {"net.trunk.embed.position.weight", "net.trunk.decoder_embed.position.weight",
                       "net.trunk.encoder.blocks.0.attention.qkv.weight", "net.trunk.encoder.blocks.0.attention.qkv.bias"}
    assert all(p.requires_grad for name, p in system.named_parameters() if ".source." in name)
    assert not recipe("bart-translate-all").optim.freeze


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_number_of_classes_is_theirs_and_ours(count, tmp_path):
    net = polymodal.system("bart", size="tiny", task="classify", num_labels=count, vocab_size=60).net
    polymodal.save(net, tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).num_labels == polymodal.load(tmp_path).config.num_labels == count


def test_the_loss_and_every_gradient_of_a_packed_batch(tmp_path):
    theirs = saved("BartForConditionalGeneration", config(dropout=0.0), tmp_path / "theirs").train()
    ours = bart.BartSystem(polymodal.load(tmp_path / "theirs").train(), None)
    g = torch.Generator().manual_seed(2)
    examples = [Seq2SeqExample(*(torch.randint(3, 60, (n,), generator=g).numpy() for n in sizes)) for sizes in ((9, 7), (20, 31), (9, 3))]
    batch = packed_pairs(examples, start_id=2)
    term = ours(batch).terms["lm"]
    loss = term.total / batch.counts[term.count]
    ids, mask = padded(batch.input_ids, batch.lengths, 1)
    labels = padded(batch.targets[None], batch.decoder_lengths, -100)[0]
    expected = theirs(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    assert_same_gradients(ours.net, theirs, bart.NETS[0].format("transformers").rules(ours.net.config))


@pytest.mark.parametrize("options", [
    {"no_repeat_ngram_size": 1},
    {"num_beams": 3, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "min_length": 8, "no_repeat_ngram_size": 3},
    {"forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 1},
], ids=["greedy", "beams", "as for summaries", "forced"])  # fmt: skip
def test_generation_token_for_token(options, tmp_path):
    """Without a repeated n-gram, or a random network writes one word again and again."""
    theirs = saved("BartForConditionalGeneration", config(), tmp_path / "theirs")
    ours = polymodal.load(tmp_path / "theirs")
    given = arguments()
    ids, mask = given["input_ids"], given["attention_mask"]
    found = generate_ids(ours, ids, mask, max_new_tokens=20, **options)
    expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, **options)
    width = max(found.shape[1], expected.shape[1])
    assert torch.equal(*(torch.nn.functional.pad(x, (0, width - x.shape[1]), value=1) for x in (found, expected)))
    assert len(found.unique()) >= 5


def test_a_file_with_a_bias_of_the_logits_is_refused(tmp_path):
    saved("BartForConditionalGeneration", config(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "final_logits_bias": torch.ones(1, 60)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="final_logits_bias is not zero"):
        polymodal.load(tmp_path)


def test_sizes_of_the_papers_models():
    for size, count in (("base", 139_420_416), ("large", 406_291_456)):
        with without_weights():
            net = bart.BartForConditionalGeneration(bart.BartConfig(**bart.SIZES[size]))
        assert sum(p.numel() for p in net.parameters()) == count


def test_texts_that_do_not_fit_the_positions_are_refused(tmp_path):
    saved("BartForConditionalGeneration", config(), tmp_path)
    net = polymodal.load(tmp_path)
    with pytest.raises(UserError, match="40 positions"):
        net(torch.full((1, 41), 5), decoder_input_ids=torch.full((1, 3), 5))
