"""Chromium without a window, for tests marked `browser`: what a page of the disk shows, and how it looks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def shown(page: Path, profile: Path, *options: str, budget: int = 10_000) -> str:
    """The document after `budget` milliseconds of the page's own time; a message on its console is a failure."""
    done = _chromium(profile, f"--virtual-time-budget={budget}", *options, "--dump-dom", page.as_uri())
    assert ":CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


def said(page: Path, profile: Path, *options: str, budget: int = 10_000) -> str:
    """What a probe in the page left in its title."""
    return shown(page, profile, *options, budget=budget).split("<title>")[1].split("</title>")[0]


def _chromium(profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "this test needs Chromium"
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}", "--enable-logging=stderr",
         "--window-size=1400,1000", *options],
        capture_output=True, text=True, timeout=120)  # fmt: skip
