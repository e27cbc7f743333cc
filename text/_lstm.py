"""LSTMs on sequences without padding, with a projection and limits where asked for (Sak, Senior and Beaufays, 2014,
https://arxiv.org/abs/1402.1128).

    gates    i, f, g, o = W x_t + U h_{t-1} + b           (1 is added to the forget gate's)
    cell     c_t = clip(σ(i) tanh(g) + σ(f) c_{t-1})      [B, C]
    state    h_t = clip(P (σ(o) tanh(c_t)))               [B, D]; without a projection D is C, and P is left out

Sequences lie in the order of time: of a batch sorted by length, all first tokens, then all second ones, and so on (`Steps`), so that step t
is a matrix of the rows that have a token t. The input's product is one for all steps, and so are the products that give the weights their
gradients: autograd would make one gradient of the size of the weight for each step, and add them up. Only what hangs on the state before
is computed step by step. torch's `nn.LSTM` has a projection, and no limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Steps:
    """Rows of different lengths, as a recurrent network reads them. B rows, T tokens, which lie row after row."""

    sizes: tuple[int, ...]
    """Rows that have a token at each step; they get fewer."""
    order: Tensor
    """int64 [T]: which token is read when."""
    places: Tensor
    """int64 [T]: when each token is read."""
    rows: Tensor
    """int64 [B]: the rows, longest first."""
    last: Tensor
    """int64 [B]: when the last token of each row is read; of a row without tokens anything."""
    empty: Tensor
    """bool [B, 1]: rows without tokens."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device, *, backwards: bool = False) -> Steps:
        """The steps of rows with these lengths, from their ends where `backwards`."""
        sizes = np.asarray(lengths, dtype=np.int64)
        rows = np.argsort(-sizes, kind="stable")
        begins = np.cumsum(sizes) - sizes
        time = np.arange(int(sizes.max(initial=0)))
        there = sizes[rows] > time[:, None]  # [steps, B]
        at = np.where(backwards, sizes - 1 - time[:, None], time[:, None]) + begins  # [steps, B], in the order of the rows
        order = at[:, rows][there]
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        ends = begins if backwards else begins + sizes - 1
        last = places[ends.clip(0, max(len(order) - 1, 0))] if len(order) else np.zeros_like(ends)
        arrays = order, places, rows, last, (sizes == 0)[:, None]
        return cls(tuple(there.sum(1).tolist()), *(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


State = tuple[Tensor, Tensor]
"""h [B, D] and c [B, C] of a layer."""


class Matrix(nn.Module):
    """A weight [out, in], and a bias where asked for. No `nn.Linear`: nobody calls it by itself, so nothing may stand in its place."""

    def __init__(self, rows: int, columns: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.bias = nn.Parameter(torch.zeros(rows)) if bias else None


class LSTM(nn.Module):
    """One layer in one direction.

    Args:
        input_size: width of x.
        hidden_size: D, the width of the state.
        cell_size: C, where the state is a projection; None: there is none.
        cell_clip: largest absolute value in a cell; 0: no limit.
        proj_clip: the same of a state.
    """

    def __init__(self, input_size: int, hidden_size: int, cell_size: int | None = None, *, cell_clip: float = 0.0,
                 proj_clip: float = 0.0) -> None:
        super().__init__()
        cells = hidden_size if cell_size is None else cell_size
        self.hidden_size, self.cell_size, self.limits = hidden_size, cells, (cell_clip, proj_clip)
        self.input_linearity = Matrix(4 * cells, input_size)
        self.state_linearity = Matrix(4 * cells, hidden_size, bias=True)
        self.state_projection = None if cell_size is None else Matrix(hidden_size, cells)
        for part in self.children():
            assert isinstance(part, Matrix)
            nn.init.xavier_uniform_(part.weight)

    def start(self, rows: int, like: Tensor) -> State:
        """The state before the first token: zeros."""
        return like.new_zeros(rows, self.hidden_size), like.new_zeros(rows, self.cell_size)

    def forward(self, x: Tensor, steps: Steps, state: State | None = None) -> tuple[Tensor, State]:
        """The states [T, D] of tokens [T, input], both in the order of the steps, and the state after each row's last token.

        Args:
            x: what is read.
            steps: the order.
            state: before the first token, in the order of the rows; zeros by default.
        """
        device = x.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        wide = torch.promote_types(kind, torch.float32)
        before = self.start(len(steps.rows), x) if state is None else state
        h, c = (part.to(wide).index_select(0, steps.rows) for part in before)
        bias, projection = self.state_linearity.bias, self.state_projection
        assert bias is not None
        with torch.autocast(device, enabled=False):
            out, cells = _Scan.apply(x.to(kind), self.input_linearity.weight.to(kind), self.state_linearity.weight.to(kind), bias.to(wide),
                                     None if projection is None else projection.weight.to(kind), h, c, steps.sizes, self.limits)  # type: ignore[misc]
        before = before[0].to(wide), before[1].to(wide)
        if not steps.sizes:
            return out, before
        h, c = (torch.where(steps.empty, b, a.index_select(0, steps.last)) for b, a in zip(before, (out, cells)))
        return out, (h, c)


class _Scan(torch.autograd.Function):
    """x [T, in] -> h [T, D] and c [T, C]. Products in the type of x, all else in fp32 at least."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, w_state: Tensor, bias: Tensor, w_out: Tensor | None, h: Tensor, c: Tensor,
                sizes: tuple[int, ...], limits: tuple[float, float]) -> tuple[Tensor, Tensor]:
        width, exact = len(bias) // 4, bias.dtype == x.dtype
        shifted = bias.clone()
        shifted[width : 2 * width] += 1.0  # the forget gate begins open
        gates = torch.addmm(shifted, x, w_in.T) if exact else torch.mm(x, w_in.T).to(bias.dtype).add_(shifted)
        cells, tanhs = gates.new_empty(len(x), width), gates.new_empty(len(x), width)
        out = gates.new_empty(len(x), h.shape[1])
        ctx.h, ctx.c = h, c
        begin = 0
        for n in sizes:
            here = slice(begin, begin + n)
            gate, cell, tanh, state = gates[here], cells[here], tanhs[here], out[here]
            if exact:
                gate.addmm_(h[:n], w_state.T)
            else:
                gate.add_(torch.mm(h[:n].to(x.dtype), w_state.T))
            i, f, g, o = gate.split(width, 1)
            gate[:, : 2 * width].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c[:n], out=cell).addcmul_(i, g)
            if limits[0]:
                cell.clamp_(-limits[0], limits[0])
            torch.tanh(cell, out=tanh)
            if w_out is None:
                torch.mul(o, tanh, out=state)
            elif exact:
                torch.mm(o * tanh, w_out.T, out=state)
            else:
                state.copy_(torch.mm((o * tanh).to(x.dtype), w_out.T))
            if limits[1]:
                state.clamp_(-limits[1], limits[1])
            h, c, begin = state, cell, begin + n
        ctx.save_for_backward(x, w_in, w_state, w_out, gates, cells, tanhs, out)
        ctx.sizes, ctx.limits = sizes, limits
        ctx.set_materialize_grads(False)
        return out, cells

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, w_in, w_state, w_out, gates, cells, tanhs, out = ctx.saved_tensors
        sizes, limits, width = ctx.sizes, ctx.limits, cells.shape[1]
        d_gates, d_out, d_h, d_c = torch.empty_like(gates), _cloned(grads[0], out), torch.zeros_like(ctx.h), torch.zeros_like(ctx.c)
        end = len(x)
        for step in reversed(range(len(sizes))):
            n = sizes[step]
            here = slice(end - n, end)
            end -= n
            cell, tanh = cells[here], tanhs[here]
            before = cells[end - sizes[step - 1]: end - sizes[step - 1] + n] if step else ctx.c[:n]
            i, f, g, o = gates[here].split(width, 1)
            d_i, d_f, d_g, d_o = d_gates[here].split(width, 1)
            d_state, d_cell = d_out[here].add_(d_h[:n]), d_c[:n]
            if limits[1]:
                d_state.mul_(out[here].abs() < limits[1])
            d_read = d_state.clone() if w_out is None else torch.mm(d_state.to(x.dtype), w_out).to(gates.dtype)
            _sigmoid_(d_o, d_read * tanh, o)
            d_cell.add_(torch.ops.aten.tanh_backward(d_read.mul_(o), tanh))
            if grads[1] is not None:
                d_cell.add_(grads[1][here])
            if limits[0]:
                d_cell.mul_(cell.abs() < limits[0])
            _sigmoid_(d_i, d_cell * g, i)
            _sigmoid_(d_f, d_cell * before, f)
            torch.ops.aten.tanh_backward.grad_input(d_cell * i, g, grad_input=d_g)
            d_cell.mul_(f)
            d_h[:n] = torch.mm(d_gates[here].to(x.dtype), w_state)
        ends = np.cumsum(sizes)
        read = [ctx.h[: sizes[0]]] if sizes else []
        read += [out[e - m: e - m + n] for e, m, n in zip(ends.tolist(), sizes, sizes[1:])]
        narrow = d_gates.to(x.dtype)
        states = torch.cat(read).to(x.dtype) if read else out.to(x.dtype)
        return (torch.mm(narrow, w_in), torch.mm(narrow.T, x), torch.mm(narrow.T, states), d_gates.sum(0),
                None if w_out is None else torch.mm(d_out.to(x.dtype).T, (gates[:, 3 * width:] * tanhs).to(x.dtype)), d_h, d_c, None, None)


def _cloned(grad: Tensor | None, like: Tensor) -> Tensor:
    """A gradient that may be changed; None is that of nobody who reads `like`."""
    return torch.zeros_like(like) if grad is None else grad.clone()


def _sigmoid_(result: Tensor, grad: Tensor, value: Tensor) -> None:
    """The gradient before a sigmoid of this value, into `result`."""
    torch.ops.aten.sigmoid_backward.grad_input(grad, value, grad_input=result)


class BiLSTM(nn.Module):
    """Layers of LSTMs from both ends; each reads the states of both directions of the one below.

    Args:
        input_size: width of x.
        hidden_size: H, the width of a direction's states.
        layers: how many.
        dropout: of what each layer reads.
    """

    def __init__(self, input_size: int, hidden_size: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = [input_size, *[2 * hidden_size] * (layers - 1)]
        self.forwards, self.backwards = (nn.ModuleList(LSTM(size, hidden_size) for size in sizes) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Map texts [T, input] that lie one after the other to states [T, 2 H]."""
        return self.layers(x, lengths)[-1][0]

    def layers(self, x: Tensor, lengths: Sequence[int]) -> list[tuple[Tensor, State]]:
        """Each layer's states [T, 2 H], and its h and c of both directions behind their last tokens, [B, 2 H] each."""
        found: list[tuple[Tensor, State]] = []
        ahead, back = (Steps.of(lengths, x.device, backwards=backwards) for backwards in (False, True))
        for one, other in zip(self.forwards, self.backwards, strict=True):
            x = self.dropout(x)
            ways = [(layer(x.index_select(0, steps.order), steps), steps) for layer, steps in ((one, ahead), (other, back))]
            x = torch.cat([states.index_select(0, steps.places) for (states, _), steps in ways], -1)
            ends = [torch.cat(pair, -1) for pair in zip(*(last for (_, last), _ in ways), strict=True)]
            found.append((x, (ends[0], ends[1])))
        return found
