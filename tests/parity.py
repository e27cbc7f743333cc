"""A network beside its counterpart in transformers: the same numbers, weights both ways, the same files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polymodal
import torch
import transformers
from polymodal.shared.convert import Rule, to_theirs
from safetensors.torch import load_file
from torch import Tensor, nn

RELATIVE = 1e-5


def noise(model: nn.Module, seed: int = 0, scale: float = 0.3) -> Any:
    """Every parameter random, so that a swapped, lost or untied tensor shows; `scale` is the standard deviation of matrices."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() == 1 else scale) + (0.5 if p.dim() == 1 else 0.0))
    return model.eval()


def saved(architecture: str, config: Any, directory: Path, scale: float = 0.3) -> Any:
    """A random model of transformers, saved to a directory."""
    model = noise(getattr(transformers, architecture)(config), scale=scale)
    model.save_pretrained(directory)
    return model


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest number."""
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < RELATIVE


def assert_same_outputs(ours: Any, theirs: Any, fields: Sequence[str], arguments: dict[str, Any], rows: Tensor | None = None) -> None:
    """These outputs and all hidden states are equal; with `rows` [B, S] at those places only."""
    with torch.no_grad():
        a, b = ours(**arguments, output_hidden_states=True), theirs(**arguments, output_hidden_states=True)
    assert len(a.hidden_states) == len(b.hidden_states)
    pairs = [*((getattr(a, name), getattr(b, name)) for name in fields), *zip(a.hidden_states, b.hidden_states)]
    for x, y in pairs:
        assert_equal(*((x, y) if rows is None else (x[rows], y[rows])))


def assert_both_ways(theirs: Any, folder: Path, fields: Sequence[str], cases: Sequence[tuple[dict[str, Any], Tensor | None]],
                     scale: float = 0.3) -> None:
    """A model that `saved` left in `folder`/theirs is read, and what we write of another one is read by them, file for file.

    Args:
        theirs: the model.
        folder: an empty one but for `theirs`.
        fields: outputs to compare.
        cases: arguments, and the places that mean something; None for all.
        scale: of the other one's matrices.
    """
    architecture = type(theirs).__name__
    ours = polymodal.load(folder / "theirs")
    assert ours.architecture == architecture and not ours.training
    for arguments, rows in cases:
        assert_same_outputs(ours, theirs, fields, arguments, rows)

    noise(ours, seed=5, scale=scale)
    polymodal.save(ours, folder / "ours")
    again, info = type(theirs).from_pretrained(folder / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    again.eval()
    reread = polymodal.load(folder / "ours")
    for arguments, rows in cases:
        assert_same_outputs(ours, again, fields, arguments, rows)
        assert_same_outputs(reread, again, fields, arguments, rows)
    assert load_file(folder / "ours" / "model.safetensors").keys() == load_file(folder / "theirs" / "model.safetensors").keys()
    # what we write is what they would write, key for key
    mine, yours = (json.loads((folder / d / "config.json").read_text()) for d in ("ours", "theirs"))
    for record in (mine, yours):
        record.pop("problem_type", None)
    assert mine == yours


def rows_of(values: Tensor, lengths: Sequence[int], filling: int) -> Tensor:
    """Packed values [T] as padded rows [B, longest]."""
    return nn.utils.rnn.pad_sequence(list(values.split(list(lengths))), batch_first=True, padding_value=filling)


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, rules: Sequence[Rule]) -> None:
    """The gradient of every parameter of theirs is ours, to 1e-5 of its norm."""
    found = to_theirs(rules, {n: p.grad for n, p in ours.named_parameters(remove_duplicate=False)})
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert gradients.keys() <= found.keys() and len(gradients) == len(dict(theirs.named_parameters()))
    whole = float(torch.stack([g.norm() for g in gradients.values()]).norm())
    for name, gradient in gradients.items():  # those of the keys' biases are 0, but for rounding
        assert float((found[name] - gradient).norm()) < RELATIVE * float(gradient.norm()) + 1e-7 * whole, name
