"""What stands beside a vocabulary: tokenizer_config.json, special_tokens_map.json and added_tokens.json.

What becomes of each key is in `keys`. Tokens are added as transformers 5 adds them: first those of `added_tokens_decoder` (or of
added_tokens.json) by id, then the roles, then the extra ones, each only where the vocabulary lacks it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from ..errors import UserError, raise_problems
from ..keys import check_keys, read_json, shown
from . import keys
from .styles import ALBERT, BERT, CLIP, GPT1, GPT2, PLAIN, ROBERTA, ROLES, T5, XLNET, Style

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
OURS = "polymodal"

CLASSES: Mapping[str, Style] = {
    **dict.fromkeys(("BertTokenizer", "ElectraTokenizer", "DistilBertTokenizer", "MobileBertTokenizer"), BERT),
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer"), ROBERTA),
    "GPT2Tokenizer": GPT2, "CLIPTokenizer": CLIP, "T5Tokenizer": T5, "AlbertTokenizer": ALBERT, "XLNetTokenizer": XLNET,
    "OpenAIGPTTokenizer": GPT1,
}
"""The classes of transformers whose defaults are those of a style here."""
_ANY = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
"""Classes for every vocabulary, which have no defaults and know no options of the normalizer. ("Fast" is cut off.)"""
_EXTRA: Mapping[str, tuple[str, ...]] = {"XLNetTokenizer": ("<eop>", "<eod>")}
"""Special tokens without a name that a class adds."""
_BERT_DEFAULTS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}


@dataclass(frozen=True)
class Described:
    """The keys of the files, checked.

    Args:
        config: tokenizer_config.json, joined with special_tokens_map.json.
        others: special tokens with a name that is no role, such as ``image_token``.
        extra: special tokens without a name; None where the files do not speak of them.
        listed: tokens by id.
        where: the directory, for messages.
    """

    config: Mapping[str, Any]
    others: tuple[str | AddedToken, ...] = ()
    extra: tuple[str | AddedToken, ...] | None = None
    listed: Mapping[int, AddedToken] = field(default_factory=dict[int, AddedToken])
    where: str = ""

    @cached_property
    def cls(self) -> str:
        """The class of transformers, without "Fast"; empty where none is named."""
        return str(self.config.get("tokenizer_class") or "").removesuffix("Fast")

    @property
    def style(self) -> Style | None:
        """The style of the class, where it has one."""
        return CLASSES.get(self.cls)

    @property
    def ours(self) -> bool:
        """`Tokenizer.save` wrote it: every role is named, and tokenizer.json holds the rest."""
        return OURS in self.config

    @cached_property
    def named(self) -> dict[str, str | AddedToken | None]:
        """The roles that the files speak of; None takes one away."""
        return {key.removesuffix("_token"): None if self.config[key] is None else _token(self.config[key], f"{self.where}: {key}")
                for key in keys.ROLE_KEYS if key in self.config}

    # ------------------------------------------------------------------ tokens

    def add_to(self, pipeline: Pipeline) -> None:
        """Add the tokens that the pipeline lacks, and give the listed ones their flags."""
        if (number := self.config.get("unk_id")) is not None and (own := unknown(pipeline)) and pipeline.token_to_id(own) != number:
            raise UserError(f"{self.where}: unk_id in {CONFIG} is {shown(number)}, the model's is {pipeline.token_to_id(own)}: "
                            "they do not belong together")
        has = {repr(token) for token in pipeline.get_added_tokens_decoder().values()}
        pipeline.add_tokens([token for _, token in sorted(self.listed.items()) if repr(token) not in has])
        raise_problems([f"{token.content!r} is listed with id {i}, the vocabulary makes it {pipeline.token_to_id(token.content)}"
                        for i, token in self.listed.items() if pipeline.token_to_id(token.content) != i][:4],
                       f"the added tokens in {self.where} and its vocabulary do not belong together")
        known = {token.content for token in pipeline.get_added_tokens_decoder().values()}
        own = () if self.style is None else (token for role, token in self.style.roles.items()
                                             if role not in self.named and pipeline.token_to_id(token) is not None)
        for token in (*self.named.values(), *own, *self.others, *self._extra()):
            if token is not None and _content(token) not in known:
                added = AddedToken(token, special=True, normalized=False) if isinstance(token, str) else token
                added.special = True
                pipeline.add_tokens([added])
                known.add(_content(token))

    def _extra(self) -> tuple[str | AddedToken, ...]:
        """Special tokens without a name: those that the files list, else the class's own."""
        if self.extra is not None:
            return self.extra
        if self.style is T5:
            return tuple(f"<extra_id_{i}>" for i in range(self.count("extra_ids", T5.sentinels)))
        return _EXTRA.get(self.cls, ())

    def roles(self, pipeline: Pipeline, style: Style) -> dict[str, str]:
        """Each role's token: the one that is named, else the class's where the vocabulary has it."""
        named = {role: _content(token) for role, token in self.named.items() if token is not None}
        whole = self.ours or self.cls in _ANY or style is PLAIN
        found = (named or dict(style.roles)) if whole else {**style.roles, **named}
        found = {role: token for role, token in found.items() if pipeline.token_to_id(token) is not None}
        if not self.ours and "unk" not in found and (own := unknown(pipeline)) is not None:
            found["unk"] = own
        return {role: found[role] for role in ROLES if role in found and self.named.get(role, "") is not None}

    # ------------------------------------------------------------------ options

    def bare(self, file: Path, styles: tuple[Style, ...], found: Style) -> Style:
        """The style of a bare vocabulary file: the class's if it has one, else `found`, by the tokens.

        Raises:
            UserError: the class reads such a file otherwise, or a role has another token than the style's.
        """
        if self.cls and self.cls not in _ANY and self.style not in styles:
            classes = ", ".join(name for name, style in CLASSES.items() if style in styles)
            raise UserError(f"{file} is the vocabulary of a {self.cls}, which may cut texts otherwise than {classes}: load it in "
                            "transformers and save it, so that there is a tokenizer.json")
        style = self.style or found
        template = [token for token in style.roles.values() if f"{token}:" in style.single]
        self.check_roles(file, template, style.roles.get("unk"), style)
        return style

    def check_roles(self, file: Path, template: Collection[str | None], unk: str | None, style: Style | None = None) -> None:
        """Refuse roles that the class would build another template or model from than the file's.

        Args:
            file: the vocabulary.
            template: the special tokens around a text.
            unk: the model's token for what it does not know.
            style: what the vocabulary is read as, by default the class's.
        """
        style = style or self.style
        if style is None:
            return
        framing = {role for role, token in style.roles.items() if f"{token}:" in style.single and role in ("cls", "sep", "bos", "eos")}
        if {"cls", "sep"} <= framing:
            framing -= {"bos", "eos"}  # the same tokens; the template is made from the others
        named = {role: _content(token) for role, token in self.named.items() if token is not None}
        around = " and ".join(map(repr, template))
        raise_problems([f"{role}_token is {token!r}, it frames texts with {around}" for role, token in named.items()
                        if role in framing and token not in template], f"{self.where}: {CONFIG} and {file.name} do not belong together")
        if unk is not None and named.get("unk", unk) != unk:
            raise UserError(f"{self.where}: unk_token in {CONFIG} is {named['unk']!r}, the model in {file.name} has {unk!r}: "
                            "they do not belong together")

    def renamed(self, style: Style) -> Style:
        """The style with the tokens of the roles that are named; what has no role any more is no special token."""
        roles = {role: token for role, token in style.roles.items() if self.named.get(role, "") is not None}
        roles |= {role: _content(token) for role, token in self.named.items() if token is not None}
        gone = set(style.roles.values()) - set(roles.values())
        return replace(style, tokens=tuple(token for token in style.tokens if token not in gone), roles=roles)

    def apply_to(self, pipeline: Pipeline) -> None:
        """Make a pipeline from tokenizer.json obey the options of tokenizer_config.json, as the classes of transformers do.

        Raises:
            UserError: an option says something else than the file, and no class is known that would follow it.
        """
        if self.ours or self.cls in _ANY:
            return
        normal, words = pipeline.normalizer, pipeline.pre_tokenizer
        if isinstance(normal, normalizers.BertNormalizer):
            option = {**(_BERT_DEFAULTS if self.style is BERT else {}), **self.config}
            accents = option.get("strip_accents", normal.strip_accents)
            pipeline.normalizer = normalizers.BertNormalizer(
                clean_text=normal.clean_text, handle_chinese_chars=self.flag("tokenize_chinese_chars", normal.handle_chinese_chars, option),
                strip_accents=None if accents is None else self.flag("strip_accents", True, option),
                lowercase=self.flag("do_lower_case", normal.lowercase, option))
        if isinstance(words, pre_tokenizers.ByteLevel):
            default = False if self.style in (GPT2, ROBERTA) else words.add_prefix_space
            pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=self.flag("add_prefix_space", default),
                                                              trim_offsets=words.trim_offsets, use_regex=words.use_regex)
        self.check_options(pipeline)

    def check_options(self, pipeline: Pipeline) -> None:
        """Refuse options that a finished pipeline is seen not to follow."""
        wrong = [(name, said) for name, said, does in self._seen(pipeline) if said != does]
        raise_problems([f"{name} is {str(said).lower()}, the vocabulary's files do the opposite" for name, said in wrong],
                       f"{self.where}: {CONFIG} and the vocabulary do not belong together")

    def _seen(self, pipeline: Pipeline) -> Iterator[tuple[str, bool, bool]]:
        """Options that are given, and whether the pipeline is seen to do what they say."""
        normal: Any = pipeline.normalizer
        accent = "e\N{COMBINING ACUTE ACCENT}"
        letters = {normal.normalize_str(text) for text in ("\N{LATIN SMALL LETTER E WITH ACUTE}", accent)} if normal else {accent}
        does = {"do_lower_case": normal is not None and normal.normalize_str("A") == "a", "strip_accents": letters == {"e"},
                "keep_accents": letters != {"e"}, "add_prefix_space": _spaced(pipeline)}
        for name, value in does.items():
            if self.config.get(name) is not None:
                yield name, self.flag(name, default=value), value

    def flag(self, name: str, default: bool, config: Mapping[str, Any] | None = None) -> bool:
        """An option that is true or false; null stands for the default."""
        value = (self.config if config is None else config).get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {name} in {CONFIG} is {shown(value)}, expected true or false")
        return value

    def count(self, name: str, default: int) -> int:
        """An option that counts something."""
        value = self.config.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != value // 1:
            raise UserError(f"{self.where}: {name} in {CONFIG} is {shown(value)}, expected a whole number")
        return int(value)

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        """An option with one of some values."""
        value = self.config.get(name)
        if value is not None and value not in choices:
            raise UserError(f"{self.where}: {name} in {CONFIG} is {shown(value)}, expected {' or '.join(choices)}")
        return value or default


def read_described(folder: Path) -> Described:
    """Read what stands beside the vocabulary in a directory; there may be nothing.

    Raises:
        UserError: a key, or a value of it, that may change ids or texts and is not known here.
    """
    found = {name: read_json(folder / name) if (folder / name).is_file() else {} for name in (CONFIG, SPECIAL, ADDED)}
    config, special = found[CONFIG], found[SPECIAL]
    for name, record, table in ((CONFIG, config, keys.TOKENIZER_CONFIG), (SPECIAL, special, keys.SPECIAL_TOKENS_MAP)):
        check_keys({k: v for k, v in record.items() if not _is_other(k, v)}, table, str(folder / name))
    where = str(folder)
    check_keys(_object(config.get(OURS, {}), f"{where}: {OURS} in {CONFIG}"), keys.OURS, f"{where}: {OURS} in {CONFIG}")
    inputs = config.get("model_input_names")
    if inputs is not None and not (isinstance(inputs, list) and all(isinstance(name, str) for name in inputs)):
        raise UserError(f"{where}: model_input_names in {CONFIG} is {shown(inputs)}, expected a list of names")
    # transformers reads the older file only where tokenizer_config.json does not list the tokens
    joined = {**special, **config} if "added_tokens_decoder" in config else {**config, **special}
    others = [value for record in (config, special) for name, value in record.items() if _is_other(name, value)]
    extra: list[Any] | None = None
    for record in (config, special):
        for name in ("model_specific_special_tokens", "extra_special_tokens", "additional_special_tokens"):
            value = record.get(name)
            if isinstance(value, dict):
                others += value.values()
            elif isinstance(value, list):
                extra = [*(extra or []), *value]
            elif value is not None:
                raise UserError(f"{where}: {name} is {shown(value)}, expected a list of tokens, or an object of them by name")
    apart, more = ([_token(value, f"{where}: special tokens") for value in values] for values in (others, extra or []))
    listed: dict[int, AddedToken] = {}
    # transformers 5 forgets here what has the older name additional_special_tokens; it is meant, and transformers 4 knew it
    names = {_content(_token(joined[key], key)) for key in keys.ROLE_KEYS if joined.get(key) is not None}
    names |= {_content(token) for token in (*apart, *more)}
    if (decoder := config.get("added_tokens_decoder")) is not None:
        for i, value in _object(decoder, f"{where}: added_tokens_decoder").items():
            token = _token(value, f"{where}: added_tokens_decoder")
            if not str(i).isdecimal() or isinstance(token, str):
                raise UserError(f"{where}: added_tokens_decoder has {shown({i: value})}, expected a token's flags by its id")
            listed[int(i)] = token
    for content, i in found[ADDED].items():
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise UserError(f"{where}: {ADDED} has {shown({content: i})}, expected a token and its id")
        if i in listed and listed[i].content != content:
            raise UserError(f"{where}: id {i} is {content!r} in {ADDED} and {listed[i].content!r} in {CONFIG}: they do not belong together")
        listed.setdefault(i, AddedToken(content, special=content in names, normalized=content not in names))
    return Described(joined, tuple(apart), None if extra is None else tuple(more), listed, where)


def token_flags(record: Mapping[str, Any], what: str) -> None:
    """Refuse an added token with keys or values that are not known."""
    check_keys(record, keys.ADDED_TOKEN, what)
    for name in ("lstrip", "rstrip", "single_word", "normalized", "special"):
        if not isinstance(record.get(name, False), bool):
            raise UserError(f"{what}: {name} of {record.get('content')!r} is {shown(record[name])}, expected true or false")


def _is_other(name: str, value: Any) -> bool:
    """Whether a key is a special token under a name of its own, such as ``image_token``."""
    return name.endswith("_token") and name not in keys.TOKENIZER_CONFIG and isinstance(value, (str, dict))


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is {shown(value)}, expected an object")
    return value


def _token(value: Any, what: str) -> str | AddedToken:
    """A token of a JSON file: a string, or an object with its flags."""
    if isinstance(value, str):
        return value
    record = _object(value, what)
    token_flags(record, what)
    if not isinstance(record.get("content"), str):
        raise UserError(f"{what}: {shown(record)} has no content, expected a token")
    return AddedToken(**{name: flag for name, flag in record.items() if name not in ("id", "__type")})


def _content(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def unknown(pipeline: Pipeline) -> str | None:
    """The token that a model itself gives for what it does not know."""
    model: Any = pipeline.model
    if not isinstance(model, models.Unigram):
        return getattr(model, "unk_token", None)
    number = json.loads(pipeline.to_str())["model"]["unk_id"]  # the class does not show it
    return None if number is None else pipeline.id_to_token(number)


def _spaced(pipeline: Pipeline) -> bool:
    """Whether the pipeline puts a space in front of a text."""
    words: Any = pipeline.pre_tokenizer
    pieces = words.pre_tokenize_str("a") if words is not None else []
    return bool(pieces) and pieces[0][0].startswith(("Ġ", "▁"))
