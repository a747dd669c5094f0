"""What comes out of an answer: typed pieces, in the order in which the model wrote them.

An `AnswerParser` takes the engine's text as it streams and gives pieces. Nothing is lost: what is not
well-formed comes back as text, and a call that was cut off ends with `CallEnd(complete=False)`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Ranges: TypeAlias = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call begins. `index` counts the calls of one answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next text of a call's arguments; all of a call joined are the JSON text of an object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is over. Not `complete`: the answer was cut off or broke its format inside the call."""

    index: int
    complete: bool = True


Piece: TypeAlias = Reasoning | Text | CallBegin | CallArguments | CallEnd


class AnswerParser(Protocol):
    """State over one answer; every way to cut the answer into `feed`s gives the same joined pieces."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the next text would be reasoning: what counts reasoning tokens asks this before `feed`."""
        ...

    def feed(self, text: str, special_ranges: Ranges | None = None) -> list[Piece]:
        """The pieces that have become final with this text.

        `special_ranges` are the (start, end) of `text` that the model wrote as single control tokens
        (`Delta.special_ranges`); None means that nobody knows, so they are recognised by their spelling.
        """
        ...

    def flush(self) -> list[Piece]:
        """What was held back, at the end of the answer, and the end of a call that was cut off."""
        ...


@dataclass(frozen=True)
class ToolCall:
    """One whole call. `arguments` is JSON text as the model wrote it; not `complete` if cut off."""

    id: str
    name: str
    arguments: str
    complete: bool = True


@dataclass(frozen=True)
class ParsedAnswer:
    """All pieces of one answer, joined."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[ToolCall, ...] = ()

    def message(self) -> dict[str, Any]:
        """The assistant's message in the spelling of the OpenAI API, fit to be passed back."""
        made: dict[str, Any] = {"role": "assistant", "content": self.text or (None if self.calls else "")}
        if self.reasoning:
            made["reasoning_content"] = self.reasoning
        if self.calls:
            made["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.calls
            ]
        return made


def join(pieces: Iterable[Piece]) -> ParsedAnswer:
    """The whole answer from its pieces."""
    reasoning: list[str] = []
    text: list[str] = []
    heads: dict[int, CallBegin] = {}
    arguments: dict[int, list[str]] = {}
    complete: dict[int, bool] = {}
    for piece in pieces:
        match piece:
            case Reasoning():
                reasoning.append(piece.text)
            case Text():
                text.append(piece.text)
            case CallBegin():
                heads[piece.index] = piece
            case CallArguments():
                arguments.setdefault(piece.index, []).append(piece.text)
            case CallEnd():
                complete[piece.index] = piece.complete
    calls = (
        ToolCall(head.id, head.name, "".join(arguments.get(index, ())), complete.get(index, False))
        for index, head in sorted(heads.items())
    )
    return ParsedAnswer("".join(reasoning), "".join(text), tuple(calls))


def new_call_id() -> str:
    """An id for a tool call: the model writes none, and clients need one to say which result is whose."""
    return f"call_{secrets.token_hex(12)}"
