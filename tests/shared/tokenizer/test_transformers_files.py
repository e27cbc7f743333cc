"""What stands in the tokenizer files that transformers writes counts here as it does there, or is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers
from polymodal.shared.errors import UserError
from polymodal.shared.keys import check_keys
from polymodal.shared.tokenizer import Tokenizer
from polymodal.shared.tokenizer.keys import ADDED_TOKEN, MODEL, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, TOKENIZER_JSON
from tokenizers import AddedToken, pre_tokenizers
from transformers import AlbertTokenizer, BertTokenizer, CLIPTokenizer, GPT2Tokenizer, RobertaTokenizer, T5Tokenizer, XLNetTokenizer

ROLES = ("unk", "bos", "eos", "pad", "mask", "sep", "cls")
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("Ġ", "a"), ("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t")]
BPE = [*LETTERS, *("".join(m) for m in MERGES)]
WORDS = ["cat", "dog", "a", "naive", "cafe", "x", "y", "he", "said", "##s", "##t", "'", ".", ",", "!", "?", "[", "]", "<", ">", "你", "好"]
PIECES = [("▁", -2.0), ("▁a", -2.5), ("▁cat", -3.0), *((c, -4.0) for c in "abcdefghinostuxy.,!?'<>[]▁é你" if c != "▁")]


def numbered(*tokens):
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def scored(*tokens):
    return [*((token, 0.0) for token in tokens), *PIECES]


MADE = {
    "bert": lambda: BertTokenizer(numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)),
    "bert-cased": lambda: BertTokenizer(numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "Cat", "café"), do_lower_case=False,
                                        tokenize_chinese_chars=False),
    "electra": lambda: transformers.models.auto.tokenization_auto.tokenizer_class_from_name("ElectraTokenizer")(
        numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS), strip_accents=False),
    "roberta": lambda: RobertaTokenizer(numbered("<s>", "<pad>", "</s>", "<unk>", *BPE, "<mask>"), MERGES),
    "roberta-space": lambda: RobertaTokenizer(numbered("<s>", "<pad>", "</s>", "<unk>", *BPE, "<mask>"), MERGES, add_prefix_space=True),
    "gpt2": lambda: GPT2Tokenizer(numbered(*BPE, "<|endoftext|>"), MERGES),
    "gpt2-pad": lambda: GPT2Tokenizer(numbered(*BPE, "<|endoftext|>"), MERGES, pad_token="<fill>"),
    "clip": lambda: CLIPTokenizer(numbered(*LETTERS, *(c + "</w>" for c in LETTERS), "th", "<|startoftext|>", "<|endoftext|>"),
                                  [("t", "h")]),
    "t5": lambda: T5Tokenizer(scored("<pad>", "</s>", "<unk>"), extra_ids=3),
    "albert": lambda: AlbertTokenizer(scored("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
    "xlnet": lambda: XLNetTokenizer(scored("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")),
}
"""Tiny tokenizers of every class of our architectures."""
FLAGS = {"<l>": {"lstrip": True}, "<r>": {"rstrip": True}, "<w>": {"single_word": True}, "<n>": {"normalized": True, "special": False},
         "New Word": {"normalized": False, "special": False}, "<x>": {"special": True}}
ADDED = [AddedToken(content, **{"normalized": False, **flags}) for content, flags in FLAGS.items()]
FORCED = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
TEXTS = [
    "", " ", "a cat", "a  cat ", " a\tcat\n", "He said, don't ! Cats .", "naïve café CAFÉ e\u0301", "你好 cat你", "emoji 😀👨‍👩‍👧🏽 x",
    "a\x00b\x07c\u200bd\ufeff\u00ad", "a <l> b", "a<l>b", "a  <l>  b", "a <r> b", "a  <r>  b", "a<w>b", "a <w> b", "<w>", "a <N> b <n> c",
    "a New Word b", "a new word b", "aNew Wordb", "<x><x> <x>", "a [MASK] b  <mask>  c", " <mask>", "[SEP] </s> <|endoftext|> <pad>",
    "x <fill> y", "<extra_id_0> a <extra_id_2>", "a\u00a0b\u3000c\u2028d", "``x'' y", "'s 'm n't 've",
]
assert len(set(TEXTS)) == len(TEXTS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory for each tokenizer, as it is, with added tokens (name + "+"), and with such that known words are kept beside ("-")."""
    folder = tmp_path_factory.mktemp("saved")
    for name, make in MADE.items():
        tokenizer = make()
        tokenizer.save_pretrained(folder / name)
        tokenizer.add_tokens([token for token in ADDED if not token.rstrip and " " not in token.content])
        tokenizer.save_pretrained(folder / f"{name}-")
        tokenizer.add_tokens(ADDED)
        tokenizer.save_pretrained(folder / f"{name}+")
    return folder


def edit(path, **changes):
    """Change keys of a JSON file; `...` takes one out."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record = {k: v for k, v in {**record, **changes}.items() if v is not ...}
    path.write_text(json.dumps(record), encoding="utf-8")
    return record


def assert_equal(folder, theirs):
    ours = Tokenizer.load(folder)
    assert [getattr(ours, f"{role}_id") for role in ROLES] == [getattr(theirs, f"{role}_token_id") for role in ROLES]
    assert ours.vocab_size == len(theirs)
    rows = [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [ours.encode(text, add_special_tokens=False) for text in TEXTS] == rows
    assert ours.encode_batch(TEXTS) == theirs(TEXTS)["input_ids"]
    assert ours.encode_batch(TEXTS, TEXTS[::-1]) == theirs(TEXTS, TEXTS[::-1])["input_ids"]
    framed = ours.encode_batch(TEXTS)
    for skip in (True, False):
        assert ours.decode_batch(framed, skip_special_tokens=skip) == [theirs.decode(row, skip_special_tokens=skip) for row in framed]
    return ours


def assert_same_ids(folder, theirs):
    ours = Tokenizer.load(folder)
    assert ours.vocab_size == len(theirs)
    assert ours.encode_batch(TEXTS) == theirs(TEXTS)["input_ids"]
    return ours


def test_every_key_that_is_written_is_in_a_table(saved):
    """Of every class, with and without added tokens, and of files that transformers 4 wrote."""
    for folder in sorted(saved.iterdir()):
        assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
        check_keys(json.loads((folder / "tokenizer_config.json").read_text()), TOKENIZER_CONFIG, folder.name)
        record = json.loads((folder / "tokenizer.json").read_text())
        check_keys(record, TOKENIZER_JSON, folder.name)
        check_keys(record["model"], MODEL, folder.name)
        for token in record["added_tokens"]:
            check_keys(token, ADDED_TOKEN, folder.name)
    assert set(AddedToken("x").__getstate__()) <= set(ADDED_TOKEN)
    names = transformers.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
    assert set(names) <= set(SPECIAL_TOKENS_MAP) <= set(TOKENIZER_CONFIG)
    assert [name for name in TOKENIZER_CONFIG if name in names] == names  # tokens are added in this order


@pytest.mark.parametrize("name", [f"{name}{more}" for name in MADE for more in ("", "+", "-")])
def test_what_transformers_saves_gives_the_same_ids_and_texts(saved, name):
    theirs = transformers.AutoTokenizer.from_pretrained(saved / name)
    ours = assert_equal(saved / name, theirs)
    added = theirs.added_tokens_decoder
    assert ours.special_ids >= {i for i, token in added.items() if token.special}


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "t5", "clip"])
@pytest.mark.parametrize("kept", ["class", "general class"])
def test_tokens_beside_a_file_that_lacks_them(saved, tmp_path, name, kept):
    """`added_tokens_decoder` and roles of tokenizer_config.json; a role that is named is added, as in transformers."""
    shutil.copytree(saved / name, tmp_path / "t")
    before = transformers.AutoTokenizer.from_pretrained(saved / name)
    first = len(before)
    listed = {**before.added_tokens_decoder, **{first + i: token for i, token in enumerate(ADDED)}}
    change = {} if kept == "class" else {"tokenizer_class": "PreTrainedTokenizerFast"}
    edit(tmp_path / "t" / "tokenizer_config.json", **change, pad_token="<fill>", extra_special_tokens=["<more>"],
         image_token="<image>", added_tokens_decoder={str(i): token.__getstate__() for i, token in listed.items()})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    general_clip = (name, kept) == ("clip", "general class")  # there transformers shows the ends of words as </w>
    ours = (assert_same_ids if general_clip else assert_equal)(tmp_path / "t", theirs)
    assert ours.pad_id == ours.token_to_id("<fill>") >= first + len(ADDED)
    assert ours.token_to_id("<more>") == theirs.convert_tokens_to_ids("<more>")
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.fingerprint == ours.fingerprint
    assert again.framing == ours.framing


def bare(name, folder):
    """The vocabulary files that transformers 4 wrote."""
    folder.mkdir(exist_ok=True)
    model = json.loads(MADE[name]().backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    if "merges" in model:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n")
    else:
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return len(tokens)


@pytest.mark.parametrize(("name", "reference"), [("bert", BertTokenizer), ("roberta", RobertaTokenizer), ("gpt2", GPT2Tokenizer),
                                                 ("clip", CLIPTokenizer)])
@pytest.mark.parametrize("place", ["added_tokens.json", "added_tokens_decoder"])
def test_tokens_beside_bare_vocabularies(tmp_path, name, reference, place):
    first = bare(name, tmp_path)
    if place == "added_tokens.json":
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": first + 1, "<n>": first}))
        mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": True}
        roles = {"extra_special_tokens": ["<x>"], "mask_token": mask}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    else:
        edit(tmp_path / "tokenizer_config.json", tokenizer_class=reference.__name__, mask_token="<mask>",
             added_tokens_decoder={str(first + i): token.__getstate__() for i, token in enumerate(ADDED)})
        if name == "roberta":  # its authors' mask takes the space before it, which transformers 5 forgets of bare files
            edit(tmp_path / "tokenizer_config.json", mask_token={"__type": "AddedToken", "content": "<mask>", "lstrip": True})
    assert_equal(tmp_path, reference.from_pretrained(tmp_path))
    if place == "added_tokens.json":  # under the older name, transformers 5 forgets that the token is special
        edit(tmp_path / "special_tokens_map.json", extra_special_tokens=..., additional_special_tokens=["<x>"])
        ours = assert_same_ids(tmp_path, reference.from_pretrained(tmp_path))
        assert ours.token_to_id("<x>") in ours.special_ids


@pytest.mark.parametrize("ends", [{"add_bos_token": True}, {"add_eos_token": True}, {"add_bos_token": True, "add_eos_token": True}])
def test_gpt2_with_tokens_around_a_text(saved, tmp_path, ends):
    bare("gpt2", tmp_path / "bare")
    edit(tmp_path / "bare" / "tokenizer_config.json", **ends)
    assert_equal(tmp_path / "bare", GPT2Tokenizer.from_pretrained(tmp_path / "bare"))
    shutil.copytree(saved / "gpt2", tmp_path / "fast")
    edit(tmp_path / "fast" / "tokenizer_config.json", **ends)
    assert_equal(tmp_path / "fast", GPT2Tokenizer.from_pretrained(tmp_path / "fast"))


@pytest.mark.parametrize(("name", "changes"), [
    ("bert", {"do_lower_case": False}), ("bert", {"do_lower_case": ...}), ("bert-cased", {"do_lower_case": ..., "strip_accents": ...}),
    ("bert-cased", {"strip_accents": True, "tokenize_chinese_chars": True}), ("roberta", {"add_prefix_space": True}),
    ("roberta-space", {"add_prefix_space": ...}), ("gpt2", {"add_prefix_space": True}), ("gpt2", {"pad_token": "<|endoftext|>"}),
    ("bert", {"mask_token": None}), ("t5", {"extra_ids": 5, "extra_special_tokens": ...}),
    ("t5", {"extra_ids": 5, "extra_special_tokens": ..., "additional_special_tokens": []}), ("xlnet", {"extra_special_tokens": ["<z>"]}),
    ("t5", {"extra_special_tokens": {"image_token": "<image>"}}), ("t5", {"padding_side": "left"}),
    *((name, {"clean_up_tokenization_spaces": True}) for name in ("bert", "t5", "gpt2", "clip")),
    ("gpt2", {"clean_up_tokenization_spaces": True, FORCED: True}),
])
def test_options_beside_tokenizer_json(saved, tmp_path, name, changes):
    shutil.copytree(saved / name, tmp_path / "t")
    edit(tmp_path / "t" / "tokenizer_config.json", **changes)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    ours = assert_equal(tmp_path / "t", theirs)
    assert (ours.padding_side, ours.framing.truncation_side) == (theirs.padding_side, theirs.truncation_side)
    if name != "xlnet":  # whose models take them, which transformers 5 forgets
        assert ours.framing.type_ids == ("token_type_ids" in theirs.model_input_names)
    ours.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").framing == ours.framing
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    rows = ours.encode_batch(TEXTS)
    assert name == "clip" or ours.decode_batch(rows) == [theirs.decode(row, skip_special_tokens=True) for row in rows]


def other(key, value):
    """Another value than this one, of a kind that may stand there."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value < 10**9 else 7
    if isinstance(value, list):
        return [*value, "<other>"]
    return "<other>" if key.endswith("_token") else True if value is None else f"{value}-x"


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "clip", "t5", "albert", "xlnet"])
def test_every_written_key_with_another_value_does_what_it_does_in_transformers(saved, tmp_path, name):
    """Honoured: equal ids and texts, or refused with its name. No effect: nothing changes there, too."""
    shutil.copytree(saved / name, tmp_path / "t")
    file = tmp_path / "t" / "tokenizer_config.json"
    written = json.loads(file.read_text())
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    more = {key: 3 for key, what in TOKENIZER_CONFIG.items() if what.fate == "no effect" and not key.endswith("_file")}
    more |= {"chat_template": "{{ x }}", "auto_map": {}, "chat_control_tokens": ["<|x|>"], "truncation_side": "left"}
    for key, value in {**more, **written}.items():
        if key in ("tokenizer_class", "backend", "device_map", "_commit_hash"):
            continue  # names of classes, and what is no text
        file.write_text(json.dumps({**written, key: other(key, value) if key in written else value}))
        try:
            Tokenizer.load(tmp_path / "t")
        except UserError as error:
            assert key in str(error) and TOKENIZER_CONFIG[key].fate != "no effect"
            continue
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
        assert_equal(tmp_path / "t", theirs)
        if TOKENIZER_CONFIG[key].fate == "no effect":
            assert theirs(TEXTS)["input_ids"] == plain(TEXTS)["input_ids"], key


def test_padding_and_truncation_of_the_file_name_sides_and_the_token(saved, tmp_path):
    shutil.copytree(saved / "gpt2-pad", tmp_path / "t")
    edit(tmp_path / "t" / "tokenizer_config.json", pad_token=..., tokenizer_class="PreTrainedTokenizerFast")
    pad = Tokenizer.load(tmp_path / "t").token_to_id("<fill>")
    edit(tmp_path / "t" / "tokenizer.json",
         padding={"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": pad, "pad_type_id": 0,
                  "pad_token": "<fill>"},
         truncation={"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0})
    ours = assert_equal(tmp_path / "t", theirs := transformers.AutoTokenizer.from_pretrained(tmp_path / "t"))
    assert (ours.pad_id, ours.padding_side, ours.framing.truncation_side) == (theirs.pad_token_id, "left", "left")


@pytest.mark.parametrize(("name", "file", "changes", "words"), [
    ("bert", "tokenizer_config.json", {"surprise": 1}, "key surprise = 1 is unknown"),
    ("bert", "tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens = True is not supported"),
    ("bert", "tokenizer_config.json", {"do_basic_tokenize": False}, "do_basic_tokenize = False"),
    ("bert", "tokenizer_config.json", {"never_split": ["x"]}, r"never_split = \['x'\]"),
    ("bert", "tokenizer_config.json", {"do_lower_case": "no"}, "do_lower_case .* expected true or false"),
    ("bert", "tokenizer_config.json", {"model_max_length": "long"}, "expected a whole number"),
    ("bert", "tokenizer_config.json", {"padding_side": "middle"}, "expected left or right"),
    ("bert", "tokenizer_config.json", {"pad_token": 3}, "pad_token is 3, expected an object"),
    ("bert", "tokenizer_config.json", {"pad_token": {"content": "[PAD]", "wide": True}}, "key wide = True is unknown"),
    ("bert", "tokenizer_config.json", {"pad_token": {"content": "[PAD]", "lstrip": 1}}, "lstrip of '.PAD.' is 1"),
    ("bert", "tokenizer_config.json", {"pad_token": {"lstrip": True}}, "has no content"),
    ("bert", "tokenizer_config.json", {"extra_special_tokens": 4}, "expected a list of tokens"),
    ("bert", "tokenizer_config.json", {"added_tokens_decoder": {"a": {"content": "x"}}}, "expected a token's flags by its id"),
    ("bert", "tokenizer_config.json", {"added_tokens_decoder": {"900": {"content": "<x>"}}}, "'<x>' is listed with id 900, the vocab"),
    ("bert", "tokenizer_config.json", {"model_input_names": 3}, "expected a list of names"),
    ("bert", "tokenizer_config.json", {"polymodal": 3}, "polymodal in tokenizer_config.json is 3, expected an object"),
    ("bert", "tokenizer_config.json", {"polymodal": {"clean": "mine"}}, "clean = 'mine' is not supported"),
    ("bert", "tokenizer_config.json", {"polymodal": {"pad_type": "x"}}, "pad_type .* expected a whole number"),
    ("t5", "tokenizer_config.json", {"sp_model_kwargs": {"alpha": 0.1, "nbest_size": -1}}, "sp_model_kwargs"),
    ("albert", "tokenizer_config.json", {"do_lower_case": False}, "do_lower_case is false, the vocabulary's files do the opposite"),
    ("albert", "tokenizer_config.json", {"keep_accents": True}, "keep_accents is true, the vocabulary's files do the opposite"),
    ("albert", "tokenizer_config.json", {"add_prefix_space": False}, "add_prefix_space is false, the vocabulary's files do the opposite"),
    ("bert", "special_tokens_map.json", {"surprise": 1}, "special_tokens_map.json: key surprise"),
    ("bert", "added_tokens.json", {"<x>": "9"}, "added_tokens.json has .* expected a token and its id"),
    ("bert", "tokenizer.json", {"surprise": 1}, "tokenizer.json is not a tokenizer"),
    ("bert", "tokenizer.json", {"pre_tokenizer": {"type": "BertPreTokenizer", "more": 2}}, "does not know pre_tokenizer.more = 2"),
])
def test_what_is_refused(saved, tmp_path, name, file, changes, words):
    shutil.copytree(saved / name, tmp_path / "t")
    edit(tmp_path / "t" / file, **changes)
    with pytest.raises(UserError, match=words) as error:
        Tokenizer.load(tmp_path / "t")
    assert "\n" not in str(error.value)


def test_a_bare_vocabulary_of_another_class_is_refused(tmp_path):
    bare("bert", tmp_path)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer")
    with pytest.raises(UserError, match="the vocabulary of a BertJapaneseTokenizer, which may cut texts otherwise than BertTokenizer"):
        Tokenizer.load(tmp_path)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="BertTokenizer", cls_token="<begin>")
    with pytest.raises(UserError, match=r"cls_token is '<begin>', it frames texts with '\[CLS\]' and '\[SEP\]'"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(("name", "changes"), [("gpt2", {"do_lower_case": True}), ("gpt2", {"strip_accents": True}),
                                               ("clip", {"add_prefix_space": True})])
def test_options_that_a_bare_vocabulary_does_not_follow(tmp_path, name, changes):
    bare(name, tmp_path)
    edit(tmp_path / "tokenizer_config.json", **changes)
    with pytest.raises(UserError, match=f"{next(iter(changes))} is true, the vocabulary's files do the opposite"):
        Tokenizer.load(tmp_path)


def test_a_file_alone_knows_its_own_unknown_token(saved, tmp_path):
    for name in ("bert", "t5", "albert"):
        shutil.copy(saved / name / "tokenizer.json", tmp_path / "tokenizer.json")
        assert Tokenizer.load(tmp_path / "tokenizer.json").unk_id == Tokenizer.load(saved / name).unk_id
    record = json.loads((saved / "bert" / "tokenizer.json").read_text())
    record["model"]["unk_token"] = "x"
    (tmp_path / "tokenizer.json").write_text(json.dumps({**record, "added_tokens": [], "post_processor": None}))
    assert Tokenizer.load(tmp_path).unk_id == record["model"]["vocab"]["x"]


def test_roles_of_the_class_are_special_though_no_file_says_so(saved, tmp_path):
    shutil.copytree(saved / "bert", tmp_path / "t")
    edit(tmp_path / "t" / "tokenizer.json", added_tokens=[])
    edit(tmp_path / "t" / "tokenizer_config.json", **{f"{role}_token": ... for role in ROLES})
    assert_equal(tmp_path / "t", transformers.AutoTokenizer.from_pretrained(tmp_path / "t"))


def test_files_of_older_libraries(saved, tmp_path):
    """Keys that the tokenizers library reads and writes no more; tokens listed in two files."""
    shutil.copytree(saved / "t5", tmp_path / "t")
    space = {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True, "str_rep": "\u2581"}
    edit(tmp_path / "t" / "tokenizer.json", decoder=space,
         pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]})
    assert_equal(tmp_path / "t", transformers.AutoTokenizer.from_pretrained(tmp_path / "t"))
    number = Tokenizer.load(tmp_path / "t").vocab_size
    edit(tmp_path / "t" / "added_tokens.json", **{"<a>": number})
    edit(tmp_path / "t" / "tokenizer_config.json", added_tokens_decoder={str(number): {"content": "<b>"}})
    with pytest.raises(UserError, match=f"id {number} is '<a>' in added_tokens.json and '<b>' in tokenizer_config.json"):
        Tokenizer.load(tmp_path / "t")


def test_saving_over_a_directory_leaves_no_tokens_of_another(saved, tmp_path):
    first = bare("bert", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": first}))
    ours = Tokenizer.load(tmp_path)
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint
    Tokenizer.load(saved / "gpt2").save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == Tokenizer.load(saved / "gpt2").fingerprint
