"""Draw every kind of attention mask with the library itself, and write the page that explains them.

    python examples/draw_masks.py docs       # writes docs/masks.md and docs/masks/*.svg

A figure is `Mask.dense`: a row for each query, a column for each key, a filled cell where the query sees the key.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import polymodal
import torch
from polymodal.shared.attention.mask import Layout, Mask
from torch import Tensor

LENGTH = 16
"""Keys of a figure."""


@dataclass(frozen=True)
class Figure:
    """One kind of mask: its value, the code that makes it, and what it is for."""

    name: str
    title: str
    code: str
    mask: Mask
    text: str


def tokens(*places: int) -> Tensor:
    """Bool [1, LENGTH]: True at the places."""
    marked = torch.zeros(1, LENGTH, dtype=torch.bool)
    marked[0, list(places)] = True
    return marked


def bigbird() -> Tensor:
    """A block table [4, 4]: each block sees itself and its neighbours, the first block, and the second one more at random."""
    table = torch.ones(4, 4, dtype=torch.bool).tril(1).triu(-1)
    table[0] = table[:, 0] = True
    table[1, 3] = True
    return table


def permuted() -> Tensor:
    """Bool [1, 1, LENGTH, LENGTH]: in a random order of the tokens, each sees itself and those before it in that order."""
    place = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))
    return (place[None, :] <= place[:, None])[None, None]


FIGURES = (
    Figure("full", "Everything", "Mask()", Mask(),
           "Each token sees all tokens: the encoder of BERT, ViT and T5."),
    Figure("causal", "Causal", "Mask(causal=True)", Mask(causal=True),
           "Each token sees itself and what stands before it: GPT-2, CLIP's text tower, T5's decoder."),
    Figure("keep", "Padding", "Mask(keep=attention_mask.bool())", Mask(keep=~tokens(12, 13, 14, 15)),
           "Keys that are padding are seen by nobody: padded batches, as transformers makes them."),
    Figure("documents", "Packed documents", "Mask(lengths=(5, 7, 4))", Mask(lengths=(5, 7, 4)),
           "Documents side by side in one row do not see each other; nothing is padded. BERT's training batches."),
    Figure("causal-documents", "Packed documents, causal", "Mask(causal=True, lengths=(5, 7, 4))", Mask(causal=True, lengths=(5, 7, 4)),
           "GPT-2's training batches."),
    Figure("offset", "After a cache", "Mask(causal=True, offset=10)", Mask(causal=True, offset=10),
           "Six new tokens after ten that a cache (or a memory) holds: generation step by step."),
    Figure("prefix", "Prefix", "Mask(causal=True, prefix=torch.tensor([6]))", Mask(causal=True, prefix=torch.tensor([6])),
           "The first tokens are seen by all, what follows is causal: prefix language models."),
    Figure("window", "Window", "Mask(window=(3, 3))", Mask(window=(3, 3)),
           "Each token sees three to its left and three to its right: local attention."),
    Figure("causal-window", "Window, causal", "Mask(causal=True, window=(4, 0))", Mask(causal=True, window=(4, 0)),
           "Local attention of a decoder."),
    Figure("global", "Window and global tokens", "Mask(window=(2, 2), global_tokens=marked)",
           Mask(window=(2, 2), global_tokens=tokens(0, 8)), "Some tokens see all and are seen by all: Longformer's pattern."),
    Figure("global-keys", "Window and keys that all see", "Mask(window=(2, 2), global_keys=marked)",
           Mask(window=(2, 2), global_keys=tokens(0, 8)), "Some tokens are seen by all, and see what others see: Longformer's global "
           "tokens, as its ordinary projections have them."),
    Figure("dilated", "Window, dilated", "Mask(window=(2, 2), dilation=(2,))", Mask(window=(2, 2), dilation=(2,)),
           "A head sees as many tokens, further apart; one number for each head."),
    Figure("blocks", "Blocks", "Mask(blocks=Layout(table, size=4))", Mask(blocks=Layout(bigbird(), 4)),
           "A table says which blocks of keys a block of queries sees; it may differ from head to head: BigBird's pattern."),
    Figure("extra", "Anything else", "Mask(extra=allowed)", Mask(extra=permuted()),
           "A tensor that says it: here a random order in which each token sees those before it, XLNet's pattern."),
)


def page() -> str:
    """The page with all figures."""
    parts = [
        "# Attention masks\n\n"
        "A `Mask` (`shared/attention/mask.py`) says which keys a query may see. Its fields compose: each narrows the view, "
        "except that `prefix` widens `causal`, and `global_tokens` and `global_keys` widen `window` and "
        "`blocks`. It is structure, not a tensor: `shared/attention/choose.py` chooses once for each forward pass how attention is "
        "computed (dense, causal, by documents, in local blocks, by a block table, FlexAttention on CUDA), and all ways are "
        "tested against the dense definition that is drawn here.\n\n"
        "A row is a query, a column a key, a filled cell means that the query sees the key. Not every kind has a system yet: the text says "
        "which published model a pattern is for, and [systems](systems/index.md) lists what there is.\n"
    ]
    parts += [f"\n## {f.title}\n\n{f.text}\n\n```python\n{f.code}\n```\n\n![{f.title}: queries by keys](masks/{f.name}.svg)\n"
              for f in FIGURES]
    return "".join([*parts, "\n<!-- Written by `make docs` from examples/draw_masks.py; change that. -->\n"])


def pages() -> dict[str, str]:
    """Every file that is drawn here: path below docs/ -> content."""
    return {"masks.md": page(), **{f"masks/{f.name}.svg": polymodal.draw_mask(f.title, f.mask) for f in FIGURES}}


def main(docs: Path) -> None:
    """Write the page and its figures."""
    (docs / "masks").mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (docs / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
