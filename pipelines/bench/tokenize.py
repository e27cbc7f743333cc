"""Tokenising and packing, one process, one thread.

* tokenise: our `Tokenizer.encode_batch` beside the `tokenizers` library called directly on the same
  tokenizer.json (the floor: ours calls the same code) and beside transformers' tokenizer.
* pack text: `pack --tokenize`, one process, beside what a user would write with `tokenizers` and
  webdataset's writer (a document a sample, no rows, no index).
* pack pictures: `pack` of a folder of JPEGs beside webdataset's `ShardWriter` on the same files.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...shared.tokenizer import Tokenizer
from ..crew.pieces import Workers
from ..data.dataset import DataSet
from ..pack.pack import pack
from ..pack.settings import PackSettings, Reading
from .case import Agreement, Case, Cases, Contender, Options
from .corpus import documents, pictures
from .machine import need

PEERS = ("tokenizers", "transformers")
BLOCK = 1024
CHUNK = 1000
"""Documents handed over at a time, as `pack` does."""


@dataclass(frozen=True)
class TokenizeSetup:
    """Inputs in a folder: `tokenizer/`, `documents.txt` (cut at lines of `---`), `pictures/`."""

    directory: str
    documents: int

    def texts(self) -> list[str]:
        """The documents."""
        return documents(self.documents)

    def path(self, name: str) -> Path:
        """A file or folder of the setup."""
        return Path(self.directory) / name


Ids = list[list[int]]
Encoder = Callable[[list[str]], Ids]


@dataclass(frozen=True)
class EncodeRun:
    """A way to encode, and the texts."""

    encode: Encoder
    texts: list[str]


def encode(run: EncodeRun) -> Ids:
    """All documents, a chunk at a time."""
    return [ids for i in range(0, len(run.texts), CHUNK) for ids in run.encode(run.texts[i : i + CHUNK])]


def ours(setup: TokenizeSetup) -> EncodeRun:
    """Our side."""
    tokenizer = Tokenizer.load(setup.path("tokenizer"))
    return EncodeRun(lambda texts: tokenizer.encode_batch(texts, add_special_tokens=False), setup.texts())


def library(setup: TokenizeSetup) -> EncodeRun:
    """The `tokenizers` library, called directly."""
    from tokenizers import Tokenizer as Pipeline

    pipeline: Any = Pipeline.from_file(str(setup.path("tokenizer") / "tokenizer.json"))
    return EncodeRun(lambda texts: [e.ids for e in pipeline.encode_batch_fast(texts, add_special_tokens=False)], setup.texts())


def transformers_tokenizer(setup: TokenizeSetup) -> EncodeRun:
    """The fast tokenizer of transformers."""
    tokenizer: Any = need("transformers").AutoTokenizer.from_pretrained(str(setup.path("tokenizer")))
    tokenizer.model_max_length = 1 << 30
    return EncodeRun(lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"], setup.texts())


def same_ids(setup: TokenizeSetup) -> Agreement:
    """Documents whose ids differ between any of the three."""
    rows = [encode(make(setup)) for make in (ours, library, transformers_tokenizer)]
    return Agreement("documents whose ids differ", sum(len({tuple(r) for r in group}) > 1 for group in zip(*rows, strict=True)), 0)


# --------------------------------------------------------------------------------------------- packing


def pack_rows(setup: TokenizeSetup) -> Path:
    """`polymodal pack --tokenize`, in this process alone."""
    out = _empty(setup.path("rows"))
    pack([setup.path("documents.txt")], out, PackSettings(Reading(split="---"), tokenizer=setup.path("tokenizer"), block=BLOCK),
         workers=Workers(1))
    return out


def write_documents(setup: TokenizeSetup) -> Path:
    """The same documents through `tokenizers` and webdataset's writer, a document a sample."""
    from tokenizers import Tokenizer as Pipeline
    from webdataset.writer import ShardWriter

    out = _empty(setup.path("written"))
    out.mkdir()
    pipeline: Any = Pipeline.from_file(str(setup.path("tokenizer") / "tokenizer.json"))
    end = Tokenizer.load(setup.path("tokenizer")).eos_id
    texts = [t.strip() for t in setup.path("documents.txt").read_text(encoding="utf-8").split("\n---\n")]
    with ShardWriter(str(out / "%06d.tar"), maxcount=10000, verbose=0) as writer:
        for i in range(0, len(texts), CHUNK):
            for j, e in enumerate(pipeline.encode_batch_fast(texts[i : i + CHUNK], add_special_tokens=False)):
                writer.write({"__key__": f"{i + j:09d}", "tokens.bin": np.array([*e.ids, end], dtype="<u2").tobytes()})
    return out


def same_documents(setup: TokenizeSetup) -> Agreement:
    """Tokens, by id, that only one side wrote (documents may be cut to fill rows, so they are not compared whole)."""
    data = DataSet.open(pack_rows(setup))
    rows: Counter[int] = Counter()
    for i in range(len(data)):
        rows.update(data.read(i).tokens()[0].tolist())
    written: Counter[int] = Counter()
    for sample in _members(write_documents(setup)):
        written.update(np.frombuffer(sample["tokens.bin"], dtype="<u2").tolist())
    return Agreement("tokens that only one side wrote", ((rows - written) + (written - rows)).total(), 0)


def pack_pictures(setup: TokenizeSetup) -> Path:
    """`polymodal pack` of a folder of pictures, in this process alone."""
    out = _empty(setup.path("packed-pictures"))
    pack([setup.path("pictures")], out, PackSettings(Reading("images")), workers=Workers(1))
    return out


def write_pictures(setup: TokenizeSetup) -> Path:
    """The same pictures through webdataset's `ShardWriter`."""
    from webdataset.writer import ShardWriter

    out = _empty(setup.path("written-pictures"))
    out.mkdir()
    files = sorted(setup.path("pictures").rglob("*.jpg"))
    classes = sorted({f.parent.name for f in files})
    with ShardWriter(str(out / "%06d.tar"), maxcount=10000, verbose=0) as writer:
        for i, file in enumerate(files):
            writer.write({"__key__": f"{i:09d}", "jpg": file.read_bytes(), "cls": str(classes.index(file.parent.name))})
    return out


def same_pictures(setup: TokenizeSetup) -> Agreement:
    """Pictures with their class that only one side wrote."""
    found = [Counter((s["jpg"], s["cls"]) for s in _members(make(setup))) for make in (pack_pictures, write_pictures)]
    return Agreement("pictures that only one side wrote", ((found[0] - found[1]) + (found[1] - found[0])).total(), 0)


def _members(directory: Path) -> Iterator[dict[str, bytes]]:
    """The samples of a folder of shards, read by webdataset."""
    return iter(need("webdataset").WebDataset([str(p) for p in sorted(directory.glob("*.tar"))], shardshuffle=False))


def _empty(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return path


@contextmanager
def one_thread() -> Generator[None]:
    """Keep the tokenizers library to one thread, so that rates are per core."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def cases(options: Options) -> Cases:
    """Tokenising, packing texts, packing pictures."""
    peer = options.against and options.peer("tokenize", PEERS)
    quick = options.quick
    count, classes, each = (60, 2, 5) if quick else (12_000, 10, 300)
    with TemporaryDirectory() as temporary, one_thread():
        setup = TokenizeSetup(temporary, count)
        texts = setup.texts()
        tokenizer = Tokenizer.train(texts[:2000], "byte-bpe", 400 if quick else 8000)
        tokenizer.save(setup.path("tokenizer"))
        setup.path("documents.txt").write_text("\n---\n".join(texts), encoding="utf-8")
        for number, picture in enumerate(pictures(classes * each, 16 if quick else 224)):
            folder = setup.path("pictures") / f"class-{number % classes}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:05d}.jpg").write_bytes(picture)

        tokens = sum(map(len, tokenizer.encode_batch(texts, add_special_tokens=False)))
        sides = [Contender("polymodal", partial(ours, setup), encode)]
        sides += [Contender("tokenizers", partial(library, setup), encode)] if peer in (None, "tokenizers") else []
        sides += [Contender("transformers", partial(transformers_tokenizer, setup), encode)] if peer in (None, "transformers") else []
        about = f"{count} documents, {tokens} tokens, byte-level BPE of {tokenizer.vocab_size}, one thread"
        yield Case("tokenise", about, "tokens", tokens, tuple(sides), partial(same_ids, setup), weigh=False)

        fill = DataSet.open(pack_rows(setup)).index.schema["fill"]
        about += f", from one file to shards; ours also makes rows of {BLOCK} ({fill:.4f} full) and the index with checksums"
        yield Case("pack text", about, "tokens", tokens, (Contender("polymodal", partial(replace, setup), pack_rows),
                                      Contender("tokenizers + webdataset", partial(replace, setup), write_documents)),
                   partial(same_documents, setup), weigh=False)

        about = f"{classes * each} JPEGs of 224 pixels from a folder a class to shards; ours also writes the index with checksums"
        yield Case("pack pictures", about, "pictures", classes * each, (Contender("polymodal", partial(replace, setup), pack_pictures),
                                                Contender("webdataset ShardWriter", partial(replace, setup), write_pictures)),
                   partial(same_pictures, setup), weigh=False)
