"""What to type where an optional package is missing: the packages of an extra by their own names.

polymodal itself is in no registry, so `pip install 'polymodal[EXTRA]'` would find nothing, or somebody else's package.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path


def install_line(extra: str) -> str:
    """The command that installs what the extra needs, in a clone and anywhere else."""
    try:
        stated = requires("polymodal") or []
    except PackageNotFoundError:  # the sources alone, on a path
        stated = []
    found = re.compile(rf"""^(?P<what>[^;]+?)\s*;\s*extra\s*==\s*["']{re.escape(extra)}["']\s*$""")
    wanted = [match["what"].replace(" ", "") for line in stated if (match := found.match(line))]
    if not wanted:
        return f"pip install -e '.[{extra}]' in the clone of polymodal"
    return "pip install " + " ".join(f"'{what}'" for what in wanted)


def clone() -> Path | None:
    """The clone of the repository that this package runs from; None where it was installed without one."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None
