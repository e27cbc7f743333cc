"""Files of vectors: the array, what each row is of, and which network made it.

`NAME.npy` holds the vectors, fp32 [N, D]. Beside it `NAME.keys.jsonl` says what each row is of, and `NAME.model.json` what made it: the
fingerprints of weights and tokenizer, so that vectors of another network are never compared with these, and the sha256 of the array.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...shared.errors import UserError
from ...shared.settings import check_settings
from ...shared.tokenizer import Tokenizer
from ..base.files import json_lines, write_atomic
from ..model.open import fingerprint

FORMAT = "polymodal vectors"


@dataclass(frozen=True)
class Maker:
    """What made the vectors of a file."""

    of: str
    """`text` or `image`."""
    model: str
    """Where the network was."""
    weights: str
    """The fingerprint of its weights."""
    tokenizer: str = ""
    """The tokenizer's, of vectors of texts."""
    max_length: int | None = None
    """Tokens of a text, as they were limited; None for the network's own limit."""

    @classmethod
    def found(cls, net: nn.Module, source: str, vocabulary: Tokenizer | None = None, max_length: int | None = None) -> Maker:
        """Of a network with its tokenizer (vectors of texts) or without (of pictures)."""
        if vocabulary is None:
            return cls("image", source, fingerprint(net))
        return cls("text", source, fingerprint(net), vocabulary.fingerprint, max_length)


@dataclass(frozen=True)
class Embedded:
    """A file of vectors, mapped and not read."""

    path: Path
    vectors: np.ndarray
    """fp32 [N, D]."""
    maker: Maker
    sha256: str
    """Of the file."""

    @classmethod
    def open(cls, path: str | Path) -> Embedded:
        """The file with what made it.

        Raises:
            UserError: `polymodal embed` did not write it, or it was changed since.
        """
        path = Path(path)
        if path.suffix != ".npy" or not path.is_file():
            raise UserError(f"there is no file of vectors {str(path)!r}: expected a .npy file from `polymodal embed --out`")
        try:
            record = json.loads(maker_file(path).read_text(encoding="utf-8"))
            wanted = record.pop("sha256")
            if record.pop("format") != FORMAT or record.pop("version") != 1:
                raise KeyError("format")
            maker, problems = check_settings(Maker, record)
        except FileNotFoundError:
            raise UserError(f"{path} does not say which model made it ({maker_file(path).name} is not beside it): make it with `polymodal "
                            "embed --out`") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            maker, problems, wanted = None, [], ""
        if maker is None or problems or not keys_file(path).is_file():
            raise UserError(f"{path} has no readable {maker_file(path).name} and {keys_file(path).name} beside it: embed again")
        if sha256_of(path) != wanted:
            raise UserError(f"{path} is not the file that {maker_file(path).name} belongs to: it was changed or replaced; embed again")
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            vectors = np.zeros(0)
        if vectors.ndim != 2 or vectors.dtype != np.float32 or not len(vectors):
            raise UserError(f"{path} holds no vectors: expected a float32 array [N, D]")
        return cls(path, vectors, maker, wanted)

    def records(self, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        """What these rows are of: `text`, `image`, or the `sample` and `key` of a data set."""
        wanted, found = set(rows), dict[int, dict[str, Any]]()
        with keys_file(self.path).open(encoding="utf-8", newline="\n") as file:
            for row, line in enumerate(file):
                if row in wanted:
                    try:
                        found[row] = {k: v for k, v in json.loads(line).items() if k != "row"}
                    except (ValueError, AttributeError):
                        break
        if lacking := wanted - set(found):
            raise UserError(f"{keys_file(self.path)} has no line for row {min(lacking)}: it was changed; embed again")
        return found


def write(out: Path, names: Sequence[str], vectors: np.ndarray, maker: Maker) -> None:
    """Write vectors with what they are of and what made them. The array is written last: it is complete or not there."""
    data = io.BytesIO()
    np.save(data, vectors)
    write_atomic(keys_file(out), json_lines({"row": row, maker.of: name} for row, name in enumerate(names)).encode("utf-8"))
    write_maker(out, asdict(maker), hashlib.sha256(data.getbuffer()).hexdigest())
    write_atomic(out, data.getvalue())


def write_maker(out: Path, maker: Mapping[str, Any], sha256: str) -> None:
    """Write what made a file, whose content has this hash."""
    record = {"format": FORMAT, "version": 1, **maker, "sha256": sha256}
    write_atomic(maker_file(out), (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"))


def sha256_of(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keys_file(out: Path) -> Path:
    """Where the keys of a `.npy` file's rows are."""
    return out.with_suffix(".keys.jsonl")


def maker_file(out: Path) -> Path:
    """Where it is told what made a `.npy` file."""
    return out.with_suffix(".model.json")
