"""Answers without tool calls: the reasoning, then the text. The parsers of tool calls build on it.

    undecided ──► reasoning ──► text ◄─┐          a state is a method that takes from the buffer what is
        └─────────────┴──────►  │      │          decided, and says whether it got further
                        calls ◄─┴──────┘ (parse_calls.py)

Whether the answer begins inside the reasoning is known from the prompt. Otherwise `<think>` counts at the very
beginning only (the first R1 template lets the model open it); later it is text, and so is a second `</think>`.
Newlines at the beginning of reasoning and text only separate them and are dropped, except where the answer
continues a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tiefsee.text.answer import Piece, Ranges, Reasoning, Text
from tiefsee.text.control import CLOSE, OPEN, Marker, char, overlap, spell
from tiefsee.text.prompt import ChatPrompt
from tiefsee.text.tokenizer import Tokenizer

_OPEN, _CLOSE = char(OPEN), char(CLOSE)


class PlainParser:
    """Reasoning and text."""

    tokens: tuple[str, ...] = (OPEN, CLOSE)  # the control tokens that mean something here
    openings: tuple[str, ...] = ()  # marked texts that begin tool calls

    def __init__(self, prompt: ChatPrompt, tokenizer: Tokenizer | None = None) -> None:
        self._marker = Marker(self.tokens, tokenizer)
        self._buffer = ""  # marked text that is not decided yet
        self._out: list[Piece] = []
        self._final = False
        self._trim = not prompt.continues
        self._plain: type[Reasoning] | type[Text] = Reasoning if prompt.starts_in_reasoning else Text
        begins_plain = prompt.starts_in_reasoning or prompt.continues
        self._state: Callable[[], bool] = self._in_plain if begins_plain else self._undecided

    @property
    def in_reasoning(self) -> bool:
        return self._plain is Reasoning

    def feed(self, text: str, special_ranges: Ranges | None = None) -> list[Piece]:
        self._buffer += self._marker.feed(text, special_ranges)
        return self._run()

    def flush(self) -> list[Piece]:
        self._buffer += self._marker.flush()
        self._final = True
        pieces = self._run()
        self._finish()
        return pieces + self._run()

    def _run(self) -> list[Piece]:
        while self._buffer and self._state():
            pass
        out, self._out = self._out, []
        return out

    def _finish(self) -> None:
        """The answer is over and the buffer empty: close what is open."""

    # ------------------------------------------------------------------------------ states

    def _undecided(self) -> bool:
        start = self._buffer.lstrip()
        if not start and not self._final:
            return False
        if start.startswith(_OPEN):
            self._plain, self._buffer = Reasoning, start[1:]
        self._state = self._in_plain
        return True

    def _in_plain(self) -> bool:
        """Reasoning or text, up to whatever ends it."""
        buffer = self._buffer
        ends = [_CLOSE] if self._plain is Reasoning else []
        place, opening = first_of(buffer, (*ends, *self.openings))
        if opening is None:
            keep = 0 if self._final else overlap(buffer, self.openings)
            self._emit(buffer[: len(buffer) - keep])
            self._buffer = buffer[len(buffer) - keep :]
            return False
        if opening == _CLOSE:
            self._emit(buffer[:place])
            self._plain, self._trim = Text, True
            self._buffer = buffer[place + 1 :]
            return True
        return self._at_opening(place, opening)

    def _at_opening(self, place: int, opening: str) -> bool:
        """The buffer holds an opening of tool calls at `place`; only parsers of calls get here."""
        raise AssertionError("a parser with openings says what follows them")

    # ---------------------------------------------------------------------------- emission

    def _emit(self, text: str) -> None:
        """Marked text as the part that we are in."""
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        if text:
            self._out.append(self._plain(spell(text)))


def first_of(text: str, tags: Sequence[str]) -> tuple[int, str | None]:
    """Place and text of the tag that comes first."""
    found = [(place, tag) for tag in tags if (place := text.find(tag)) >= 0]
    return min(found, default=(len(text), None))
