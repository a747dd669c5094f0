"""What the two families of tool calls share: where plain text ends, a head, the open call, and what follows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tiefsee.text.answer import CallArguments, CallBegin, CallEnd, Text
from tiefsee.text.control import spell
from tiefsee.text.parse import PlainParser
from tiefsee.text.prompt import ChatPrompt
from tiefsee.text.tokenizer import Tokenizer

BLANK = " \n\t\r"


class CallParser(PlainParser):
    """Reasoning, text and calls.

    A subclass says in `_header` how a call begins, and has states for what is inside. A first call whose
    header is malformed or cut off is plain text, opening and all. One that breaks later, or is cut off, ends
    with `complete` False and its arguments stay as they are (an open JSON text, which no client runs by
    mistake); what follows the break is text. Only a tag that the end of the answer cuts in two is dropped.
    """

    separator = ""  # what the format writes between plain text and calls; it belongs to neither

    def __init__(self, prompt: ChatPrompt, tokenizer: Tokenizer | None, make_id: Callable[[], str]) -> None:
        super().__init__(prompt, tokenizer)
        self._make_id = make_id
        self._num_calls = 0
        self._arguments: list[str] | None = None  # of the open call

    def _header(self, text: str) -> tuple[str, int] | MoreText | None:
        """Name and length of the head of a call at the beginning of `text`; None if there is none."""
        raise NotImplementedError

    def _in_call(self) -> bool:
        raise NotImplementedError

    def _finish(self) -> None:
        if self._arguments is not None:
            self._end_call(whole=False)

    def _at_opening(self, place: int, opening: str) -> bool:
        after = place + len(opening)
        blank = count_blank(self._buffer, after)
        head = self._header(self._buffer[after + blank :])
        if isinstance(head, MoreText) and not self._final:
            text_end = place - overlap_before(self._buffer, place, self.separator)
            self._emit(self._buffer[:text_end])
            self._buffer = self._buffer[text_end:]
            return False
        if head is None or isinstance(head, MoreText):
            self._emit(self._buffer[:after])
            self._buffer = self._buffer[after:]
            return True
        self._emit(self._buffer[: place - overlap_before(self._buffer, place, self.separator)])
        self._begin_call(head[0], self._buffer[after + blank + head[1] :])
        return True

    def _next_call(self, end: str) -> bool:
        """Between calls: another one, or the `end` of them all, or neither."""
        blank = count_blank(self._buffer, 0)
        rest = self._buffer[blank:]
        head = self._header(rest)
        if isinstance(head, tuple):
            self._begin_call(head[0], rest[head[1] :])
            return True
        if rest.startswith(end):
            self._to_text(rest[len(end) :])
            return True
        if isinstance(head, MoreText) or end.startswith(rest):
            return self._wait()
        self._to_text(self._buffer)
        return True

    def _wait(self) -> bool:
        """The buffer may still become a tag. At the end of the answer it never will, and is no text either."""
        if self._final:
            self._buffer = ""
        return False

    def _begin_call(self, name: str, rest: str) -> None:
        self._arguments = []
        self._out.append(CallBegin(self._num_calls, self._make_id(), spell(name)))
        self._buffer, self._state = rest, self._in_call

    def _add_arguments(self, text: str) -> None:
        assert self._arguments is not None
        if text:
            text = spell(text)
            self._arguments.append(text)
            self._out.append(CallArguments(self._num_calls, text))

    def _end_call(self, *, whole: bool) -> None:
        assert self._arguments is not None
        complete = whole and is_object("".join(self._arguments))
        self._out.append(CallEnd(self._num_calls, complete))
        self._num_calls += 1
        self._arguments = None

    def _break_call(self) -> bool:
        """Neither the call's content nor its end: the rest is text."""
        self._end_call(whole=False)
        self._to_text(self._buffer)
        return True

    def _to_text(self, rest: str) -> None:
        self._plain, self._trim = Text, False
        self._buffer, self._state = rest, self._in_plain


class MoreText:
    """The text may still become what was asked for, with more of it."""


MORE = MoreText()


def match_head(text: str, literals: Sequence[str]) -> tuple[list[str], int] | MoreText | None:
    """Fields and length of a head at the beginning of `text`: literal, field, literal, field, literal.

    A field ends where the next literal begins with its first character, and holds no line break:
    match_head('name="a">', ('name="', '">')) is (["a"], 9).
    """
    fields: list[str] = []
    place = 0
    for n, literal in enumerate(literals):
        if n:
            end = text.find(literal[0], place)
            field = text[place:] if end < 0 else text[place:end]
            if "\n" in field:
                return None
            if end < 0:
                return MORE
            fields.append(field)
            place = end
        if not text.startswith(literal, place):
            return MORE if literal.startswith(text[place:]) else None
        place += len(literal)
    return fields, place


def overlap_before(text: str, place: int, separator: str) -> int:
    """How much of the separator stands right before `place`: its longest end that does."""
    return next((n for n in range(len(separator), 0, -1) if text.endswith(separator[-n:], 0, place)), 0)


def count_blank(text: str, place: int) -> int:
    """White space from `place` on."""
    rest = text[place:]
    return len(rest) - len(rest.lstrip(BLANK))


def is_object(text: str) -> bool:
    return isinstance(read_json(text), dict)


def read_json(text: str) -> Any:
    """The value of a JSON text; None for one that is no JSON (or is `null`)."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
