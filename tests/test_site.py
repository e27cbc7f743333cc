"""The documentation as a site: it builds, needs no network, and is searched from a disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import pytest

ROOT = Path(__file__).resolve().parent.parent


def built(site: Path) -> Path:
    """As `make docs` builds it."""
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
                          cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return site


@pytest.mark.slow
def test_the_site_builds_strictly_and_names_no_other_host(tmp_path: Path) -> None:
    site = built(tmp_path / "site")
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").rglob("*.md")))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"(https?://[^\"]+)", text)
        assert not fetched, f"{page.name} fetches {fetched}"


@pytest.mark.browser
@pytest.mark.timeout(900)
def test_the_site_is_searched_from_a_disk(tmp_path: Path) -> None:
    """As typed by a reader: results are links to pages that are there, and nothing is asked of a network."""
    site = built(tmp_path / "site")
    probe = """<script>addEventListener("load", () => {
      const box = document.querySelector("input.md-search__input")
      box.focus(); box.value = "Kneser"; box.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }))
      const looking = setInterval(() => {
        const links = [...document.querySelectorAll(".md-search-result__item a")].map(a => a.href)
        if (!links.length) return
        clearInterval(looking)
        const asked = [window, ...document.getElementsByTagName("iframe")].flatMap(
          w => (w.contentWindow || w).performance.getEntriesByType("resource").map(e => e.name))
        document.title = JSON.stringify({ links, asked })
      }, 100)
    })</script></head>"""
    page = site / "systems/mae.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</head>", probe, 1), encoding="utf-8")
    found = json.loads(browser.said(page, tmp_path / "profile", budget=60_000))
    assert found["links"] and all(Path(unquote(urlsplit(link).path)).is_file() for link in found["links"]), found
    assert any("mae" not in link for link in found["links"]), found
    assert not [name for name in found["asked"] if not name.startswith("file:")], found
