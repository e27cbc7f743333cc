"""Addresses without their secrets, for everything that people read or that is kept."""

from __future__ import annotations

import re

HIDDEN = "***"
"""Stands where the secrets of an address were; such an address opens nothing."""

_LOGIN = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#'\"]*@", re.IGNORECASE)
_QUERY = re.compile(r"([a-z][a-z0-9+.-]*://[^\s?#'\"]*)[?#][^\s'\"]*", re.IGNORECASE)


def redact(text: object) -> str:
    """`text` with user names, passwords, query strings and fragments of every address in it replaced by `***`."""
    return _QUERY.sub(rf"\1?{HIDDEN}", _LOGIN.sub(rf"\1{HIDDEN}@", str(text)))
