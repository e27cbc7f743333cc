"""Text of tokens that come one by one: whole characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...shared.tokenizer import Tokenizer

CONTEXT = 8
"""Tokens of the prompt that a continuation is decoded behind, because vocabularies hide spaces at the start of a text."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class RowStreamer:
    """The text of one row.

    A token may end in the middle of a character, and a character may begin a stop string; both are held back until
    the next token tells.

    Args:
        tokenizer: the vocabulary.
        before: the ids that come before the first one.
        stops: the text ends before the first of these.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.ids = list(before)[-CONTEXT:]
        self.start, self.read = 0, len(self.ids)  # ids before `read` are text already; those from `start` are their context
        self.held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add an id; returns the text that is final now, perhaps none."""
        self.ids.append(token)
        added = self._unread()
        if added.endswith(UNFINISHED):
            return ""
        if added:
            self.start, self.read = self.read, len(self.ids)
        return self._release(added)

    def finish(self) -> str:
        """The rest of the text, when no more ids come."""
        if self.stopped:
            return ""
        out = self._release(self._unread())
        self.start = self.read = len(self.ids)
        if not self.stopped:
            self.text += self.held
            out, self.held = out + self.held, ""
        return out

    def _unread(self) -> str:
        known, whole = self.tokenizer.decode_batch([self.ids[self.start:self.read], self.ids[self.start:]])
        return whole[len(known):]

    def _release(self, added: str) -> str:
        """Of what is held and `added`, the part that no stop string can begin in."""
        self.held += added
        ends = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            out, self.held = self.held[:min(ends)], ""
        else:
            keep = max((n for stop in self.stops for n in range(min(len(stop) - 1, len(self.held)), 0, -1)
                        if self.held.endswith(stop[:n])), default=0)
            out = self.held[:len(self.held) - keep]
            self.held = self.held[len(self.held) - keep:]
        self.text += out
        return out


class BatchStreamer:
    """The texts of all rows while they are written, their stop strings, and a listener for one row's text.

    Args:
        rows: the text of each row.
        listener: called with each piece of text that is final; for one row.
    """

    def __init__(self, rows: Sequence[RowStreamer], listener: Callable[[str], None] | None = None) -> None:
        self.rows, self.listener = list(rows), listener
        self.closed = [False] * len(self.rows)

    def __call__(self, ids: list[int], finished: list[bool]) -> list[bool]:
        """Take the next id of each row; returns which rows have met a stop string now or before."""
        for number, (row, token, over) in enumerate(zip(self.rows, ids, finished)):
            if self.closed[number]:
                continue
            self._tell(row.finish() if over else row.push(token))  # the end itself is no text
            self.closed[number] = over or row.stopped
        return [row.stopped for row in self.rows]

    def finish(self) -> list[str]:
        """The texts, when nothing more comes."""
        for row in self.rows:
            self._tell(row.finish())
        return [row.text for row in self.rows]

    def _tell(self, piece: str) -> None:
        if piece and self.listener is not None:
            self.listener(piece)
