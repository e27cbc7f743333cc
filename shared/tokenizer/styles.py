"""How families frame text, as data: special tokens by role, their order in the vocabulary, and templates.

A `Style` is chosen by a person when a vocabulary is trained, or recognised by the tokens that a
vocabulary holds when a bare vocabulary file is loaded. Nothing here looks at a model's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ROLES = ("unk", "pad", "cls", "sep", "mask", "bos", "eos")
FIRST, SECOND = -1, -2  # stand for the first and the second text inside a template


@dataclass(frozen=True)
class Template:
    """Where the special tokens go: a sequence of (token id, or `FIRST`, or `SECOND`; its type id)."""

    parts: tuple[tuple[int, int], ...] = ((FIRST, 0),)

    @property
    def specials(self) -> int:
        """How many special tokens the template adds."""
        return sum(token >= 0 for token, _ in self.parts)

    def ids(self, first: list[int], second: list[int] | None = None) -> list[int]:
        """The framed sequence."""
        out: list[int] = []
        for token, _ in self.parts:
            if token >= 0:
                out.append(token)
            else:
                out += first if token == FIRST else second or []
        return out

    def types(self, first: int, second: int = 0) -> list[int]:
        """Type ids of a framed sequence whose texts have `first` and `second` tokens."""
        out: list[int] = []
        for token, kind in self.parts:
            out += [kind] * (1 if token >= 0 else first if token == FIRST else second)
        return out


@dataclass(frozen=True)
class Framing:
    """What surrounds the vocabulary: roles, templates, padding and truncation."""

    roles: dict[str, str]
    """Special token of each role the family has (`ROLES`)."""
    single: Template = Template()
    pair: Template = Template()
    padding_side: str = "right"
    truncation_side: str = "right"
    max_length: int | None = None
    """Longest input the family's models take; truncation's default."""
    type_ids: bool = False
    pad_type: int = 0
    pad_fallback: int = 0
    """Id of padding where no token has the role `pad`; the attention mask hides it."""
    clean: str = ""
    """Name of a cleaner of `CLEANERS` that texts go through first, or empty."""
    clean_up: bool = False
    """Decoded texts lose the spaces before marks (`clean_up_tokenization_spaces`)."""


@dataclass(frozen=True)
class Style:
    """One way of framing text.

    `single` and `pair` are templates in the syntax of the `tokenizers` library: ``$A``, ``$B`` and
    special tokens, each with ``:type``.
    """

    tokens: tuple[str, ...]
    """Special tokens in the order of their ids, unless `last`."""
    roles: Mapping[str, str]
    single: str = "$A:0"
    pair: str = "$A:0 $B:0"
    last: bool = False
    """Special tokens come after all others (GPT-2, CLIP) instead of before them."""
    sentinels: int = 0
    """Number of ``<extra_id_N>`` tokens behind everything else, the highest number first (T5)."""
    padding_side: str = "right"
    type_ids: bool = False
    """The family's models take token_type_ids."""
    pad_type: int = 0
    """Type id of padding."""
    wide_mask: bool = False
    """The mask token swallows the space before it."""
    signature: frozenset[str] = field(default_factory=lambda: frozenset[str]())
    """A vocabulary with all of these tokens is taken for this style."""

    @property
    def sentinel_tokens(self) -> list[str]:
        """``<extra_id_N>`` in the order of their ids."""
        return [f"<extra_id_{i}>" for i in reversed(range(self.sentinels))]


_BERT_SINGLE, _BERT_PAIR = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"

BERT = Style(
    tokens=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    roles={"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    single=_BERT_SINGLE, pair=_BERT_PAIR, type_ids=True, signature=frozenset({"[CLS]", "[SEP]", "[UNK]"}))
ROBERTA = Style(
    tokens=("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    roles={"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"},
    single="<s>:0 $A:0 </s>:0", pair="<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0", wide_mask=True, signature=frozenset({"<s>", "</s>", "<mask>"}))
GPT2 = Style(
    tokens=("<|endoftext|>",), roles={"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}, last=True,
    signature=frozenset({"<|endoftext|>"}))
CLIP = Style(
    tokens=("<|startoftext|>", "<|endoftext|>"),
    roles={"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"}, last=True,
    single="<|startoftext|>:0 $A:0 <|endoftext|>:0",
    pair="<|startoftext|>:0 $A:0 <|endoftext|>:0 <|endoftext|>:0 $B:0 <|endoftext|>:0",
    signature=frozenset({"<|startoftext|>", "<|endoftext|>"}))
OPEN_CLIP = Style(
    tokens=("<start_of_text>", "<end_of_text>"), roles={"bos": "<start_of_text>", "eos": "<end_of_text>"}, last=True,
    single="<start_of_text>:0 $A:0 <end_of_text>:0",
    pair="<start_of_text>:0 $A:0 <end_of_text>:0 <end_of_text>:0 $B:0 <end_of_text>:0")
ALBERT = Style(
    tokens=("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    roles={"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "bos": "[CLS]", "sep": "[SEP]", "eos": "[SEP]", "mask": "[MASK]"},
    single=_BERT_SINGLE, pair=_BERT_PAIR, type_ids=True, wide_mask=True, signature=frozenset({"<unk>", "[CLS]", "[SEP]"}))
T5 = Style(
    tokens=("<pad>", "</s>", "<unk>"), roles={"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    single="$A:0 </s>:0", pair="$A:0 </s>:0 $B:0 </s>:0", sentinels=100, signature=frozenset({"<pad>", "</s>", "<unk>"}))
XLNET = Style(
    tokens=("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"),
    roles={"unk": "<unk>", "bos": "<s>", "eos": "</s>", "cls": "<cls>", "sep": "<sep>", "pad": "<pad>", "mask": "<mask>"},
    single="$A:0 <sep>:0 <cls>:2", pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2", padding_side="left", type_ids=True, pad_type=3,
    wide_mask=True, signature=frozenset({"<cls>", "<sep>", "<unk>"}))
GPT1 = Style(tokens=("<unk>",), roles={"unk": "<unk>"}, signature=frozenset({"<unk>"}))
PLAIN = Style(
    tokens=("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
    roles={"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "mask": "<mask>"})
"""No template: for language models over words or characters, which place sentence ends themselves."""

STYLES: Mapping[str, Style] = {"bert": BERT, "roberta": ROBERTA, "gpt2": GPT2, "clip": CLIP, "albert": ALBERT, "t5": T5,
                               "xlnet": XLNET, "plain": PLAIN}
"""The styles a person can ask for when training a vocabulary."""


def recognise(tokens: Iterable[str], candidates: Iterable[Style]) -> Style | None:
    """The first of `candidates` whose signature is contained in the vocabulary `tokens`."""
    known = set(tokens)
    return next((style for style in candidates if style.signature <= known), None)
