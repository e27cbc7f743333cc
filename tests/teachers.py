"""What tests of distillation share: a tokenizer of made-up words, a small BERT that teaches, and its student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polymodal
from parity import noise
from polymodal.shared.tokenizer import Tokenizer

WORDS = [a + b for a in ("ka", "mo", "ti", "su") for b in ("ren", "sol", "an", "es")]


def tokenizer() -> Tokenizer:
    """Knows some of the words."""
    return Tokenizer.train([" ".join(WORDS)] * 9, "wordpiece", 50)


def saved_teacher(tok: Tokenizer, directory: Path) -> Path:
    """A BERT of 3 layers with random weights."""
    net = polymodal.system("bert", size="tiny", tokenizer=tok, objective={"nsp": False}, hidden_size=32, num_hidden_layers=3,
                           num_attention_heads=2, intermediate_size=48, max_position_embeddings=42).net
    polymodal.save(noise(net, seed=3), directory, tokenizer=tok)
    return directory


def student(tok: Tokenizer, teacher: Path, **objective: Any) -> Any:
    """A DistilBERT of 2 layers, without dropout."""
    made = polymodal.system("distilbert", size="tiny", tokenizer=tok, companions={"teacher": teacher},
                            objective={"mlm_smoothing": 0, **objective}, dim=32, n_layers=2, n_heads=2, hidden_dim=48,
                            max_position_embeddings=42, dropout=0.0, attention_dropout=0.0)
    return noise(made).train()
