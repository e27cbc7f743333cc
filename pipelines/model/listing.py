"""The systems that can be pretrained, as a list and as the README's table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...registry import families, file_of, folder_of
from ...shared.family import Vocabulary
from ..base.markdown import table


@dataclass(frozen=True)
class SystemInfo:
    """One line of `systems()`."""

    name: str
    title: str
    folder: str
    year: int
    paper: str
    url: str
    objective: str
    sizes: tuple[str, ...]
    reference: str
    tasks: tuple[str, ...]
    architectures: tuple[str, ...]
    layouts: tuple[str, ...]
    vocabulary: Vocabulary | None
    """What `polymodal tokenizer train --for` learns."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def systems() -> list[SystemInfo]:
    """Every system that can be pretrained: name, family, year, objective, sizes and reference library."""
    return [
        SystemInfo(f.name, f.card.title, folder_of(f), f.card.year, f.card.paper, f.card.url, f.pretraining.objective, tuple(f.sizes),
                   f.card.reference, tuple(t.name for t in f.tasks), tuple(n.architecture for n in f.nets),
                   tuple(dict.fromkeys(x.name for n in f.nets for x in n.formats)), f.vocabulary)
        for f in families().values()
    ]  # fmt: skip


def readme_table() -> str:
    """The README's table of the systems."""
    rows = [(f"[{f.card.title}](docs/systems/{f.name}.md)", str(f.card.year), f.pretraining.objective, f"`{file_of(f)}`",
             ", ".join(f.sizes), f.card.reference)
            for f in families().values()]  # fmt: skip
    return table(("system", "year", "objective", "file", "sizes", "equal to, both ways"), rows)
