"""A hook of mkdocs: puts every card of `docs/systems/` into the navigation, so that a new system changes no list."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Extend the navigation."""
    cards = sorted(p.name for p in (Path(config["docs_dir"]) / "systems").glob("*.md") if p.name != "index.md")
    for entry in config["nav"]:
        if "Systems" in entry:
            entry["Systems"] = ["systems/index.md", *(f"systems/{name}" for name in cards)]
    return config
