"""Text to token ids and back: one class for every vocabulary the families use.

A `Tokenizer` is a `tokenizers` pipeline (WordPiece, byte-level BPE, SentencePiece, words or
characters) plus what a family adds around it: special tokens by role, templates, padding and
truncation. `load` reads the files that transformers, open_clip and sentencepiece write, `train`
makes new ones, `save` writes a directory that transformers loads. Nothing in a tokenizer directory
is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import tokenizers

from ..errors import UserError
from ..unicode import half_character
from .clean import CLEANERS, clean_up, spans
from .known import KnownWords, word_pattern
from .styles import ROLES, STYLES, Framing, Style, Template

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KINDS", "ROLES", "STYLES", "Framing", "Style", "Template", "Tokenizer"]

KINDS = ("unigram", "bpe", "wordpiece", "byte-bpe", "word", "char")


@dataclass(frozen=True, slots=True)
class _Words:
    """Per token id: does it start a word, and does the token after it start one."""

    starts: npt.NDArray[np.bool_] = field(repr=False)
    ends: npt.NDArray[np.bool_] = field(repr=False)


class Tokenizer:
    """A vocabulary with its special tokens. Picklable, so it can live in a loader's workers.

    Attributes:
        framing: roles, templates, padding and truncation.
        spiece: the SentencePiece model the vocabulary came from (bytes of `spiece.model`), or None.
    """

    def __init__(self, pipeline: tokenizers.Tokenizer, framing: Framing, spiece: bytes | None = None) -> None:
        """Wrap a `tokenizers` pipeline; `load` and `train` are the usual ways to get a tokenizer."""
        pipeline.no_padding()
        pipeline.no_truncation()
        self._pipeline = pipeline
        self.framing = framing
        self.spiece = spiece
        self._clean = CLEANERS[framing.clean] if framing.clean else None
        for role, token in framing.roles.items():
            if pipeline.token_to_id(token) is None:
                raise UserError(f"the tokenizer names {token!r} as its {role} token, which is not in the vocabulary: "
                                "the files do not belong together")
        pattern = word_pattern(pipeline)
        self._encode_many = self._encode_whole if pattern is None else KnownWords(pattern, self._encode_whole)

    # ------------------------------------------------------------------ files

    @classmethod
    def load(cls, source: str | Path) -> Tokenizer:
        """Read a tokenizer.

        Args:
            source: a directory or file (`tokenizer.json`, `vocab.txt`, `vocab.json` + `merges.txt`,
                `spiece.model`, `open_clip_config.json`), a run directory, ``"open_clip"`` for the
                vocabulary that open_clip brings along, or a model's id on the Hugging Face hub.
        """
        from . import files

        return cls(*files.read(source))

    @classmethod
    def train(cls, texts: Iterable[str], kind: str, size: int, *, style: Style | None = None, lowercase: bool = False,
              strip_accents: bool | None = None, chinese: bool = True, coverage: float = 0.9995, min_count: int | None = None,
              split_punctuation: bool = False, max_length: int | None = None) -> Tokenizer:
        """Learn a vocabulary. The same texts in the same order give the same vocabulary.

        Args:
            texts: the corpus; read once.
            kind: ``unigram`` and ``bpe`` (SentencePiece), ``wordpiece``, ``byte-bpe``, ``word`` or ``char``.
            size: number of tokens, special tokens included.
            style: special tokens and templates; by default BERT's for wordpiece, GPT-2's for byte-bpe,
                ALBERT's for unigram and bpe, and plain ones for word and char.
            lowercase: fold case.
            strip_accents: remove accents; None means where `lowercase` does (as BERT has it).
            chinese: every Chinese character is a word of its own (wordpiece only, as BERT has it).
            coverage: share of the corpus' characters that the alphabet must cover; rarer ones are unknown.
                Byte-level BPE covers everything.
            min_count: rarer words are unknown (word; default 1), rarer pairs are not merged (wordpiece, byte-bpe;
                default 2).
            split_punctuation: punctuation marks are words of their own (word only).
            max_length: longest input of the models the vocabulary is for.
        """
        from . import train as training

        wanted = training.Wanted(
            kind, size, style=style, lowercase=lowercase, strip_accents=strip_accents, chinese=chinese, coverage=coverage,
            min_count=min_count, split_punctuation=split_punctuation, max_length=max_length)
        return cls(*training.train(texts, wanted))

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` (and `spiece.model`).

        transformers' AutoTokenizer loads the directory, and `load` reads back the same tokenizer. Each
        file is replaced in one step.
        """
        from . import files

        files.write(Path(directory), self._pipeline, self.framing, self.spiece)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the pipeline's JSON text."""
        return _rebuild, (self._pipeline.to_str(), self.framing, self.spiece)

    def __repr__(self) -> str:
        """Kind of model, size and fingerprint."""
        return f"Tokenizer({type(self._pipeline.model).__name__}, vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"

    # ------------------------------------------------------------------ text -> ids

    def encode(self, text: str, *, pair: str | None = None, add_special_tokens: bool = True, max_length: int | None = None) -> list[int]:
        """Token ids of a text, or of a pair of texts.

        Args:
            text: the text.
            pair: a second text.
            add_special_tokens: frame the ids with the family's template.
            max_length: cut to this many ids, special tokens included (the longer text of a pair first).
        """
        return self.encode_batch([text], None if pair is None else [pair], add_special_tokens=add_special_tokens, max_length=max_length)[0]

    def encode_batch(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, add_special_tokens: bool = True,
                     max_length: int | None = None) -> list[list[int]]:
        """Token ids of many texts at once; arguments as in `encode`."""
        first, second = self._raw(texts, pairs, add_special_tokens, max_length)
        if not add_special_tokens:
            return first if second is None else [a + b for a, b in zip(first, second)]
        if second is None:
            template = self.framing.single
            return [template.ids(a) for a in first] if template.specials else first
        return [self.framing.pair.ids(a, b) for a, b in zip(first, second)]

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids without special tokens, and the span (start, end) of `text` each one came from."""
        cleaned = self._cleaned(text)
        encoded = self._pipeline.encode(cleaned, add_special_tokens=False)
        places: list[tuple[int, int]] = list(encoded.offsets)
        if cleaned != text:
            origin = spans(text, cleaned)
            places = [(origin[s][0], origin[e - 1][1]) if e > s else (0, 0) for s, e in places]
        return encoded.ids, places

    def __call__(self, texts: str | Sequence[str], pairs: str | Sequence[str] | None = None, *,
                 padding: bool | Literal["longest", "max_length"] = True, truncation: bool = True, max_length: int | None = None,
                 add_special_tokens: bool = True) -> dict[str, Tensor]:
        """Tensors for a model.

        Args:
            texts: one text or several.
            pairs: their second texts.
            padding: to the longest of the batch (True), or to `max_length`.
            truncation: cut to `max_length`.
            max_length: by default the longest input of the family's models, where it is known.
            add_special_tokens: frame the ids with the family's template.

        Returns:
            `input_ids` and `attention_mask` int64 [B, S], and `token_type_ids` where the family's models take them.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = [pairs] if isinstance(pairs, str) else None if pairs is None else list(pairs)
        limit = self.framing.max_length if max_length is None else max_length
        first, second = self._raw(texts, pairs, add_special_tokens, limit if truncation else None)
        template = self.framing.single if second is None else self.framing.pair
        if not add_special_tokens:
            template = Template(tuple(part for part in template.parts if part[0] < 0))
        rows = [template.ids(a, b) for a, b in zip(first, second or [None] * len(first))]
        types = [template.types(len(a), len(b)) for a, b in zip(first, second or [[]] * len(first))] if self.framing.type_ids else None

        width = max(map(len, rows), default=0)
        if padding == "max_length":
            if limit is None:
                raise UserError("padding='max_length' needs a max_length: this tokenizer does not know its models' longest input")
            width = max(width, limit)
        elif not padding and any(len(row) != width for row in rows):
            raise UserError("texts of different lengths make no tensor: pass padding=True")
        filled = self.pad_id if self.pad_id is not None else self.framing.pad_fallback
        out = {"input_ids": self._stack(rows, width, filled), "attention_mask": self._stack([[1] * len(row) for row in rows], width, 0)}
        if types is not None:
            out["token_type_ids"] = self._stack(types, width, self.framing.pad_type)
        return out

    def _stack(self, rows: list[list[int]], width: int, filled: int) -> Tensor:
        import torch  # here, so that workers and commands that only encode start fast

        out = torch.full((len(rows), width), filled, dtype=torch.long)
        for row, target in zip(rows, out):
            if row:
                target[slice(width - len(row), None) if self.padding_side == "left" else slice(len(row))] = torch.tensor(row)
        return out

    def _encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        """What the pipeline makes of texts, without special tokens."""
        # encode_batch_fast leaves out offsets; older releases of tokenizers lack it
        encode = getattr(self._pipeline, "encode_batch_fast", self._pipeline.encode_batch)
        return [found.ids for found in encode(texts, add_special_tokens=False)]

    def _cleaned(self, text: str) -> str:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  (callers without a type checker)
            raise UserError(f"a tokenizer takes strings, got {type(text).__name__}")
        if not text.isascii() and (reason := half_character(text)):
            raise UserError(f"a text holds {reason}: mend it or take it out")
        return text if self._clean is None else self._clean(text)

    def _raw(self, texts: Sequence[str], pairs: Sequence[str] | None, add_special_tokens: bool,
             max_length: int | None) -> tuple[list[list[int]], list[list[int]] | None]:
        """Ids of the texts and their pairs without special tokens, cut so that they fit with them."""
        if isinstance(texts, str):
            raise UserError("encode_batch takes a list of texts, got one string: use encode")
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(f"got {len(texts)} texts and {len(pairs)} second texts: they must be as many")
        first = self._encode_many([self._cleaned(t) for t in texts])
        second = None if pairs is None else self._encode_many([self._cleaned(t) for t in pairs])
        if max_length is None:
            return first, second
        template = self.framing.single if pairs is None else self.framing.pair
        room = max_length - (template.specials if add_special_tokens else 0)
        if room < 0:
            raise UserError(f"max_length {max_length} does not hold the special tokens: use at least {template.specials}")
        if second is None:
            return [self._cut(a, room) for a in first], None
        for i, (a, b) in enumerate(zip(first, second)):
            keep_a, keep_b = longest_first(len(a), len(b), room)
            first[i], second[i] = self._cut(a, keep_a), self._cut(b, keep_b)
        return first, second

    def _cut(self, ids: list[int], keep: int) -> list[int]:
        if len(ids) <= keep:
            return ids
        return ids[len(ids) - keep:] if self.framing.truncation_side == "left" else ids[:keep]

    # ------------------------------------------------------------------ ids -> text

    def decode(self, ids: Sequence[int] | Tensor, skip_special_tokens: bool = True,
               clean_up_tokenization_spaces: bool | None = None) -> str:
        """The text of token ids [S]; arguments as in `decode_batch`."""
        return self.decode_batch([ids], skip_special_tokens, clean_up_tokenization_spaces)[0]

    def decode_batch(self, rows: Iterable[Sequence[int] | Tensor], skip_special_tokens: bool = True,
                     clean_up_tokenization_spaces: bool | None = None) -> list[str]:
        """The texts of many rows of token ids.

        Args:
            rows: the ids.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: take away spaces before marks; by default what the tokenizer's files say.
        """
        plain = [[int(i) for i in (row if isinstance(row, (list, tuple)) else np.asarray(row))] for row in rows]
        if any(i < 0 for row in plain for i in row):
            raise UserError("token ids are not negative: take labels of -100 out before decoding")
        texts = list(self._pipeline.decode_batch(plain, skip_special_tokens=skip_special_tokens))
        if getattr(self._pipeline.model, "end_of_word_suffix", None):
            texts = [text.strip() for text in texts]  # the mark of a word's end becomes a space, also behind the last word
        cleaned = self.framing.clean_up if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        return [clean_up(text) for text in texts] if cleaned else texts

    def id_to_token(self, token_id: int) -> str | None:
        """The token with this id, or None."""
        return self._pipeline.id_to_token(token_id) if token_id >= 0 else None

    def show(self, ids: Iterable[int]) -> str:
        """The tokens of ids [S] as they stand in the vocabulary, special ones too, with spaces between."""
        return " ".join(self.id_to_token(int(i)) or f"<{i}>" for i in ids)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        return self._pipeline.token_to_id(token)

    def whole_words(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor) -> npt.NDArray[np.bool_]:
        """Which token ids [S] start a word; the others continue the one before.

        A special token counts as a word of its own. Where the vocabulary marks words by their spaces
        (SentencePiece, byte-level BPE), punctuation continues the word it is attached to; BERT's
        vocabularies make it, and every Chinese character, a word.
        """
        rows = np.asarray(ids, dtype=np.int64).reshape(-1)
        out = self._words.starts[rows]
        if len(rows):
            out[0] = True
            out[1:] |= self._words.ends[rows[:-1]]
        return out

    # ------------------------------------------------------------------ the vocabulary

    @cached_property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the largest id plus one."""
        return max(self._pipeline.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def __len__(self) -> int:
        """`vocab_size`."""
        return self.vocab_size

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, in the order of the ids."""
        return dict(sorted(self._pipeline.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]))

    def _role(self, role: str) -> int | None:
        token = self.framing.roles.get(role)
        return None if token is None else self._pipeline.token_to_id(token)

    unk_id = cached_property(lambda self: self._role("unk"))
    pad_id = cached_property(lambda self: self._role("pad"))
    cls_id = cached_property(lambda self: self._role("cls"))
    sep_id = cached_property(lambda self: self._role("sep"))
    mask_id = cached_property(lambda self: self._role("mask"))
    bos_id = cached_property(lambda self: self._role("bos"))
    eos_id = cached_property(lambda self: self._role("eos"))

    def need(self, what: str, *roles: str) -> tuple[int, ...]:
        """The ids of the tokens in `roles`, for `what` ("masking").

        Raises:
            UserError: there is no token in one of the roles; it names styles that have them all.
        """
        lacking = [role for role in roles if self._role(role) is None]
        if lacking:
            styles = [name for name, style in STYLES.items() if set(roles) <= set(style.roles)]
            raise UserError(f"{what} needs special tokens for {', '.join(roles)}; this tokenizer has no {' and no '.join(lacking)} token: "
                            f"train one with --style {' or '.join(styles[:3])}")
        return tuple(i for role in roles if (i := self._role(role)) is not None)

    def with_max_length(self, max_length: int | None) -> Tokenizer:
        """This tokenizer for a model whose longest input is known; it encodes the same ids."""
        return self if max_length is None else Tokenizer(self._pipeline, replace(self.framing, max_length=max_length), self.spiece)

    def framed(self, roles: Mapping[str, str], single: str, pair: str) -> Tokenizer:
        """This vocabulary with other tokens around a text and around a pair; those that it lacks come behind all others.

        Args:
            roles: special tokens by role, which take it from those that have it.
            single: the template of a text, and `pair` that of two, in the syntax of `Style`; their tokens are special.
            pair: see `single`.
        """
        from .build import dress, templates

        words = [part.rpartition(":")[0] for part in f"{single} {pair}".split()]
        tokens = tuple(dict.fromkeys(word for word in words if not word.startswith("$")))
        pipeline = tokenizers.Tokenizer.from_str(self._pipeline.to_str())
        dress(pipeline, Style(tokens=tokens, roles=roles, single=single, pair=pair))
        one, two = templates(pipeline)
        return Tokenizer(pipeline, replace(self.framing, roles={**self.framing.roles, **roles}, single=one, pair=two), self.spiece)

    def fitting(self, rows: int) -> Tokenizer:
        """This tokenizer, where a word table of `rows` rows has one for each of its entries; else a `UserError`."""
        if self.vocab_size > rows:
            raise UserError(f"the tokenizer has {self.vocab_size} entries, the model's word table {rows} rows: raise model.vocab_size, "
                            "give a trained model more rows (transformers' resize_token_embeddings), or pass the tokenizer that the model "
                            "was made for")
        return self

    def fitting_model(self, model: object) -> Tokenizer:
        """`fitting` for a network of any family: by `vocab_size` of its config, or of its text tower's."""
        config = getattr(model, "config", None)
        rows = getattr(getattr(config, "text_config", config), "vocab_size", None)
        return self if rows is None else self.fitting(rows)

    @property
    def padding_side(self) -> str:
        """``right`` or ``left``."""
        return self.framing.padding_side

    @property
    def max_length(self) -> int | None:
        """Longest input of the family's models, or None."""
        return self.framing.max_length

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of every special token, with or without a role."""
        added = {i for i, token in self._pipeline.get_added_tokens_decoder().items() if token.special}
        return frozenset(added | {i for role in ROLES if (i := self._role(role)) is not None})

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that determines the ids of a text; the same on every machine."""
        described: dict[str, Any] = json.loads(self._pipeline.to_str())
        parts: dict[str, Any] = {key: described.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        if described["model"]["type"] == "Unigram":
            # scores are single precision; tokenizers' JSON reader is off by the last bit of a double
            parts["model"]["vocab"] = [[piece, f"{score:.9g}"] for piece, score in described["model"]["vocab"]]
        framing = {"roles": {r: self._role(r) for r in sorted(self.framing.roles)}, "single": self.framing.single.parts,
                   "pair": self.framing.pair.parts, "clean": self.framing.clean}
        text = json.dumps({**parts, **framing}, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @cached_property
    def _words(self) -> _Words:
        from .words import word_rule

        starts, ends = np.ones(self.vocab_size, bool), np.ones(self.vocab_size, bool)
        rule = word_rule(json.loads(self._pipeline.to_str()))
        for token, i in self._pipeline.get_vocab(with_added_tokens=True).items():
            if i not in self.special_ids:
                starts[i], ends[i] = rule(token)
        return _Words(starts, ends)


def _rebuild(text: str, framing: Framing, spiece: bytes | None) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), framing, spiece)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each text of a pair keeps so that both fit into `room`: the longer one gives way.

    Where both must be cut they get half each, the second the odd token (as transformers has it).
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)
