from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import pytest
from polymodal.shared.config import Config
from polymodal.shared.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Example(Config):
    width: int = 8
    rate: float = 0.1
    num_labels: int = 2
    labels: tuple[str, ...] | None = None
    FIXED: ClassVar = MappingProxyType({"causal": (False,)})
    IGNORED: ClassVar = MappingProxyType({"summary": "of another head"})
    SYNONYMS: ClassVar = MappingProxyType({"hidden_size": "width"})


def test_fields_synonyms_and_harmless_keys():
    record = {"hidden_size": 16, "rate": 1, "summary": "x", "transformers_version": "5", "some_switch": False, "causal": False,
              "model_type": "e"}
    config = Example.from_dict(record)
    assert (config.width, config.rate) == (16, 1.0)
    written = config.to_dict()
    assert written == {"width": 16, "rate": 1.0, "summary": "x", "transformers_version": "5", "some_switch": False, "causal": False}
    assert Example.from_dict(written) == config


def test_class_names():
    config = Example.from_dict({"id2label": {"1": "dog", "0": "cat", "2": "cow"}, "label2id": {"cat": 0}})
    assert config.num_labels == 3 and config.labels == ("cat", "dog", "cow")
    assert config.to_dict()["id2label"] == {"0": "cat", "1": "dog", "2": "cow"}
    assert config.to_dict()["label2id"] == {"cat": 0, "dog": 1, "cow": 2}
    assert Example(num_labels=3).to_dict()["id2label"]["2"] == "LABEL_2"
    assert "id2label" not in Example().to_dict()


def test_what_may_change_the_outputs_is_refused_and_everything_is_reported_at_once():
    with pytest.raises(UserError, match=r"here: causal = True is not supported, only False; key rope_theta = 10000 is unknown"):
        Example.from_dict({"causal": True, "rope_theta": 10000}, "here")
    with pytest.raises(UserError, match="width is 'wide', expected int"):
        Example.from_dict({"width": "wide"})
