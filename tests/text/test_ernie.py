"""ERNIE 1.0 against the paper and transformers: stages, whole units by one draw, the network both ways."""

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, saved
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.documents import apart
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import ENTITY, WORD, Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.ernie import ErnieConfig, ErnieObjective, ErnieSettings
from polymodal.text.words import units_of

LETTERS = "天地人山水火木金土石田日月云雨风雪花草鱼"
SIZES = (1, 2, 1, 3, 2)
"""Characters of the words, in turns; the second and the third are one entity."""
Z = 3.89
"""Two-sided normal test at 0.0001."""


def rng(*key):
    return np.random.default_rng(key)


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([LETTERS + " ab"] * 9, "wordpiece", 29)


def sample(number, words=30, bits=WORD | ENTITY):
    sizes = (SIZES * words)[:words]
    text = "".join(rng(number).choice(list(LETTERS), sum(sizes)))
    units = np.zeros(len(text), dtype=np.uint8)
    starts = np.cumsum([0, *sizes[:-1]])
    units[starts] = WORD
    units[[at for n, at in enumerate(starts) if n % 5 != 2]] |= ENTITY
    units &= bits
    return Sample(str(number), {"txt": text.encode(), **({"units.u8": units.tobytes()} if bits else {})}, number, "here")


def objective(tok, stage, max_length=128, **settings):
    return ErnieObjective(tok, ErnieSettings(stage=stage, **settings), max_length)


EXPECTED = {"character": {1}, "phrase": {1, 2, 3}, "entity": {1, 2, 3}}
"""Tokens of a unit, by stage."""


@pytest.mark.parametrize(("stage", "units"), [("character", 54), ("phrase", 30), ("entity", 24)])
def test_a_stage_says_what_a_unit_is_and_15_percent_of_them_are_chosen(tok, stage, units):
    o = objective(tok, stage)
    seen = set()
    for seed in range(60):
        (e,) = o.example(sample(seed), rng(1, seed))
        bounds = o.bounds(*framed(o, sample(seed)))
        assert len(bounds) == units
        numbers = units_of(bounds, e.positions)
        assert numbers.max() + 1 == round(units * 0.15)
        for n in range(numbers.max() + 1):
            places = e.positions[numbers == n]
            assert [places[0], places[-1] + 1] in bounds.tolist(), "a unit was cut"
            seen.add(len(places))
            masked = e.input_ids[places] == tok.mask_id
            assert masked.all() or not masked.any()
    assert seen == EXPECTED[stage]


def framed(o, one):
    (document,) = o.documents(one)
    return apart(o.frame(document)[0])


def test_one_draw_for_a_unit_80_10_10(tok):
    """Binomial, 10^5 units of one to three tokens; a random token is no special one."""
    o = objective(tok, "phrase")
    ids, marks = framed(o, sample(0))
    bounds, source, kinds = o.bounds(ids, marks), rng(7), np.zeros(3)
    positions = np.arange(1, len(ids) - 1)
    numbers = units_of(bounds, positions)
    for _ in range(3500):
        now = o.replace(ids, positions, bounds, source).ids[positions]
        masked, same = now == tok.mask_id, now == ids[positions]
        counts = np.bincount(numbers)
        all_masked, all_same = np.bincount(numbers, masked) == counts, np.bincount(numbers, same) == counts
        assert not (np.bincount(numbers, masked) % counts).any(), "a unit of two kinds"
        assert not set(now[~masked].tolist()) & tok.special_ids
        kinds += [all_masked.sum(), all_same.sum(), (~all_masked & ~all_same).sum()]
    total = kinds.sum()
    assert total == 105_000
    chance = np.mean([len(o.words) ** -float(b - a) for a, b in bounds])  # random tokens that are the originals
    for found, share in zip(kinds / total, (0.8, 0.1 + 0.1 * chance, 0.1 - 0.1 * chance)):
        assert abs(found - share) < Z * np.sqrt(share * (1 - share) / total)


def test_sequences_are_single_texts_and_every_token_is_read(tok):
    o = objective(tok, "phrase", 32)
    one = sample(4, 100)
    made = list(o.example(one, rng(0)))
    ids = []
    for e in made:
        original = e.input_ids.copy()
        original[e.positions] = e.targets
        assert not e.token_type_ids.any() and len(original) <= 32
        ids += original[1:-1].tolist()
    assert ids == tok.encode(one.text(), add_special_tokens=False) and len(made) > 3
    assert len(next(iter(objective(tok, "phrase", 128, max_predictions=2).example(one, rng(0)))).positions) <= 2


@pytest.mark.parametrize(("stage", "bits", "message"), [
    ("phrase", 0, r"sample '0' of here: ERNIE's stage phrase needs to know where the words .* --segment jieba"),
    ("entity", 0, r"ERNIE's stage entity needs to know where the words"),
    ("entity", WORD, r"ERNIE's stage entity needs to know the entities of the text: pack words with their tags"),
])
def test_text_that_does_not_say_what_the_stage_needs_is_bad(tok, stage, bits, message):
    with pytest.raises(BadSample, match=message) as found:
        list(objective(tok, stage).example(sample(0, bits=bits), rng(0)))
    assert "\n" not in str(found.value)
    assert list(objective(tok, "character").example(sample(0, bits=bits), rng(0)))


def test_settings_that_mask_no_units_are_refused():
    with pytest.raises(UserError, match="ERNIE masks whole units"):
        ErnieSettings(whole_words=False)
    with pytest.raises(UserError, match="stage is 'word'"):
        polymodal.system("ernie", size="tiny", objective={"stage": "word"})


# --------------------------------------------------------------------------------------------- the network

TINY = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "hidden_act": "relu", "max_position_embeddings": 33, "num_labels": 3}
OUTPUTS = {
    "ErnieModel": ("last_hidden_state", "pooler_output"), "ErnieForMaskedLM": ("logits",),
    "ErnieForPreTraining": ("prediction_logits", "seq_relationship_logits"), "ErnieForSequenceClassification": ("logits",),
    "ErnieForTokenClassification": ("logits",), "ErnieForQuestionAnswering": ("start_logits", "end_logits"),
    "ErnieForMultipleChoice": ("logits",),
}


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_theirs_to_ours_and_back(architecture, tmp_path):
    settings = {**TINY, **({"num_labels": 2} if architecture == "ErnieForQuestionAnswering" else {})}
    theirs = saved(architecture, transformers.ErnieConfig(**settings), tmp_path / "theirs")
    ids = torch.randint(0, 99, (3, 2, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :, 9:] = 0
    types = (torch.arange(17) > 6).long().expand_as(ids)
    arguments = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    if architecture != "ErnieForMultipleChoice":
        arguments = {name: value.flatten(0, 1) for name, value in arguments.items()}
    assert_both_ways(theirs, tmp_path, OUTPUTS[architecture], [(arguments, None), ({"input_ids": arguments["input_ids"]}, None)])


def test_task_ids_are_refused(tmp_path):
    saved("ErnieModel", transformers.ErnieConfig(**TINY, use_task_id=True), tmp_path)
    with pytest.raises(UserError, match="use_task_id = True is not supported"):
        polymodal.load(tmp_path)


def test_the_sizes_are_the_released_ones():
    nets = {net.architecture: net for net in family("ernie").nets}
    released = polymodal.system("ernie").net.config
    assert (released.vocab_size, released.max_position_embeddings, released.hidden_act) == (18000, 513, "relu")
    with without_weights():
        plain, theirs = nets["ErnieForMaskedLM"].build(ErnieConfig()), transformers.ErnieForMaskedLM(transformers.ErnieConfig())
        ours = nets["ErnieForMaskedLM"].build(released)
        same = transformers.ErnieForMaskedLM(transformers.ErnieConfig(vocab_size=18000, max_position_embeddings=513, hidden_act="relu"))
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in theirs.parameters()) == 109_514_298
    written = to_theirs(nets["ErnieForMaskedLM"].format("transformers").rules(released), ours.state_dict())
    assert {k: v.shape for k, v in written.items()} == {
        k: v.shape for k, v in same.state_dict().items() if not k.startswith("cls.predictions.decoder")}
