"""Short loss curves of every tiny system and task, and how far a new curve is from the recorded one.

`make golden` records them again and prints what moved. They are made in fp32 on one thread, without dropout, on the data set of the
contract tests. `TOLERANCE` covers what another processor rounds differently, and nothing that a change of the code does.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from contract import runs
from contract.cases import Case, watched

CURVES = Path(__file__).with_name("curves.json")
UPDATES = 6
TOLERANCE = 3e-4
"""Relative. The largest difference of a loss between torch's default, AVX2 and AVX-512 kernels was 9e-5 (`make processors`)."""
STEEP = 15
"""How many times further a gradient norm may be: rounding decides about the gradient of a ReLU near 0 (2e-3 with a ResNet). And an
accuracy: a token between two words is right or wrong (3e-3 with Reformer)."""

STEADY = {"reformer": {"attn_layers": ["local", "local"]}}
"""Settings of families whose curve jumps where rounding decides: a vector between two buckets. Reformer's hashing has its own tests."""

Curve = dict[str, list[float]]


def recorded() -> dict[str, Curve]:
    """The curves in the file, by the names of their cases."""
    return json.loads(CURVES.read_text()) if CURVES.exists() else {}


def curve(case: Case, data: Path, out: Path) -> Curve:
    """The losses and gradient norms of a run's updates, and what it measured on held-out data at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        still = case.still().recipe
        still = replace(still, model={**still.model, **STEADY.get(case.family.name, {})})
        recipe = runs.short(still, updates=UPDATES, optim=still.optim)
        rows = runs.run(case, recipe, data, out, held=True).rows
    finally:
        torch.set_num_threads(threads)
    train = [row for row in rows if row["split"] == "train"]
    made = {name: [row[name] for row in train] for name in ("loss", "grad_norm")}
    made |= {f"eval/{name}": [value] for name, value in rows[-1].items() if isinstance(value, float) and name not in ("update", "split")}
    return {name: [float(f"{value:.7g}") for value in values] for name, values in made.items()}


def distance(found: Curve, expected: Curve) -> float:
    """The largest difference relative to the larger value (see `STEEP`); infinite where the curves hold different numbers."""
    if found.keys() != expected.keys() or any(len(found[n]) != len(expected[n]) for n in found):
        return math.inf
    return max(abs(a - b) / max(abs(a), abs(b), 1e-3) / (STEEP if n == "grad_norm" or n.endswith("accuracy") else 1)
               for n in found for a, b in zip(found[n], expected[n]))


def main() -> None:
    """Record every curve, and say which ones moved."""
    before, after = recorded(), {}
    with tempfile.TemporaryDirectory() as folder:
        for case in watched():
            name = case.name
            after[name] = curve(case, Path(folder) / "data", Path(folder) / name)
            if name not in before:
                print(f"new    {name}")
            elif (moved := distance(after[name], before[name])) > TOLERANCE:
                print(f"moved  {name} by {moved:.1e}: {before[name].get('loss')} -> {after[name]['loss']}")
            else:
                after[name] = before[name]
                print(f"stands {name} ({moved:.0e})")
    for name in before.keys() - after.keys():
        print(f"gone   {name}")
    CURVES.write_text(json.dumps(after, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
