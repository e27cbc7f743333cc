"""Which keys a query may see, as one immutable value.

A `Mask` is structure, not a tensor: causal order, a window, documents packed in one row, a block
table ... . Its fields compose, and one predicate (`Mask.predicate`) defines what they mean together.
Every plan (`choose`) lowers that same predicate: broadcast it gives a dense mask, evaluated
on chunks it gives local attention, under `vmap` it is FlexAttention's `mask_mod`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) index tensors that broadcast against each other -> bool: may see."""
Weights = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(head, query, key) index tensors that broadcast against each other -> what is added to the scores, float64."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A block table: which block of keys each block of queries may see.

    Args:
        table: bool [Nq, Nk], or [H, Nq, Nk] where heads differ. It stays on the host. As uint8 it says how often a softmax counts the
            keys of a block, 0 for never (transformers' BigBird reads some blocks several times).
        size: tokens in a block.
    """

    table: Tensor
    size: int
    array: np.ndarray = field(init=False, repr=False)
    """The table [H or 1, Nq, Nk] in numpy: to read it is no operation of torch, whose fake tensors take no real ones."""

    def __post_init__(self) -> None:
        if self.table.dtype not in (torch.bool, torch.uint8) or self.table.dim() not in (2, 3):
            raise UserError("a block table must be bool (or uint8) [Nq, Nk] or [H, Nq, Nk], got "
                            f"{self.table.dtype} {list(self.table.shape)}")
        if self.size < 1:
            raise UserError(f"a block must hold at least one token, got size {self.size}")
        object.__setattr__(self, "array", self.counts.numpy())

    @cached_property
    def heads(self) -> Tensor:
        """Which blocks are seen, bool [H or 1, Nq, Nk]."""
        return self.counts.bool()

    @property
    def counts(self) -> Tensor:
        """The table as [H or 1, Nq, Nk]."""
        return self.table if self.table.dim() == 3 else self.table[None]

    @cached_property
    def repeats(self) -> bool:
        """Whether a block is counted more than once."""
        return bool((self.array > 1).any())


@dataclass(frozen=True, eq=False)
class Mask:
    """Which keys a query may see. True means "may see"; a query that may see nothing gets zeros.

    Query number q of the call stands at position q + offset among the keys. The fields narrow the
    view one by one, with two exceptions: `prefix` widens `causal`, and `global_tokens` and `global_keys`
    widen `window`, `blocks` and `document_blocks`.
    """

    causal: bool = False
    """A query sees its own position and what stands before it."""
    window: tuple[int, int] | None = None
    """A query sees at most (left, right) positions to its sides."""
    dilation: tuple[int, ...] = ()
    """With `window`, one number for each head: the head sees as many positions, this far apart. Empty: all next to each other."""
    prefix: Tensor | None = None
    """int [B]: the first positions, which every query sees although `causal` (UniLM, PrefixLM)."""
    keep: Tensor | None = None
    """bool [B, Lk]: keys that are not padding."""
    lengths: tuple[int, ...] | None = None
    """Lengths of the documents packed in the row; a query sees only its own document. Host integers."""
    key_lengths: tuple[int, ...] | None = None
    """With `lengths`, where the keys are packed otherwise than the queries (cross-attention): as many lengths, of what each one sees.
    Under `causal`, the queries are the last of their keys."""
    prefix_lengths: tuple[int, ...] | None = None
    """With `lengths`: the first tokens of each document, fewer than it has, which all its queries see although `causal` (packed UniLM)."""
    global_tokens: Tensor | None = None
    """bool [B, Lk]: tokens that see every key and are seen by every query, whatever `window` and `blocks` say."""
    global_keys: Tensor | None = None
    """bool [B, Lk]: tokens that are seen by every query, and see what others see (Longformer's, which look around by other weights)."""
    blocks: Layout | None = None
    """A block table (BigBird)."""
    document_blocks: tuple[Layout | None, ...] | None = None
    """With `lengths`, a block table for each document, counted from its first token; None where it sees all of itself."""
    extra: Tensor | None = None
    """bool, broadcastable to [B, H, Lq, Lk]: anything else, such as XLNet's permutations."""
    offset: int = 0
    """Keys that stand before the first query: a cache or a memory."""

    def __post_init__(self) -> None:
        if self.window is not None and min(self.window) < 0:
            raise UserError(f"window needs two numbers of tokens >= 0 (left, right), got {self.window}")
        if self.dilation and (self.window is None or min(self.dilation) < 1):
            raise UserError(f"dilation needs a window, and a distance of at least 1 for each head, got {self.dilation}")
        if self.prefix is not None and not self.causal:
            raise UserError("prefix widens a causal mask: pass causal=True with it")
        if self.key_lengths is not None and self.window is not None:
            raise UserError("key_lengths are of other texts than the queries': there is no window between them")
        if self.prefix_lengths is not None and (not self.causal or self.lengths is None or self.key_lengths is not None):
            raise UserError("prefix_lengths widen a causal mask of packed documents: pass causal=True and lengths, no key_lengths")
        if self.document_blocks is not None and (self.lengths is None or self.key_lengths is not None or self.blocks is not None):
            raise UserError("document_blocks are the block tables of packed documents: pass lengths, no key_lengths, no blocks")
        for name, value in (("keep", self.keep), ("global_tokens", self.global_tokens), ("global_keys", self.global_keys)):
            if value is not None and (value.dtype != torch.bool or value.dim() != 2):
                raise UserError(f"{name} must be bool [batch, keys], got {value.dtype} {list(value.shape)}")
        if self.extra is not None and (self.extra.dtype != torch.bool or self.extra.dim() != 4):
            raise UserError(f"extra must be bool with four dimensions [B, H, Lq, Lk], got {self.extra.dtype} {list(self.extra.shape)}")

    @property
    def batch(self) -> int:
        """Rows over which the mask differs: the batch size, or 1."""
        tensors = (self.prefix, self.keep, self.global_tokens, self.global_keys, self.extra)
        return max((t.shape[0] for t in tensors if t is not None), default=1)

    @property
    def heads(self) -> int:
        """Heads over which the mask differs: the number of heads, or 1."""
        tables = [layout.table.shape[0] for layout in self.layouts if layout.table.dim() == 3]
        return max(1, *tables, self.extra.shape[1] if self.extra is not None else 1, len(self.dilation))

    @property
    def layouts(self) -> list[Layout]:
        """All block tables."""
        return [layout for layout in (self.blocks, *(self.document_blocks or ())) if layout is not None]

    @property
    def repeats(self) -> bool:
        """Whether a softmax counts some keys more than once."""
        return any(layout.repeats for layout in self.layouts)

    @property
    def shift_invariant(self) -> bool:
        """Whether the mask depends on key - query alone, so that parts of it can be used again."""
        tensors = (self.prefix, self.keep, self.lengths, self.global_tokens, self.global_keys, self.blocks, self.extra)
        return all(t is None for t in tensors)  # document_blocks come with lengths

    @property
    def by_block(self) -> bool:
        """Whether all queries of a block of the table see the same keys."""
        return not self.causal and all(t is None for t in (self.window, self.lengths, self.global_tokens, self.global_keys, self.extra))

    def predicate(self, device: torch.device) -> Predicate:
        """The meaning of the mask, with its tensors on `device`: the one definition for all backends."""
        window, offset, causal = self.window, self.offset, self.causal
        prefix, keep, extra = (_on(t, device) for t in (self.prefix, self.keep, self.extra))
        global_tokens, global_keys = (_on(t, device) for t in (self.global_tokens, self.global_keys))
        steps = on_device(self.dilation, device) if max(self.dilation, default=1) > 1 else None
        table, block = self._table(device)
        document = document_ids(self.lengths, device) if self.lengths is not None else None
        key_document = document if self.key_lengths is None else document_ids(self.key_lengths, device)
        among_keys = None if self.key_lengths is None or not causal else on_device(self._places_among_keys(), device)
        in_prefix = None if self.prefix_lengths is None else on_device(self.in_prefix(), device)

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            position = q + offset
            near: list[Tensor] = []
            if window is not None and steps is None:
                near += [k >= position - window[0], k <= position + window[1]]
            elif window is not None and steps is not None:
                step, away = steps[_index(steps, 0, h)], k - position
                near += [away >= -window[0] * step, away <= window[1] * step, away % step == 0]
            if table is not None:
                near.append(table[_index(table, 0, h), block(position), block(k)] > 0)
            if near and global_tokens is not None:
                row = _index(global_tokens, 0, b)
                near = [_all(near) | global_tokens[row, position] | global_tokens[row, k]]
            if near and global_keys is not None:
                near = [_all(near) | global_keys[_index(global_keys, 0, b), k]]
            terms = near
            if causal:
                before = k <= (position if among_keys is None else among_keys[q])
                if prefix is not None:
                    before = before | (k < prefix[_index(prefix, 0, b)])
                terms.append(before if in_prefix is None else before | in_prefix[k])
            if keep is not None:
                terms.append(keep[_index(keep, 0, b), k])
            if document is not None and key_document is not None:
                terms.append(document[position] == key_document[k])
            if extra is not None:
                terms.append(extra[_index(extra, 0, b), _index(extra, 1, h), _index(extra, 2, q), _index(extra, 3, k)])
            return _all(terms) if terms else k >= 0

        return allowed

    def weights(self, device: torch.device) -> Weights | None:
        """What is added to the scores so that keys are counted as often as the block tables say; None where each counts once."""
        if not self.repeats:
            return None
        table, block = self._table(device)
        assert table is not None
        logs, offset = table.clamp(min=1).double().log(), self.offset
        return lambda h, q, k: logs[_index(logs, 0, h), block(q + offset), block(k)]

    def _table(self, device: torch.device) -> tuple[Tensor | None, Callable[[Tensor], Tensor]]:
        """The block table [H or 1, N, N], and positions -> numbers of blocks; of documents, with all their blocks one behind the other."""
        if self.blocks is not None:
            size = self.blocks.size
            return torch.tensor(self.blocks.array).to(device, non_blocking=True), lambda position: position // size
        if not self.layouts:
            return None, lambda position: position
        assert self.lengths is not None and self.document_blocks is not None
        sizes = [n if layout is None else layout.size for layout, n in zip(self.document_blocks, self.lengths, strict=True)]
        ends = list(accumulate(-(-n // size) for n, size in zip(self.lengths, sizes)))
        table, places, first = np.zeros((self.heads, ends[-1], ends[-1]), dtype=np.uint8), list[int](), 0
        for layout, n, size, end in zip(self.document_blocks, self.lengths, sizes, ends):
            table[:, first:end, first:end] = 1 if layout is None else layout.array[:, :end - first, :end - first]
            places += [first + place // size for place in range(n)]
            first = end
        numbers = on_device(places, device)
        return torch.tensor(table).to(device, non_blocking=True), lambda position: numbers[position]

    def _places_among_keys(self) -> list[int]:
        """Where each query of packed documents stands among the packed keys, as one of the last of its document."""
        assert self.lengths is not None and self.key_lengths is not None
        ends = accumulate(self.key_lengths)
        return [end - length + place for length, end in zip(self.lengths, ends) for place in range(length)]

    def in_prefix(self) -> list[bool]:
        """Which tokens are in the prefix of their document (`prefix_lengths`)."""
        assert self.lengths is not None and self.prefix_lengths is not None
        return [place < prefix for length, prefix in zip(self.lengths, self.prefix_lengths) for place in range(length)]

    @property
    def looks_ahead(self) -> bool:
        """Whether a query sees keys behind it."""
        return not self.causal or self.prefix is not None or self.prefix_lengths is not None

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether query q of row b and head h may see key k; index tensors that broadcast, -> bool."""
        return self.predicate(k.device)(b, h, q, k)

    def dense(self, batch: int, query_length: int, key_length: int, device: torch.device) -> Tensor:
        """The mask as bool [B or 1, H or 1, Lq, Lk]; dimensions it does not depend on are 1 or expanded."""
        self.check(batch, query_length, key_length)
        return self.part(self.predicate(device), torch.arange(query_length, device=device), torch.arange(key_length, device=device))

    def part(self, allowed: Predicate, q: Tensor, k: Tensor) -> Tensor:
        """Evaluate this mask's predicate for some queries [n] and keys [m]: bool [B or 1, H or 1, n, m]."""
        b = torch.arange(self.batch, device=q.device)[:, None, None, None]
        h = torch.arange(self.heads, device=q.device)[:, None, None]
        ok = allowed(b, h, q[:, None], k)
        ok = ok.reshape((1,) * (4 - ok.dim()) + tuple(ok.shape))
        return ok.expand(-1, -1, q.shape[0], k.shape[0])

    def spread(self, weights: Weights, q: Tensor, k: Tensor) -> Tensor:
        """Evaluate this mask's `weights` for some queries [n] and keys [m]: float64 [1, H or 1, n, m]."""
        return weights(torch.arange(self.heads, device=q.device)[:, None, None], q[:, None], k)[None]

    def simplified(self, query_length: int, key_length: int) -> Mask:
        """The same mask without the fields that hide nothing at these lengths."""
        mask = self
        if mask.lengths is not None and len(mask.lengths) == 1 and mask.prefix_lengths is None:
            behind = mask.causal and mask.key_lengths is not None
            mask = replace(mask, lengths=None, key_lengths=None, offset=key_length - query_length if behind else mask.offset,
                           blocks=mask.blocks if mask.document_blocks is None else mask.document_blocks[0], document_blocks=None)
        # Looking into `keep` costs nothing on the host; on a GPU it would wait for the device.
        if mask.keep is not None and mask.keep.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.keep.all()):
            mask = replace(mask, keep=None)
        if mask.causal and mask.offset >= key_length - 1:
            mask = replace(mask, causal=False, prefix=None)
        if mask.window is not None and max(mask.dilation, default=1) == 1:
            left, right = mask.window
            sees_right = right >= key_length - 1 - mask.offset or not mask.looks_ahead
            if left >= query_length - 1 + mask.offset and sees_right:
                mask = replace(mask, window=None, dilation=())
        if mask.window is None and not mask.layouts:
            mask = replace(mask, global_tokens=None, global_keys=None)
        return mask

    def check(self, batch: int, query_length: int, key_length: int) -> None:
        """Refuse a mask that does not fit the tensors it is used on."""
        problems: list[str] = []
        for name, value in (("keep", self.keep), ("global_tokens", self.global_tokens), ("global_keys", self.global_keys)):
            if value is not None and (value.shape[1] != key_length or value.shape[0] not in (1, batch)):
                problems.append(f"{name} must be [{batch}, {key_length}] (batch, keys), got {list(value.shape)}")
        if self.prefix is not None and self.prefix.shape not in ((1,), (batch,)):
            problems.append(f"prefix must be [{batch}], got {list(self.prefix.shape)}")
        rows = {"lengths": (self.lengths, key_length if self.key_lengths is None else query_length),
                "key_lengths": (self.key_lengths, key_length)}
        for name, (value, tokens) in rows.items():
            if value is not None and min(value, default=0) < 1:
                problems.append(f"{name} must hold one number of tokens >= 1 for each document, got {value}")
            if value is not None and (batch != 1 or sum(value) != tokens):
                problems.append(f"{name} must sum to the {tokens} tokens of one packed row, got a sum of {sum(value)} for {batch} row(s)")
        if self.key_lengths is not None and len(self.key_lengths) != len(self.lengths or ()):
            problems.append(f"key_lengths must be as many as lengths, {len(self.lengths or ())}, got {len(self.key_lengths)}")
        elif self.key_lengths is not None and self.causal and any(n > m for n, m in zip(self.lengths or (), self.key_lengths)):
            problems.append(f"under causal, key_lengths must be at least lengths, got {self.key_lengths} for {self.lengths}")
        if self.prefix_lengths is not None and (len(self.prefix_lengths) != len(self.lengths or ()) or any(
                not 0 < prefix < length for prefix, length in zip(self.prefix_lengths, self.lengths or ()))):
            problems.append(f"prefix_lengths must be of each document at least 1 token and fewer than all, got {self.prefix_lengths} for "
                            f"lengths {self.lengths}")
        if self.document_blocks is not None and self.lengths is not None:
            if len(self.document_blocks) != len(self.lengths):
                problems.append(f"document_blocks must be as many as lengths, {len(self.lengths)}, got {len(self.document_blocks)}")
            for layout, length in zip(self.document_blocks, self.lengths):
                if layout is not None and min(layout.table.shape[-2:]) * layout.size < length:
                    covered = " x ".join(str(n * layout.size) for n in layout.table.shape[-2:])
                    problems.append(f"the block table of a document covers {covered} tokens, needed {length}")
        if self.blocks is not None:
            queries, keys = (n * self.blocks.size for n in self.blocks.table.shape[-2:])
            if queries < query_length + self.offset or keys < key_length:
                problems.append(f"the block table covers {queries} x {keys} tokens, needed {query_length + self.offset} x {key_length}")
        if self.extra is not None:
            wanted = (batch, None, query_length, key_length)
            if any(w is not None and n not in (1, w) for n, w in zip(self.extra.shape, wanted)):
                problems.append(f"extra must broadcast to [{batch}, heads, {query_length}, {key_length}], got {list(self.extra.shape)}")
        if self.offset and query_length + self.offset > key_length:
            problems.append(f"{query_length} queries after {self.offset} earlier keys need as many keys, got {key_length}")
        if problems:
            raise UserError("attention mask: " + "; ".join(problems))


def document_ids(lengths: Iterable[int], device: torch.device) -> Tensor:
    """The number of the document at each position of a packed row, int64 [T]."""
    return on_device([number for number, length in enumerate(lengths) for _ in range(length)], device)


def on_device(values: Sequence[int] | Sequence[bool], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Host numbers as a tensor [len(values)] on `device`, without waiting for it (as `torch.tensor(values, device=...)` does on CUDA)."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


def _index(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """`index` for dimension `dim`, or zeros where that dimension only broadcasts."""
    return index if tensor.shape[dim] > 1 else torch.zeros_like(index)


def _all(terms: list[Tensor]) -> Tensor:
    result = terms[0]
    for term in terms[1:]:
        result = result & term
    return result
