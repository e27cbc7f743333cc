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
from .errors import UserError, raise_problems
from .keys import Keys, honoured, key_problems, no_effect, only, shown
from .settings import build_settings

_ELSEWHERE = "about generation; see generation_config.json"
_NOT_READ = "about networks that are not read here"
HARMLESS: Mapping[str, str] = MappingProxyType({name: reason for reason, names in {
    "says what is in the directory and who wrote it": (
        "_name_or_path", "_commit_hash", "architectures", "model_type", "transformers_version", "finetuning_task", "tokenizer_class",
        "task_specific_params", "auto_map"),
    "about the type of the weights; see `dtype` of `load`": ("dtype", "torch_dtype"),
    "about the form of transformers' outputs": (
        "output_attentions", "output_hidden_states", "output_past", "return_dict", "use_return_dict", "output_scores",
        "return_dict_in_generate"),
    "about speed and memory": (
        "_attn_implementation", "_attn_implementation_autoset", "chunk_size_feed_forward", "gradient_checkpointing", "torchscript",
        "use_cache", "n_ctx"),
    "about special tokens, which the tokenizer's files say": ("cls_token_id", "sep_token_id"),
    _ELSEWHERE: (
        "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "generation_config", "length_penalty", "max_length", "max_new_tokens", "min_length", "min_new_tokens",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "prefix", "remove_invalid_values",
        "repetition_penalty", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p"),
    _NOT_READ: (
        "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
}.items() for name in names})
"""Keys that every transformers config may carry and that do not touch the forward pass, each with the reason."""

COMMON: Keys = MappingProxyType({
    **{name: no_effect(reason) for name, reason in HARMLESS.items()},
    "id2label": honoured("the names and the number of the classes, of a network that has classes"),
    "label2id": no_effect("says the same as id2label"),
    "problem_type": honoured("of a network that has classes: scores are a softmax, with multi_label_classification (or one class) "
                             "sigmoids, with regression the numbers themselves"),
    "is_decoder": only(False), "is_encoder_decoder": only(False), "add_cross_attention": only(False), "tie_encoder_decoder": only(False),
    "cross_attention_hidden_size": only(None), "pruned_heads": only({}, None),
})  # fmt: skip
"""Keys of every config.json; a family may say otherwise."""

MULTI_LABEL = "multi_label_classification"
PROBLEM_TYPES = (None, "single_label_classification", MULTI_LABEL, "regression")

OFF = (None, False, "", 0, [], {}, ())  # values with which an unknown switch is switched off


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the families' configs; see the module."""

    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Keys of the config.json this was read from that do not touch the outputs; written back."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({})
    """Keys of the reference that change the mathematics, with the only values that are computed here."""
    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Further keys of the reference that do not touch the outputs, each with the reason."""
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

    @property
    def problem_type(self) -> str | None:
        """What a classifier's outputs are, one of `PROBLEM_TYPES`; None where the config does not say."""
        return self.extra.get("problem_type")

    @classmethod
    def keys(cls) -> Keys:
        """What becomes of the keys of a config.json, but those of every one (`COMMON`)."""
        return {
            **{f.name: honoured() for f in fields(cls) if f.name not in ("extra", "labels", "num_labels")},
            **{name: honoured(f"another name of {key}") for name, key in cls.SYNONYMS.items()},
            **{name: only(*values) for name, values in cls.FIXED.items()},
            **{name: no_effect(reason) for name, reason in cls.IGNORED.items()},
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], what: str = "config.json") -> Self:
        """Read a config.json; every problem is reported at once.

        A class list (`id2label`) becomes the fields `num_labels` and `labels` where the family has them.
        """
        names = {f.name for f in fields(cls)} - {"extra"}
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        problems: list[str] = []
        known = {**COMMON, **cls.keys()}
        for given, value in record.items():
            key = cls.SYNONYMS.get(given, given)
            if key in names:
                values[key] = value
            else:
                extra[key] = value
                if key in known or not any(value == off and type(value) is type(off) for off in OFF):
                    problems += key_problems({key: value}, known)
        if record.get("problem_type") not in PROBLEM_TYPES:
            problems.append(f"problem_type is {shown(record['problem_type'])}, expected one of {', '.join(map(str, PROBLEM_TYPES[1:]))}")
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
        assumed = next((f.default for f in fields(self) if f.name == "num_labels"), None)  # by readers of a file that names no classes
        if count is not None and (labels is not None or count != assumed):
            labels = labels or tuple(f"LABEL_{i}" for i in range(count))
            record |= {"id2label": {str(i): n for i, n in enumerate(labels)}, "label2id": {n: i for i, n in enumerate(labels)}}
        return {**aside, **record}


def need_one_class_each(config: Config, what: str) -> None:
    """Refuse a classifier with several labels for a sample, or with a number: `what` knows one class of several alone."""
    if config.problem_type in (MULTI_LABEL, "regression"):
        raise UserError(f"{what} is for models that tell classes apart, one for each sample; config.json says problem_type "
                        f"{config.problem_type}, which is only for `classify`")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
