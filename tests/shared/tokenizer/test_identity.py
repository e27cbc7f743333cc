"""What survives a save, a process and a fingerprint."""

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from polymodal.shared.tokenizer import KINDS, Tokenizer
from vocabularies import TEXTS


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_is_the_same_tokenizer(trained, tmp_path, kind):
    tok = trained(kind, max_length=64)
    tok.save(tmp_path / "a" / "b")
    for again in (Tokenizer.load(tmp_path / "a" / "b"), pickle.loads(pickle.dumps(tok))):
        assert again.fingerprint == tok.fingerprint
        assert again.framing == tok.framing
        assert again.spiece == tok.spiece
        assert again.encode_batch(TEXTS) == tok.encode_batch(TEXTS)
    names = sorted(p.name for p in (tmp_path / "a" / "b").iterdir())
    assert names == ["special_tokens_map.json", *(["spiece.model"] if tok.spiece else []), "tokenizer.json", "tokenizer_config.json"]
    first = {n: (tmp_path / "a" / "b" / n).read_bytes() for n in names}
    Tokenizer.load(tmp_path / "a" / "b").save(tmp_path / "c")
    for name in set(names) - {"tokenizer.json"}:
        assert (tmp_path / "c" / name).read_bytes() == first[name]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b"]


def test_fingerprint_tells_what_changes_ids(trained, tmp_path):
    seen = [trained("wordpiece").fingerprint, trained("wordpiece", lowercase=True).fingerprint, trained("byte-bpe").fingerprint,
            trained("byte-bpe", "roberta").fingerprint, trained("word").fingerprint, trained("char").fingerprint]
    assert len(set(seen)) == len(seen)
    trained("wordpiece").save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 99, "padding_side": "left"}))
    assert Tokenizer.load(tmp_path).fingerprint == seen[0]  # neither changes what a text encodes to


SCRIPT = """
import sys
from pydoc_data.topics import topics
from polymodal.shared.tokenizer import Tokenizer
for kind, size in (("wordpiece", 1200), ("byte-bpe", 600), ("unigram", 400), ("bpe", 400), ("word", 300), ("char", 60)):
    tok = Tokenizer.train(iter(list(topics.values())[:12]), kind, size, coverage=0.999)
    print(tok.fingerprint, tok.encode("Hello, world")[:4])
assert "transformers" not in sys.modules
"""


def test_training_is_deterministic_and_needs_no_transformers():
    outputs = [subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")]
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == 6


def test_works_in_spawned_workers(trained):
    tok = trained("wordpiece")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(tok.encode, "Hello, world").result() == tok.encode("Hello, world")
