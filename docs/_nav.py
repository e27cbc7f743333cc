"""Hooks of mkdocs: the cards of `docs/systems/` go into the navigation, and equations become MathML.

A new system changes no list. Equations are fenced as `math`, which GitHub draws too; MathML needs no script and no network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Extend the navigation."""
    cards = sorted(p.name for p in (Path(config["docs_dir"]) / "systems").glob("*.md") if p.name != "index.md")
    for entry in config["nav"]:
        if "Systems" in entry:
            entry["Systems"] = ["systems/index.md", *(f"systems/{name}" for name in cards)]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn fenced equations into MathML."""
    from latex2mathml.converter import convert

    def drawn(found: re.Match[str]) -> str:
        return f'<div class="equation">{convert(" ".join(found[1].split()), display="block")}</div>'

    return re.sub(r"^```math\n(.*?)^```$", drawn, markdown, flags=re.MULTILINE | re.DOTALL)
