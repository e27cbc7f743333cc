"""Learning vocabularies: SentencePiece with its own trainer, everything else with that of `tokenizers`."""

from __future__ import annotations

import difflib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Pipeline

from ..errors import UserError
from . import build
from .styles import ALBERT, BERT, GPT2, PLAIN, Framing, Style

Parts = tuple[Pipeline, Framing, bytes | None]
_LONGEST_LINE = 1 << 20  # bytes; SentencePiece leaves longer ones out, so they are cut
_LONGEST_WORD = 100
"""Characters of the longest word that trainers of merges see; the time for one grows with its square. BERT reads longer ones as unknown."""
_LONGEST_RUN = 1000
"""The same without spaces for SentencePiece, which learns from whole lines of Chinese."""


@dataclass(frozen=True)
class Wanted:
    """What `Tokenizer.train` is asked for."""

    kind: str
    size: int
    style: Style | None
    lowercase: bool
    strip_accents: bool | None
    chinese: bool
    coverage: float
    min_count: int | None
    split_punctuation: bool
    max_length: int | None

    @property
    def accents_go(self) -> bool:
        """Whether accents are removed."""
        return self.lowercase if self.strip_accents is None else self.strip_accents


def train(texts: Iterable[str], wanted: Wanted) -> Parts:
    """Learn a vocabulary; see `Tokenizer.train`."""
    if wanted.kind not in _KINDS:
        near = difflib.get_close_matches(wanted.kind, _KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_KINDS)}"
        raise UserError(f"no kind of tokenizer is called {wanted.kind!r}; {hint}")
    learn, default = _KINDS[wanted.kind]
    style = wanted.style or default
    room = wanted.size - len(style.tokens) - style.sentinels
    if room < 1:
        raise UserError(f"a vocabulary of {wanted.size} does not hold the {wanted.size - room} special tokens: use a larger size")
    if not 0 < wanted.coverage <= 1:
        raise UserError(f"coverage is a share of the characters, got {wanted.coverage}: use a number above 0 and at most 1, such as 0.9995")
    if wanted.kind != "byte-bpe" and list(style.roles.values()).count(style.roles.get("unk", "")) != 1:
        raise UserError(f"a {wanted.kind} vocabulary needs an unknown token of its own, which this style lacks: "
                        "use kind byte-bpe or another style")
    failed: list[BaseException] = []
    try:
        pipeline, spiece = learn(_checked(texts, failed), wanted, style)
    except Exception:
        if failed:  # the trainers wrap what the corpus raised
            raise failed[0] from None
        raise
    build.dress(pipeline, style)
    single, pair = build.templates(pipeline)
    fallback = next((i for role in ("pad", "eos") if (i := pipeline.token_to_id(style.roles.get(role, ""))) is not None), 0)
    framing = Framing(roles=dict(style.roles), single=single, pair=pair, padding_side=style.padding_side, max_length=wanted.max_length,
                      type_ids=style.type_ids, pad_type=style.pad_type, pad_fallback=fallback)
    return pipeline, framing, spiece


def _checked(texts: Iterable[str], failed: list[BaseException]) -> Iterator[str]:
    """The texts; an error where none of them says anything. What goes wrong on the way is noted in `failed`."""
    empty = True
    try:
        if isinstance(texts, str):
            raise UserError("train takes several texts, got one string: pass a list")
        for text in texts:
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  (callers without a type checker)
                raise UserError(f"a corpus is made of strings, got {type(text).__name__}")
            if text and not text.isspace():
                empty = False
                yield text
        if empty:
            raise UserError("the corpus holds no text: nothing to learn a vocabulary from")
    except GeneratorExit:
        raise
    except BaseException as error:
        failed.append(error)
        raise


def _too_large(size: int, most: int, kind: str) -> UserError:
    return UserError(f"a {kind} vocabulary of {size} is too large for the corpus, which yields at most {most}: "
                     f"use size {most} or less, or more text")


def _too_small(size: int, least: int, kind: str) -> UserError:
    return UserError(f"a {kind} vocabulary of {size} is too small: special tokens and alphabet alone take {least}; "
                     f"use at least {least + 1}" + ("" if kind == "byte-bpe" else ", or a lower coverage"))


def _numbered(style: Style, tokens: Iterable[str]) -> dict[str, int]:
    """Ids for special tokens and learnt tokens in the order of the style."""
    special = [*style.tokens]
    learnt = [token for token in dict.fromkeys(tokens) if token not in special]
    ordered = [*learnt, *special] if style.last else [*special, *learnt]
    return {token: i for i, token in enumerate([*ordered, *style.sentinel_tokens])}


# ---------------------------------------------------------------------- WordPiece and byte-level BPE

@contextmanager
def _twice(texts: Iterator[str]) -> Generator[Callable[[], Iterator[str]], None, None]:
    """Lets a stream of texts be read again: it is kept in a temporary file, not in memory."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass") as file:
        file.writelines(json.dumps(text) + "\n" for text in texts)

        def again() -> Iterator[str]:
            file.seek(0)
            return (json.loads(line) for line in file)

        yield again


def _cut(texts: Iterable[str], longest: int, *runs: str) -> Iterator[str]:
    """The texts with a line end behind every `longest` characters of a run, such as a picture in base64 or a gene.

    Args:
        texts: the texts.
        longest: characters.
        runs: each a class of characters in the syntax of `re`; words are made of one of them.
    """
    cuts = re.compile("|".join(f"{run}{{{longest}}}(?={run})" for run in runs))
    for text in texts:
        yield cuts.sub(r"\g<0>\n", text) if max(map(len, text.split()), default=0) > longest else text


_PUNCTUATION = r"!-/:-@\[-`{-~"  # ASCII punctuation is always a word of its own
_INNER = re.compile(rf"(?<=[^\s{_PUNCTUATION}])[^\s{_PUNCTUATION}]")


def _alphabet(texts: Iterable[str], normalizer: Any, coverage: float) -> tuple[list[str], list[str]]:
    """The most frequent characters that make up `coverage` of the corpus, and those of them that continue words."""
    counts: Counter[str] = Counter()
    inner: set[str] = set()
    for text in texts:
        normal: str = normalizer.normalize_str(text)
        counts.update(normal)
        inner.update(_INNER.findall(normal))
    counts = Counter({c: n for c, n in counts.items() if not c.isspace()})
    wanted, covered = coverage * counts.total(), 0
    kept: list[str] = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= wanted:
            break
        kept.append(character)
        covered += count
    return sorted(kept), sorted(inner.intersection(kept))


def _word_piece(texts: Iterator[str], wanted: Wanted, style: Style) -> tuple[Pipeline, None]:
    unk = style.roles["unk"]

    def pipeline(vocab: dict[str, int]) -> Pipeline:
        return build.word_piece(vocab, unk, lowercase=wanted.lowercase, strip_accents=wanted.strip_accents, chinese=wanted.chinese)

    learner = pipeline({unk: 0})
    apart = rf"\s{_PUNCTUATION}" + ("\u4e00-\u9fff" if wanted.chinese else "")
    with _twice(_cut(texts, _LONGEST_WORD, f"[^{apart}]")) as again:
        letters, continuing = _alphabet(again(), learner.normalizer, wanted.coverage)
        # The trainer numbers letters inside words in the order of a hash table that differs in every process.
        # Naming them up front fixes their ids, and with them every tie between merges.
        inner = [f"##{c}" for c in continuing]
        room = wanted.size - len(style.tokens) - style.sentinels
        if room < len(letters) + len(inner):
            raise _too_small(wanted.size, wanted.size - room + len(letters) + len(inner), wanted.kind)
        trainer = trainers.WordPieceTrainer(
            vocab_size=room, min_frequency=2 if wanted.min_count is None else wanted.min_count, show_progress=False,
            special_tokens=[*letters, *inner], limit_alphabet=len(letters), initial_alphabet=letters)
        learner.train_from_iterator(again(), trainer)
    vocab = _by_id(learner.get_vocab(with_added_tokens=False))
    if len(vocab) < room:
        raise _too_large(wanted.size, wanted.size - room + len(vocab), wanted.kind)
    return pipeline(_numbered(style, vocab[:room])), None


def _by_id(vocab: dict[str, int]) -> list[str]:
    return [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]


def _byte_bpe(texts: Iterator[str], wanted: Wanted, style: Style) -> tuple[Pipeline, None]:
    room = wanted.size - len(style.tokens) - style.sentinels
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if room < len(letters):
        raise _too_small(wanted.size, wanted.size - room + len(letters), wanted.kind)
    steps: list[normalizers.Normalizer] = []
    if wanted.accents_go:
        steps += [normalizers.NFD(), normalizers.StripAccents()]
    if wanted.lowercase:
        steps.append(normalizers.Lowercase())
    normalizer = normalizers.Sequence(steps) if steps else None
    learner = build.byte_bpe({}, [], normalizer=normalizer)
    trainer = trainers.BpeTrainer(vocab_size=room, min_frequency=2 if wanted.min_count is None else wanted.min_count, show_progress=False,
                                  special_tokens=letters, initial_alphabet=letters)
    learner.train_from_iterator(_cut(texts, _LONGEST_WORD, r"\w", r"[^\w\s]"), trainer)
    vocab = _by_id(learner.get_vocab(with_added_tokens=False))
    if len(vocab) < room:
        raise _too_large(wanted.size, wanted.size - room + len(vocab), wanted.kind)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    return build.byte_bpe(_numbered(style, vocab), merges, normalizer=normalizer), None


# ---------------------------------------------------------------------- words and characters

def _words(texts: Iterator[str], wanted: Wanted, style: Style) -> tuple[Pipeline, None]:
    unk = style.roles["unk"]
    options = {"lowercase": wanted.lowercase, "strip_accents": wanted.accents_go, "split_punctuation": wanted.split_punctuation}
    learner = build.words({unk: 0}, unk, **options)
    room = wanted.size - len(style.tokens) - style.sentinels
    least = 1 if wanted.min_count is None else wanted.min_count
    trainer = trainers.WordLevelTrainer(vocab_size=room + len(style.tokens), min_frequency=least, show_progress=False,
                                        special_tokens=[AddedToken(token, normalized=False) for token in style.tokens])
    learner.train_from_iterator(texts, trainer)
    vocab = _by_id(learner.get_vocab(with_added_tokens=False))
    learnt = len(vocab) - len(style.tokens)
    if learnt < 1:
        raise UserError(f"no word occurs {least} times in the corpus: use a lower min_count, or more text")
    # fewer words than asked for is the ordinary case with min_count: the size is a limit, not a promise
    return build.words(_numbered(style, vocab), unk, **options), None


def _characters(texts: Iterator[str], wanted: Wanted, style: Style) -> tuple[Pipeline, None]:
    unk = style.roles["unk"]
    options = {"lowercase": wanted.lowercase, "strip_accents": wanted.accents_go}
    normalizer: Any = build.characters({unk: 0}, unk, **options).normalizer
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    least = 1 if wanted.min_count is None else wanted.min_count
    ordered = [c for c, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= least]
    room = wanted.size - len(style.tokens) - style.sentinels
    return build.characters(_numbered(style, ordered[:room]), unk, **options), None


# ---------------------------------------------------------------------- SentencePiece

def _lines(texts: Iterable[str]) -> Iterator[str]:
    """SentencePiece learns from lines: texts are split at line ends, and very long lines anywhere."""
    for text in texts:
        for line in text.splitlines():
            if line and not line.isspace():
                # a character has at most 4 bytes
                yield from (line[i:i + _LONGEST_LINE // 4] for i in range(0, len(line), _LONGEST_LINE // 4))


def _sentence_piece(texts: Iterator[str], wanted: Wanted, style: Style) -> tuple[Pipeline, bytes]:
    import sentencepiece

    before: list[normalizers.Normalizer] = []
    if wanted.accents_go:
        before += [normalizers.NFKD(), normalizers.StripAccents()]
    if wanted.lowercase:
        before.append(normalizers.Lowercase())
    fold = normalizers.Sequence(before)
    plain = _lines(_cut(texts, _LONGEST_RUN, r"\S"))
    lines = (fold.normalize_str(line) for line in plain) if before else plain
    ids = {token: i for i, token in enumerate(style.tokens)}
    fixed = {role: style.roles[role] for role in ("unk", "pad", "bos", "eos") if style.roles.get(role) in ids}
    if fixed.get("bos") == fixed.get("eos"):
        fixed.pop("bos", None)
    settings: dict[str, Any] = {f"{role}_id": ids[fixed[role]] if role in fixed else -1 for role in ("unk", "pad", "bos", "eos")}
    settings |= {f"{role}_piece": token for role, token in fixed.items()}
    out = io.BytesIO()
    vocab_size = wanted.size - style.sentinels
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=out, model_type=wanted.kind, vocab_size=vocab_size, character_coverage=wanted.coverage,
            control_symbols=[token for token in style.tokens if token not in fixed.values()], normalization_rule_name="nmt_nfkc",
            max_sentence_length=_LONGEST_LINE, num_threads=4, shuffle_input_sentence=False, minloglevel=2, **settings)
    except (RuntimeError, OSError) as error:
        raise _sentence_piece_error(str(error), wanted, style) from None
    data = out.getvalue()
    pieces = build.parse_spiece(data, "the trained model")
    if [piece for piece, _ in pieces.pieces[:len(style.tokens)]] != list(style.tokens):
        raise AssertionError(f"special tokens are not where the style puts them: {pieces.pieces[:len(style.tokens)]}")
    return build.sentence_piece(pieces, before, style.sentinel_tokens), data


def _sentence_piece_error(message: str, wanted: Wanted, style: Style) -> UserError:
    """SentencePiece's own words, turned into ours."""
    high = re.search(r"set it to a value <= (\d+)", message)
    if high:
        return _too_large(wanted.size, int(high[1]) + style.sentinels, wanted.kind)
    small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if small:
        return _too_small(wanted.size, int(small[1]) + style.sentinels, wanted.kind)
    return UserError(f"SentencePiece cannot learn a {wanted.kind} vocabulary of {wanted.size} from this corpus: {message}")


_Learner = Callable[[Iterator[str], Wanted, Style], tuple[Pipeline, bytes | None]]
_KINDS: dict[str, tuple[_Learner, Style]] = {
    "unigram": (_sentence_piece, ALBERT), "bpe": (_sentence_piece, ALBERT), "wordpiece": (_word_piece, BERT), "byte-bpe": (_byte_bpe, GPT2),
    "word": (_words, PLAIN), "char": (_characters, PLAIN)}
