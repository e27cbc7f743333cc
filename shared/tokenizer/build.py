"""Pipelines of the `tokenizers` library from plain vocabularies: one function per kind of vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import UserError
from .styles import FIRST, SECOND, Style, Template

Merges = Sequence[tuple[str, str]]
_CLIP_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def bert_normalizer(lowercase: bool, strip_accents: bool | None, chinese: bool) -> normalizers.Normalizer:
    """BERT's cleaning: control characters out, Chinese characters set apart, case and accents folded."""
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase)


def word_piece(vocab: Mapping[str, int], unk: str, *, lowercase: bool, strip_accents: bool | None, chinese: bool) -> Tokenizer:
    """BERT's WordPiece."""
    pipeline = Tokenizer(models.WordPiece(dict(vocab), unk_token=unk, max_input_chars_per_word=100))
    pipeline.normalizer = bert_normalizer(lowercase, strip_accents, chinese)
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.decoder = decoders.WordPiece(prefix="##")
    return pipeline


def byte_bpe(vocab: Mapping[str, int], merges: Merges, *, add_prefix_space: bool = False,
             normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """GPT-2's byte-level BPE."""
    pipeline = Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges), fuse_unk=False))
    if normalizer is not None:
        pipeline.normalizer = normalizer
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    pipeline.decoder = decoders.ByteLevel()
    return pipeline


def clip_bpe(vocab: Mapping[str, int], merges: Merges, unk: str | None = None) -> Tokenizer:
    """CLIP's byte-level BPE over lower-case words, whose last piece ends with ``</w>``."""
    model = models.BPE(vocab=dict(vocab), merges=list(merges), end_of_word_suffix="</w>", continuing_subword_prefix="", fuse_unk=False,
                       unk_token=unk)
    pipeline = Tokenizer(model)
    pipeline.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    pipeline.decoder = clip_decoder()
    return pipeline


def clip_decoder() -> decoders.Decoder:
    """Bytes to text, ``</w>`` to spaces."""
    return decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])


def gpt1_bpe(vocab: Mapping[str, int], merges: Merges) -> Tokenizer:
    """GPT-1's BPE over lower-case words."""
    pipeline = Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges), unk_token="<unk>", end_of_word_suffix="</w>",
                                    continuing_subword_prefix="", fuse_unk=False))
    pipeline.normalizer = bert_normalizer(True, None, True)
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.decoder = decoders.BPEDecoder(suffix="</w>")
    return pipeline


def words(vocab: Mapping[str, int], unk: str, *, lowercase: bool, strip_accents: bool, split_punctuation: bool) -> Tokenizer:
    """Words between white space."""
    pipeline = Tokenizer(models.WordLevel(dict(vocab), unk_token=unk))
    _fold(pipeline, lowercase, strip_accents)
    apart = [pre_tokenizers.Punctuation("isolated")] if split_punctuation else []
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), *apart])
    return pipeline


def characters(vocab: Mapping[str, int], unk: str, *, lowercase: bool, strip_accents: bool) -> Tokenizer:
    """Single characters, white space included."""
    pipeline = Tokenizer(models.WordLevel(dict(vocab), unk_token=unk))
    _fold(pipeline, lowercase, strip_accents)
    pipeline.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    pipeline.decoder = decoders.Fuse()
    return pipeline


def _fold(pipeline: Tokenizer, lowercase: bool, strip_accents: bool) -> None:
    steps: list[normalizers.Normalizer] = [normalizers.NFC()]
    if strip_accents:
        steps += [normalizers.NFD(), normalizers.StripAccents()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    pipeline.normalizer = normalizers.Sequence(steps)


# ---------------------------------------------------------------------- SentencePiece

@dataclass(frozen=True)
class Pieces:
    """What a SentencePiece model holds."""

    pieces: list[tuple[str, float]]
    controls: list[str]
    """Control and user-defined symbols."""
    unk: int
    unigram: bool
    bytes: bool
    """Unknown characters are spelled as bytes."""
    charsmap: bytes
    squeeze: bool
    """White space at the ends goes, runs of it become one space."""
    prefix: bool
    """A space is put in front of the text."""


def parse_spiece(data: bytes, name: str) -> Pieces:
    """Read the bytes of a `spiece.model`."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise UserError(f"{name} is not a SentencePiece model: expected the file that sentencepiece's trainer writes") from None
    unknown = [i for i, piece in enumerate(proto.pieces) if piece.type == piece.UNKNOWN]
    kind = proto.trainer_spec.model_type
    if not unknown or kind not in (1, 2):
        raise UserError(f"{name} is not a SentencePiece model of type unigram or bpe")
    rules = proto.normalizer_spec
    return Pieces(pieces=[(p.piece, float(str(np.float32(p.score)))) for p in proto.pieces],
                  controls=[p.piece for p in proto.pieces if p.type in (p.CONTROL, p.USER_DEFINED)],
                  unk=unknown[0], unigram=kind == 1, bytes=proto.trainer_spec.byte_fallback, charsmap=rules.precompiled_charsmap,
                  squeeze=rules.remove_extra_whitespaces, prefix=rules.add_dummy_prefix)


def sentence_piece(pieces: Pieces, before: Iterable[normalizers.Normalizer] = (), extra: Iterable[str] = ()) -> Tokenizer:
    """The pipeline of a SentencePiece model, as transformers converts it.

    Ids equal those of the sentencepiece library, except where combining marks follow rare letters (`tokenizers`
    normalises by grapheme) and where two segmentations have the same score, as in a run of one character.

    Args:
        pieces: the model.
        before: normalisers that run before the model's own.
        extra: tokens behind the model's own (T5's sentinels).
    """
    known = {piece for piece, _ in pieces.pieces}
    vocab = pieces.pieces + [(token, 0.0) for token in extra if token not in known]
    if pieces.unigram:
        model: Any = models.Unigram(vocab, unk_id=pieces.unk, byte_fallback=pieces.bytes)
    else:
        ids = {piece: i for i, (piece, _) in enumerate(vocab)}
        model = models.BPE(vocab=ids, merges=_piece_merges(pieces), unk_token=vocab[pieces.unk][0], fuse_unk=True,
                           byte_fallback=pieces.bytes)
    pipeline = Tokenizer(model)
    steps = list(before)
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.squeeze and not pieces.prefix:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        pipeline.normalizer = normalizers.Sequence(steps)
    scheme = "always" if pieces.prefix else "never"
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    apart = [pre_tokenizers.WhitespaceSplit()] if pieces.squeeze and pieces.prefix else []
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([*apart, space])
    decode = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    pipeline.decoder = decoders.Sequence([decoders.ByteFallback(), decode]) if pieces.bytes else decode
    return pipeline


def _piece_merges(pieces: Pieces) -> list[tuple[str, str]]:
    """The merges behind a BPE model's pieces: the best-scored piece first, then the parts with the lowest ids."""
    skip = set(pieces.controls) | {pieces.pieces[pieces.unk][0]}
    ids = {piece: i for i, (piece, _) in enumerate(pieces.pieces) if piece not in skip}
    found: list[tuple[float, int, int, str, str]] = []
    for piece, score in pieces.pieces:
        if piece in ids:
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in ids and right in ids:
                    found.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


# ---------------------------------------------------------------------- special tokens

def dress(pipeline: Tokenizer, style: Style) -> None:
    """Give a pipeline the special tokens and the template of a style.

    The mask token of RoBERTa, ALBERT and XLNet swallows the space before it, as in the tokenizers their authors
    published (transformers 5 builds RoBERTa's from bare vocabulary files without this).
    """
    special = list(dict.fromkeys([*style.tokens, *style.roles.values(), *style.sentinel_tokens]))
    mask = style.roles.get("mask")
    pipeline.add_special_tokens([AddedToken(token, special=True, normalized=False, lstrip=style.wide_mask and token == mask)
                                 for token in special])
    used = [(token, pipeline.token_to_id(token)) for token in special if f"{token}:" in style.single + style.pair]
    if used:
        pipeline.post_processor = processors.TemplateProcessing(single=style.single, pair=style.pair, special_tokens=used)


def templates(pipeline: Tokenizer) -> tuple[Template, Template]:
    """The templates of a pipeline, read off what its post-processor does to two known tokens."""
    # the post-processor carries the ids of its special tokens, so any other vocabulary can probe it;
    # the two ids are beyond those of any vocabulary
    a, b = 2**31 - 2, 2**31 - 1
    probe = Tokenizer(models.WordLevel({"x": a, "y": b}, unk_token="x"))
    if pipeline.post_processor is not None:
        probe.post_processor = pipeline.post_processor
    out: list[Template] = []
    for second in (None, "y"):
        framed = probe.encode("x", second, add_special_tokens=True)
        out.append(Template(tuple((FIRST if i == a else SECOND if i == b else i, kind) for i, kind in zip(framed.ids, framed.type_ids))))
    if sum(i == FIRST for i, _ in out[0].parts) != 1 or sorted(i for i, _ in out[1].parts if i < 0) != [SECOND, FIRST]:
        raise UserError("the tokenizer's template does not hold each text exactly once")
    return out[0], out[1]
