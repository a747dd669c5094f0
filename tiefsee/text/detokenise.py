"""Tokens to text while they are generated: never half a character, and exactly the text of the whole.

    pieces:  feed(id) + feed(id) + ... + flush()  ==  tokenizer.decode(ids)      (without stop strings)

A token is a run of bytes, so an incremental UTF-8 decoder is all the state there is, and each token costs
the same however long the answer is. (Decoding a growing window of tokens again and again, and comparing
texts, is the other common way: it costs more and can be wrong at U+FFFD.)

`special_ranges` says where in the text the model wrote a control token (`</think>`, `<｜tool▁call▁begin｜>`):
the same letters out of ordinary tokens are ordinary text, and a parser must know.

With stop strings the text that may still become one is held back. The first stop string to be complete
ends the text, so the result does not depend on how the text is cut into tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tiefsee.errors import InvalidSampling
from tiefsee.text.tokenizer import Tokenizer


class Detokeniser:
    """The text of one answer.

    `stopped_by` is the stop string that ended it, else None. `special_ranges` are the (start, end) of control
    tokens in the text of the whole answer; those beyond what was handed out are still held back.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special: bool = True,
    ) -> None:
        if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
            raise InvalidSampling(f"stop is {stop!r}; it must be a list of non-empty strings, for example ['\\n']")
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""
        self._num_chars = 0  # of the whole answer, held back or not
        self.stopped_by: str | None = None
        self.special_ranges: list[tuple[int, int]] = []

    def feed(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that has become final with this token; often "", sometimes several characters.

        `may_stop` False lets a stop string that this token completes pass (min_tokens is not reached).
        """
        assert self.stopped_by is None, "a token after the stop string"
        if token_id in self._skipped:
            return ""
        piece = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        self._num_chars += len(piece)
        if token_id in self._tokenizer.control_ids:
            # A torn character before the token has become U+FFFD, so the token is the end of the piece.
            token = self._tokenizer.token_bytes(token_id).decode(errors="replace")
            self.special_ranges.append((self._num_chars - len(token), self._num_chars))
        return self._release(piece, may_stop)

    def flush(self) -> str:
        """What was held back, at the end of the answer; a torn character becomes U+FFFD."""
        if self.stopped_by is not None:
            return ""
        text = self._release(self._utf8.decode(b"", final=True), may_stop=True)
        text, self._held = text + self._held, ""
        return text

    def _release(self, piece: str, may_stop: bool) -> str:
        if not self._stop or not piece:
            return piece
        text = self._held + piece
        if may_stop and (found := self._first_stop(text)):
            start, self.stopped_by = found
            self._held = ""
            return text[: start + len(self.stopped_by)] if self._include_stop else text[:start]
        keep = self._whole_tokens(self._undecided(text))
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _whole_tokens(self, keep: int) -> int:
        """Keep a control token in one piece: hold all of it back, if its end is."""
        if self.special_ranges:
            start, end = self.special_ranges[-1]
            cut = self._num_chars - keep
            if start < cut < end:
                return self._num_chars - start
        return keep

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """Start and text of the stop string that is complete first; the longest, if several end there.

        A stop string inside `_held` was looked at before, so only ends in the new piece count.
        """
        best: tuple[int, int, str] | None = None
        for stop in self._stop:
            start = text.find(stop, max(0, len(self._held) + 1 - len(stop)))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return best and best[1:]

    def _undecided(self, text: str) -> int:
        """Characters at the end of `text` that may be the beginning of a stop string."""
        longest = max(map(len, self._stop)) - 1
        for size in range(min(longest, len(text)), 0, -1):
            tail = text[-size:]
            if any(stop.startswith(tail) for stop in self._stop):
                return size
        return 0
