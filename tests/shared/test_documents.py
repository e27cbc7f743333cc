"""What a document of a sample is."""

import numpy as np
import pytest
from polymodal.shared.documents import documents, row_documents
from polymodal.shared.errors import BadSample
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer

WORDS = "alpha beta gamma delta"
SIZES = {"bert": 36, "roberta": 262, "gpt2": 258, "t5": 116}


@pytest.fixture(scope="module", params=["bert", "roberta", "gpt2", "t5"])
def tok(request):
    kind = {"bert": "wordpiece", "t5": "unigram"}.get(request.param, "byte-bpe")
    return Tokenizer.train([WORDS] * 20, kind, SIZES[request.param], style=STYLES[request.param])


def row(*parts):
    ids = np.concatenate([np.asarray(p, dtype="<u2") for p in parts])
    return Sample("row", {"tokens.u16": ids.tobytes(), "lengths.u32": np.array([len(p) for p in parts], dtype="<u4").tobytes()})


def test_a_text_is_one_document(tok):
    (found,) = documents(Sample("a", {"txt": WORDS.encode()}), tok)
    assert found.dtype == np.int64 and found.tolist() == tok.encode(WORDS, add_special_tokens=False)


def test_a_row_gives_its_documents_without_what_frames_or_ends_them(tok):
    plain = [tok.encode(t, add_special_tokens=False) for t in ("alpha beta", "gamma", "delta alpha")]
    ends = [i for i in (tok.sep_id, tok.eos_id) if i is not None][:1]
    framed = [tok.encode("alpha beta"), [*plain[1], *ends], plain[2], ends]
    found = documents(row(*framed), tok)
    assert [d.tolist() for d in found] == plain and all(d.dtype == np.int64 for d in found)
    assert [d.tolist() for d in row_documents(row(*framed))] == framed


def test_special_tokens_inside_a_document_stay(tok):
    end = tok.sep_id if tok.sep_id is not None else tok.eos_id
    a, b = (tok.encode(t, add_special_tokens=False) for t in ("alpha", "beta"))
    (found,) = documents(row([*a, end, *b, end, end]), tok)
    assert found.tolist() == [*a, end, *b]


def test_a_sample_without_a_document_is_bad(tok):
    end = tok.sep_id if tok.sep_id is not None else tok.eos_id
    with pytest.raises(BadSample, match="special tokens only"):
        documents(row([end, end]), tok)
    with pytest.raises(BadSample, match="the text is empty"):
        documents(Sample("a", {"txt": b" "}), tok)
