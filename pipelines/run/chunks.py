"""What each rank writes of a checkpoint: which chunks of which tensors, and its safetensors file.

Tensors that every rank has are written by one of them, those that are divided over the ranks (DTensors) by each its shard. The ranks
agree on that before a tensor is copied or written, so a rank stages and writes its share only. They talk in JSON; torch's distributed
checkpoint, which reads the files, says which part of a DTensor lies here.

A file is written from the tensors' own memory, hashed on the way: nothing is put together in memory first, and writing and hashing let
other threads run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...shared import dist

_BLOCK = 16 * 2**20
_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
          torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor that lies on this rank."""

    name: str
    """The whole tensor's."""
    offsets: tuple[int, ...]
    """Where the box begins in the whole tensor."""
    data: Tensor
    """The box itself."""

    @property
    def place(self) -> list[Any]:
        """What tells it from other chunks; the same for copies of it on other ranks."""
        return [self.name, list(self.offsets), self.data.nbytes]


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor: it has no memory of its own, its shard on this rank has."""
    return hasattr(tensor, "to_local")


def chunks_of(tensors: Mapping[str, Tensor]) -> list[Chunk]:
    """The parts of `tensors` that lie on this rank."""
    chunks = [Chunk(name, (0,) * tensor.dim(), tensor.detach()) for name, tensor in tensors.items() if not is_sharded(tensor)]
    sharded = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    if sharded:
        from torch.distributed.checkpoint import DefaultSavePlanner

        planner = DefaultSavePlanner()
        planner.set_up_planner(cast("dict[str, Any]", sharded), is_coordinator=False)
        for item in planner.create_local_plan().items:
            assert item.tensor_data is not None
            # a rank beyond the last row has an empty shard
            if item.tensor_data.chunk.sizes.numel() or not item.tensor_data.size.numel():
                data = cast("Tensor", planner.resolve_data(item))
                chunks.append(Chunk(item.index.fqn, tuple(item.tensor_data.chunk.offsets), data))
    return chunks


class Shares:
    """Which rank writes which chunk; asked again only where the chunks of some rank have changed."""

    def __init__(self) -> None:
        self._digests: list[str] = []
        self._mine: set[str] = set()

    def mine(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """This rank's part of the work; every rank must call it."""
        if dist.world_size() == 1:
            return list(chunks)
        places = [chunk.place for chunk in chunks]
        digests = dist.gather_json(hashlib.sha256(json.dumps(places).encode()).hexdigest())
        if digests != self._digests:
            # ranks that have the same are spoken for by the first of them
            speaks = digests.index(digests[dist.rank()]) == dist.rank()
            said = dist.gather_json(places if speaks else None)
            self._mine = divide([said[digests.index(digest)] for digest in digests])[dist.rank()]
            self._digests = digests
        return [chunk for chunk in chunks if json.dumps(chunk.place) in self._mine]


def divide(holdings: Sequence[Sequence[Any]]) -> list[set[str]]:
    """Give every chunk to one of the ranks that hold it, so that all write about as much.

    Args:
        holdings: for each rank the `Chunk.place` of what it holds.

    Returns:
        For each rank the chunks it writes, as JSON.
    """
    holders: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for rank, places in enumerate(holdings):
        for place in places:
            key = json.dumps(place)
            holders.setdefault(key, []).append(rank)
            sizes[key] = int(place[2])
    loads = [0] * len(holdings)
    shares: list[set[str]] = [set() for _ in holdings]
    # what has one holder first, then the largest
    for key in sorted(holders, key=lambda k: (len(holders[k]) > 1, -sizes[k], k)):
        rank = min(holders[key], key=lambda r: loads[r])
        loads[rank] += sizes[key]
        shares[rank].add(key)
    return shares


def write(path: Path, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Write a safetensors file that torch's distributed checkpoint reads, down to the disk; its size and sha256."""
    assert len({chunk.name for chunk in chunks}) == len(chunks), "a rank holds one box of a tensor"
    # the widest type first, as safetensors does, so that everything is aligned
    ordered = sorted(chunks, key=lambda chunk: (-chunk.data.itemsize, chunk.name))
    header: dict[str, Any] = {"__metadata__": {
        "format": "pt", "DCP_VERSION": "1.0",
        "DCP_SHARDING_INFO": json.dumps({chunk.name: {"saved_offsets": chunk.offsets} for chunk in ordered}),
    }}
    at = 0
    for chunk in ordered:
        data = chunk.data
        header[chunk.name] = {"dtype": _TYPES[data.dtype], "shape": list(data.shape), "data_offsets": [at, at + data.nbytes]}
        at += data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for part in (len(text).to_bytes(8, "little") + text, *(_bytes(chunk.data) for chunk in ordered)):
            for start in range(0, len(part), _BLOCK):
                block = part[start : start + _BLOCK]
                while block:  # an unbuffered file may take less than it is given
                    written = file.write(block)
                    digest.update(block[:written])
                    size += written
                    block = block[written:]
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, without a copy where it lies on the host."""
    return memoryview(cast("Any", tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))


_CHUNK = 256 * 2**20
_ALIGN = 64


class Staging:
    """Host memory that tensors are copied to before they are written: allocated once, pinned where they come from a GPU.

    It consists of buffers of a power of two, because torch rounds pinned memory up to that; the last one is as small as it may be.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def copy(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Copies of `chunks`, finished when this returns; the copies before are overwritten."""
        places, lengths = _layout([chunk.data.nbytes for chunk in chunks])
        pinned = any(chunk.data.is_cuda for chunk in chunks)
        if len(lengths) > len(self._buffers) or any(length > len(buffer) for length, buffer in zip(lengths, self._buffers)):
            self._buffers.clear()  # before the new ones are there
            self._buffers += [torch.empty(length, dtype=torch.uint8, pin_memory=pinned) for length in lengths]
        copies: list[Chunk] = []
        for chunk, (buffer, start) in zip(chunks, places, strict=True):
            data = self._buffers[buffer][start : start + chunk.data.nbytes].view(chunk.data.dtype).view(chunk.data.shape)
            copies.append(Chunk(chunk.name, chunk.offsets, data.copy_(chunk.data, non_blocking=pinned)))
        if pinned:
            torch.cuda.current_stream().synchronize()
        return copies


def _layout(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """For each size a buffer and where it begins in it; and the lengths of the buffers."""
    places: list[tuple[int, int]] = []
    lengths: list[int] = []
    for size in sizes:
        need = -(-size // _ALIGN) * _ALIGN
        if not lengths or lengths[-1] + need > _CHUNK:
            lengths.append(0)
        places.append((len(lengths) - 1, lengths[-1]))
        lengths[-1] += need
    return places, lengths
