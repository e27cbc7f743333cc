"""Open the model that a command names, on the device and in the form that it asks for."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import torch
from torch import nn

from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from .frontdoor import load
from .frontdoor import tokenizer as find_tokenizer


def choose_device(device: str | None, quantize: str | None = None) -> str:
    """The device that was asked for, by default a GPU if there is one (fewer bits are for a CPU); refused where it is not there."""
    chosen = device or ("cuda" if torch.cuda.is_available() and quantize is None else "cpu")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {chosen} cannot be used ({str(error).splitlines()[0]}); expected cpu or a GPU that is there") from None
    return chosen


def open_model(model: str, device: str | None, quantize: str | None = None, *, prepack: bool = False) -> nn.Module:
    """The model on `device`, by default on a GPU if there is one; with fewer bits, or laid out for it, on a CPU."""
    return load(model, device=choose_device(device, quantize), quantize=cast("Any", quantize), prepack=prepack)


def open_text_model(
    model: str, tokenizer: str | None, device: str | None, quantize: str | None = None, *, prepack: bool = False,
) -> tuple[nn.Module, Tokenizer]:
    """The model and its tokenizer, which has no more entries than the model has words."""
    found = open_model(model, device, quantize, prepack=prepack)
    return found, find_tokenizer(tokenizer or model).fitting_model(found)


def fingerprint(model: nn.Module, *more: str) -> str:
    """Hash of a model's weights, as they were loaded (`for_inference` hides them), and of texts that belong to it."""
    digest = hashlib.sha256("\n".join(more).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
