"""Pieces that nobody has taken yet: what comes for the same answer is joined.

Both ends of the socket need this. The worker must not wait for a slow front, the front not for a slow
client; neither may lose a token or grow by more than the answers themselves are long.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO

from tiefsee.serve.wire import Piece


class Pieces:
    """At most one piece per answer, in the order in which the answers first had something."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Piece] = {}
        # Text of pieces that were joined: `+=` on an attribute would copy all of it each time.
        self._texts: dict[tuple[int, int], StringIO] = {}
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, piece: Piece) -> None:
        """Hold a piece; it belongs to this object from now on."""
        key = (piece.request, piece.index)
        self.num_tokens += len(piece.token_ids)
        held = self._held.setdefault(key, piece)
        if held is piece:
            return
        held.token_ids += piece.token_ids
        if key not in self._texts:
            self._texts[key] = StringIO()
            self._texts[key].write(held.text)
        if piece.special_ranges:
            before = self._texts[key].tell()
            held.special_ranges = held.special_ranges or []
            held.special_ranges += [(start + before, end + before) for start, end in piece.special_ranges]
        self._texts[key].write(piece.text)
        if piece.logprobs:
            held.logprobs = held.logprobs or []
            held.logprobs += piece.logprobs
        held.prompt_logprobs = held.prompt_logprobs or piece.prompt_logprobs
        held.finish_reason = held.finish_reason or piece.finish_reason
        held.stop, held.error = held.stop or piece.stop, held.error or piece.error

    def take(self) -> Piece:
        """The piece that has waited longest; KeyError if there is none."""
        key = next(iter(self._held), None)
        if key is None:
            raise KeyError("no pieces are held")
        piece = self._held.pop(key)
        self.num_tokens -= len(piece.token_ids)
        if self._texts and (text := self._texts.pop(key, None)) is not None:
            piece.text = text.getvalue()
        return piece

    def take_all(self) -> Iterator[Piece]:
        while self._held:
            yield self.take()
