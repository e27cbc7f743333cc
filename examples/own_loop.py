"""A training loop of your own on the exact stream: a softmax over pixels, killed and resumed in mid-epoch.

    python examples/own_loop.py DATA          # DATA: pictures with classes, packed by `polymodal pack FOLDER --out DATA`

Every 20 updates the weights and the stream's state (one integer) are saved to own_loop.pt. Start it again and it goes on with the next
sample, with any --workers; under torchrun, every rank reads its part.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import polymodal
import torch
import torch.nn.functional as F

SIZE = 16


def prepare(item: tuple[Any, int]) -> tuple[torch.Tensor, int]:
    """The picture as SIZE x SIZE pixels between 0 and 1, and its class."""
    picture, label = item
    pixels = torch.tensor(list(picture.resize((SIZE, SIZE)).tobytes()), dtype=torch.float32)
    return pixels / 255, label


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--checkpoint", type=Path, default=Path("own_loop.pt"))
    args = parser.parse_args()

    samples = polymodal.stream(args.data, fields=("jpg;png;webp", "cls"), transform=prepare)
    loader = samples.loader(args.batch, num_workers=args.workers)
    net = torch.nn.Linear(SIZE * SIZE * 3, args.classes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    update = 0
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["data"])
        update = saved["update"]
        print(f"goes on after update {update}")
    if update >= args.updates:
        return
    for pixels, labels in loader:
        loss = F.cross_entropy(net(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update += 1
        if update % 20 == 0 or update == args.updates:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "data": loader.state_dict(), "update": update}
            torch.save(state, args.checkpoint)
            print(f"update {update}  loss {loss.item():.4f}  position {state['data']['position']}")
        if update == args.updates:
            break


if __name__ == "__main__":
    main()
