"""Addresses without their secrets, for everything that people read or that is kept."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#'\"]*@", re.IGNORECASE)
_QUERY = re.compile(r"([a-z][a-z0-9+.-]*://[^\s?#'\"]*)[?#][^\s'\"]*", re.IGNORECASE)


def redact(text: object) -> str:
    """`text` with user names, passwords, query strings and fragments of every address in it replaced by `***`."""
    return _QUERY.sub(r"\1?***", _LOGIN.sub(r"\1***@", str(text)))
