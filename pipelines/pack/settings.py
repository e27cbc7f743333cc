"""What a packing run is told: how sources are read, and how samples become shards."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...shared.errors import UserError
from ..base.install import install_line
from ..data.index import SEVERAL_LABELS

if TYPE_CHECKING:
    from ...shared.tokenizer import Tokenizer

CLASSED = (SEVERAL_LABELS, "tag")
"""Kinds of texts whose annotations are names of classes."""
ANNOTATED = ("words", *CLASSED, "score", "choice", "span")
"""Kinds of texts with annotations (`annotated`); they are never guessed."""
KINDS = ("text", "pairs", "images", "regions", "tar", *ANNOTATED)
SEGMENTERS = ("jieba",)
"""What finds the words of texts, by the names of their packages."""


@dataclass(frozen=True)
class Reading:
    """How sources are read."""

    kind: str | None = None
    """One of `KINDS`; where it is None, text, pairs, images or tar is guessed from the files."""
    split: str = "blank"
    """Where a plain text is cut into documents: at ``blank`` lines, after every ``line``, not at all (``file``), or at lines equal to this
    string."""
    text_field: str = "text"
    """The column or JSON field with the text."""
    image_field: str = "image"
    """The column with the path of a picture (of the kind ``regions`` of an `.npz` file), relative to the table."""
    caption_field: str = "caption"
    """The column with the picture's caption."""
    label_field: str | None = None
    """The column with a text's class, a name or a whole number; the sample's field `cls` is its number. Of a kind for a task the column
    with the annotation."""
    pair_field: str | None = None
    """The column with the second text of a pair; the sample's field `pair.txt`."""
    target_field: str | None = None
    """The column with the text to be written for a text; the sample's field `target.txt`."""
    classes: tuple[str, ...] | None = None
    """The names of all classes in the order of their numbers; by default those that occur, sorted. Data sets that are packed one by one
    need the same list."""
    label_separator: str | None = None
    """What stands between the labels of a text, where a cell of the kind ``labels`` is no list."""
    segment: str | None = None
    """The segmenter that says where the words of texts begin; the sample's field `units.u8`."""

    def __post_init__(self) -> None:
        """Check what was given."""
        if self.kind not in (None, *KINDS):
            raise UserError(f"--kind {self.kind!r} is unknown, expected one of {', '.join(KINDS)}")
        if self.label_separator == "":
            raise UserError("--label-separator is empty, expected what stands between the labels in a cell, such as ;")
        if self.label_separator is not None and self.kind != SEVERAL_LABELS:
            raise UserError(f"--label-separator cuts cells into several labels: give --kind {SEVERAL_LABELS}, or leave it out")
        if self.segment is not None and self.segment not in SEGMENTERS:
            raise UserError(f"--segment {self.segment!r} is unknown, expected {', '.join(SEGMENTERS)}")
        if self.segment is not None and find_spec(self.segment) is None:
            raise UserError(f"--segment {self.segment} needs the package {self.segment}: {install_line('zh')}")

    @property
    def knows_words(self) -> bool:
        """Whether samples say where their words begin."""
        return self.kind == "words" or self.segment is not None

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read beside the text, by option."""
        given = {"--label-field": self.label_field, "--pair-field": self.pair_field, "--target-field": self.target_field}
        return {option: name for option, name in given.items() if name is not None}


@dataclass(frozen=True)
class PackSettings:
    """What is made of the sources."""

    reading: Reading = Reading()
    shard_bytes: int = 256 << 20
    """About the largest size of a shard."""
    tokenizer: Tokenizer | str | Path | None = None
    """Tokenise texts with it and pack them into rows of `block` tokens."""
    block: int = 1024
    """Tokens of a row."""
    in_order: bool = False
    """Fill rows of tokens in the order of the input: documents are laid end to end and cut every `block` tokens, and nothing is shuffled.
    For systems that read a text from row to row with a memory."""
    shuffle: int | None = 0
    """Seed of the order of the samples; None keeps the order of the input."""
    holdout: float = 0.0
    """Samples held out for evaluation: a fraction below 1, or their number. They are drawn by hash of the content, so equal samples stay
    together."""
    holdout_out: str | Path | None = None
    """The folder of the held-out data set."""
    on_bad: Literal["raise", "skip"] = "raise"
    """``raise`` stops at the first record that cannot be used, ``skip`` counts and lists such records."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if self.on_bad not in ("raise", "skip"):
            raise UserError(f"on_bad is {self.on_bad!r}, expected raise or skip")
        if self.in_order and self.tokenizer is None:
            raise UserError("--in-order fills rows of tokens one after the other: give a tokenizer with --tokenize, or --keep-order to "
                            "keep the order of texts")
        if self.in_order and self.shuffle:
            raise UserError(f"--in-order keeps the order of the input and --shuffle {self.shuffle} changes it: leave one of them out")
        if self.shard_bytes < 4096:
            raise UserError(f"shards of {self.shard_bytes} bytes are too small, expected at least 4096")
        if (self.holdout > 0) != (self.holdout_out is not None):
            raise UserError("--holdout (how much) and --holdout-out (where to) belong together: give both or neither")
        if self.holdout < 0 or (self.holdout > 1 and self.holdout != int(self.holdout)):
            raise UserError(f"holdout is {self.holdout}, expected a fraction between 0 and 1 or a whole number of samples")
        if self.tokenizer is not None and self.reading.columns and self.reading.kind != "words":
            columns = self.reading.columns
            raise UserError(f"--tokenize joins texts to rows of tokens, which have no {', '.join(columns.values())}: fine-tuning "
                            f"reads raw text, so leave --tokenize out, or {', '.join(columns)}")

    def resolved(self, tokenizer: Tokenizer | None) -> Resolved:
        """These settings as plain values, once the tokenizer is loaded."""
        seed = None if self.in_order else self.shuffle
        block, entries = (self.block, tokenizer.vocab_size) if tokenizer else (0, 0)
        return Resolved(self.reading, seed, self.shard_bytes, block, tokenizer.fingerprint if tokenizer else "", entries, self.in_order,
                        float(self.holdout), self.on_bad)


@dataclass(frozen=True)
class Resolved:
    """Settings as plain values: what workers are told, and what must be the same for an interrupted run to continue."""

    reading: Reading
    seed: int | None
    """Of the order of the samples; None keeps the order of the input."""
    shard_bytes: int
    block: int
    """Tokens of a row; 0 where texts are not tokenised."""
    tokenizer: str
    """Fingerprint of the tokenizer, or empty."""
    vocab_size: int
    """Token ids; 0 where texts are not tokenised."""
    in_order: bool
    """Whether rows of tokens go on from one another, as the text does."""
    holdout: float
    on_bad: str

    @property
    def wide(self) -> bool:
        """Whether token ids need 32 bits."""
        return self.vocab_size > 2**16
