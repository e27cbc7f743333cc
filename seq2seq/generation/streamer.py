"""Text of tokens that come one by one: whole characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...shared.tokenizer import Tokenizer
from ...shared.tokenizer.clean import CleanUp

CONTEXT = 8
"""Tokens of the prompt that a continuation is decoded behind, because vocabularies hide spaces at the start of a text."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class RowStreamer:
    """The text of one row.

    A token may end in the middle of a character, and a character may begin a stop string; both are held back until
    the next token tells.

    Stop strings are looked for as in transformers: in the text of prompt and continuation together, special tokens spelled
    as they stand in the vocabulary, and only where they end within a new token. So a stop string may be or hold a special
    token, may begin in the prompt, and does not end a text for standing in the prompt.

    Deviation: a character that takes several tokens is a character here; in transformers it does not match.

    Args:
        tokenizer: the vocabulary.
        before: the ids that come before the first one.
        stops: the text ends before the first of these.
        limit: it ends with this many ids; None for no limit.
        listener: called with each piece of text that is final.
        wanted: asked after each id whether the text is still needed.
        closing: called once, when an id ends the text: with True where it was an end token or a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stops: Sequence[str] = (), *, limit: int | None = None,
                 listener: Callable[[str], object] | None = None, wanted: Callable[[], bool] = lambda: True,
                 closing: Callable[[bool], object] = lambda ended: None) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.limit, self.listener, self.wanted, self.closing = limit, listener, wanted, closing
        self.ids = [i for i in before if i not in tokenizer.special_ids][-CONTEXT:]
        self.start, self.read = 0, len(self.ids)  # ids before `read` are text already; those from `start` are their context
        self.held = ""
        if stops and before:
            last = before[-4 * max(map(len, stops)) :]
            self.held = tokenizer.decode(last, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        """What a stop string may still begin in, special tokens spelled."""
        self.visible = [False] * len(self.held)
        """Which characters of `held` are text of this row: no special tokens, and not the prompt."""
        self.cleaning = CleanUp() if tokenizer.framing.clean_up else None
        self.text = ""
        self.count = 0
        self.stopped = self.closed = False

    def take(self, token: int, over: bool) -> None:
        """Take the next id and tell the listener; the text ends with it where it is `over`."""
        self.count += 1
        self.tell(self.push(token))  # an end that is not a special token has a text, such as the end of a line
        full = over or self.count == self.limit
        if full:
            self.tell(self.finish())
        self.closed = full or self.stopped or not self.wanted()
        if self.closed:
            self.closing(over or self.stopped)

    def tell(self, piece: str) -> None:
        """Let the listener hear a piece."""
        if piece and self.listener is not None:
            self.listener(piece)

    def push(self, token: int) -> str:
        """Add an id; returns the text that is final now, perhaps none."""
        if token in self.tokenizer.special_ids:
            return self._release(self.tokenizer.id_to_token(token) or "", visible=False) if self.stops else ""
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
        return out if self.stopped else out + self._take(len(self.held), last=True)

    def _unread(self) -> str:
        known, whole = self.tokenizer.decode_batch([self.ids[self.start:self.read], self.ids[self.start:]],
                                                    clean_up_tokenization_spaces=False)
        return whole[len(known):]

    def _release(self, added: str, *, visible: bool = True) -> str:
        """Of what is held and `added`, the part that no stop string can begin in."""
        old = len(self.held)
        self.held += added
        self.visible += [visible] * len(added)
        # one that ended before `added` was none: it stands in the prompt
        found = [at for stop in self.stops if (at := self.held.find(stop, max(0, old - len(stop) + 1))) >= 0]
        if added and found:
            self.stopped = True
            return self._take(min(found), last=True)
        keep = max((n for stop in self.stops for n in range(min(len(stop) - 1, len(self.held)), 0, -1) if self.held.endswith(stop[:n])),
                   default=0)
        return self._take(len(self.held) - keep)

    def _take(self, count: int, *, last: bool = False) -> str:
        """Let go of the first `count` characters that are held; returns those that are text. No more come after the `last`."""
        out = "".join(c for c, shown in zip(self.held[:count], self.visible) if shown)
        self.held, self.visible = self.held[count:], self.visible[count:]
        if self.cleaning is not None:
            out = self.cleaning.push(out) + (self.cleaning.finish() if last else "")
        self.text += out
        return out


class BatchStreamer:
    """The texts of all rows while they are written; ends those that are over.

    Args:
        rows: the text of each row.
    """

    def __init__(self, rows: Sequence[RowStreamer]) -> None:
        self.rows = list(rows)

    def __call__(self, ids: list[int], finished: list[bool]) -> list[bool]:
        """Take the next id of each row, and which rows end with it; returns which have ended now or before."""
        for row, token, over in zip(self.rows, ids, finished):
            if not row.closed:
                row.take(token, over)
        return [row.closed for row in self.rows]

    def finish(self) -> list[str]:
        """The texts, when nothing more comes."""
        for row in self.rows:
            row.tell(row.finish())
        return [row.text for row in self.rows]
