"""Configurations that are read from and written to a reference library's config.json.

A family's config is a frozen dataclass with the reference's field names. Keys of a config.json that
are no field are either known to leave the outputs alone, and are kept aside and written back, or the
file is refused: a key that may change the mathematics is never dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self

from .block import ACTIVATIONS
from .errors import raise_problems
from .settings import build_settings

HARMLESS = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "architectures", "auto_map", "bad_words_ids",
    "begin_suppress_tokens", "cls_token_id", "directionality", "dtype", "early_stopping", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "generation_config", "gradient_checkpointing", "id2label", "label2id", "length_penalty", "max_length",
    "min_length", "model_type", "n_ctx", "no_repeat_ngram_size", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_scores", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
    "pooler_size_per_head", "pooler_type", "prefix", "problem_type", "repetition_penalty", "return_dict", "return_dict_in_generate",
    "sep_token_id", "task_specific_params", "temperature", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "use_cache", "use_return_dict", "do_sample",
})  # fmt: skip
"""Keys that every transformers config may carry and that do not touch the forward pass."""

OFF = (None, False, "", 0, [], {}, ())  # values with which an unknown switch is switched off


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the families' configs; see the module."""

    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Keys of the config.json this was read from that do not touch the outputs; written back."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({})
    """Keys of the reference that change the mathematics, with the only values that are computed here."""
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    """Further keys of the reference that do not touch the outputs."""
    SYNONYMS: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Other names the reference accepts for a field, such as `hidden_size` for GPT-2's `n_embd`."""

    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = ()
    """Fields that must be at least 1, where they are not None."""
    PROBABILITIES: ClassVar[tuple[str, ...]] = ()
    """Fields that are probabilities (of dropout), where they are not None."""
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ()
    """Fields that must be at least 0 (standard deviations)."""
    ACTIVATION: ClassVar[str] = ""
    """The field that names an activation; empty where there is none."""

    def __post_init__(self) -> None:
        """Refuse what no network can be built of, with every problem at once."""
        raise_problems(self.problems())

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together; families add what they know."""
        found: list[str] = []
        for names, lowest, highest, expected in (
            (self.AT_LEAST_ONE, 1, math.inf, "at least 1"), (self.PROBABILITIES, 0, 1, "a probability from 0 to 1"),
            (self.NOT_NEGATIVE, 0, math.inf, "at least 0"),
        ):  # fmt: skip
            values = {name: getattr(self, name) for name in names}
            found += [f"{n} is {v}, expected {expected}" for n, v in values.items() if v is not None and not lowest <= v <= highest]
        if self.ACTIVATION and (chosen := getattr(self, self.ACTIVATION)) not in ACTIVATIONS:
            found.append(f"{self.ACTIVATION} is {chosen!r}, expected one of {', '.join(ACTIVATIONS)}")
        return found

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], what: str = "config.json") -> Self:
        """Read a config.json; every problem is reported at once.

        A class list (`id2label`) becomes the fields `num_labels` and `labels` where the family has them.
        """
        names = {f.name for f in fields(cls)} - {"extra"}
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        problems: list[str] = []
        for given, value in record.items():
            key = cls.SYNONYMS.get(given, given)
            if key in names:
                values[key] = value
            elif key in cls.FIXED:
                if value not in cls.FIXED[key]:
                    problems.append(f"{key} = {value!r} is not supported, only {' or '.join(map(repr, cls.FIXED[key]))}")
                extra[key] = value
            elif key in HARMLESS or key in cls.IGNORED or any(value == off and type(value) is type(off) for off in OFF):
                extra[key] = value
            else:
                problems.append(f"key {key} = {value!r} is unknown and may change the outputs; remove it if it does not")
        raise_problems(problems, what)
        if isinstance(record.get("id2label"), Mapping) and "num_labels" in names:
            named = {int(k): str(v) for k, v in record["id2label"].items()}
            values["num_labels"] = len(named)
            if "labels" in names:
                values["labels"] = tuple(named[i] for i in sorted(named))
            for key in ("id2label", "label2id"):
                extra.pop(key, None)
        config = build_settings(cls, values, what)
        object.__setattr__(config, "extra", extra)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json, without `model_type` and `architectures`."""
        aside = {k: v for k, v in self.extra.items() if k not in ("model_type", "architectures", "torch_dtype")}
        record = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in ("extra", "labels", "num_labels")}
        labels: tuple[str, ...] | None = getattr(self, "labels", None)
        count: int | None = getattr(self, "num_labels", None)
        if count is not None and (labels is not None or count != 2):
            labels = labels or tuple(f"LABEL_{i}" for i in range(count))
            record |= {"id2label": {str(i): n for i, n in enumerate(labels)}, "label2id": {n: i for i, n in enumerate(labels)}}
        return {**aside, **record}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
