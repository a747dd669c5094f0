"""Reasoning apart from the answer, while the text streams in: `<think>` reasoning `</think>` answer.

Whether the answer begins inside the reasoning is known from the prompt (`ChatPrompt.starts_in_reasoning`:
R1, V3.1, V3.2 and V4 open `<think>` in the prompt). Otherwise `<think>` counts at the very beginning only,
as with the first R1 template; later it is ordinary text, and so is a second `</think>`.
Newlines at the beginning of either part only separate them and are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OPEN = "<think>"
CLOSE = "</think>"


@dataclass(frozen=True)
class Delta:
    """New text of either part; usually one of them is empty."""

    reasoning: str = ""
    answer: str = ""


class ReasoningSplitter:
    """State over one answer. `in_reasoning` is where the next text would go."""

    def __init__(self, starts_in_reasoning: bool, open_tag: str = OPEN, close_tag: str = CLOSE) -> None:
        self._open, self._close = open_tag, close_tag
        self._state: Literal["undecided", "reasoning", "answer"] = "reasoning" if starts_in_reasoning else "undecided"
        self._held = ""  # text that may still turn out to be a tag
        self._at_start = True  # of the part, where newlines are dropped

    @property
    def in_reasoning(self) -> bool:
        return self._state == "reasoning"

    def feed(self, text: str) -> Delta:
        """Split one piece; text that may be the beginning of a tag waits for the next piece."""
        text, self._held = self._held + text, ""
        if self._state == "undecided":
            text = self._decide(text)
        if self._state == "reasoning":
            return self._feed_reasoning(text)
        return Delta(answer=self._without_newlines(text)) if self._state == "answer" else Delta()

    def flush(self) -> Delta:
        """What was held back, at the end; an answer cut off inside the reasoning stays reasoning."""
        text, self._held = self._held, ""
        text = self._without_newlines(text)
        return Delta(reasoning=text) if self.in_reasoning else Delta(answer=text)

    def _decide(self, text: str) -> str:
        """Does the text open with the tag? Holds it back while both are possible."""
        start = text.lstrip()
        if start.startswith(self._open):
            self._state = "reasoning"
            return start[len(self._open) :]
        if self._open.startswith(start):
            self._held = text
            return ""
        self._state = "answer"
        return text

    def _feed_reasoning(self, text: str) -> Delta:
        reasoning, tag, answer = text.partition(self._close)
        if not tag:
            keep = _overlap(text, self._close)
            self._held = text[len(text) - keep :]
            return Delta(reasoning=self._without_newlines(text[: len(text) - keep]))
        reasoning = self._without_newlines(reasoning)
        self._state, self._at_start = "answer", True
        return Delta(reasoning, self._without_newlines(answer))

    def _without_newlines(self, text: str) -> str:
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        return text


def split_reasoning(text: str, starts_in_reasoning: bool) -> tuple[str, str]:
    """(reasoning, answer) of a finished text."""
    splitter = ReasoningSplitter(starts_in_reasoning)
    deltas = [splitter.feed(text), splitter.flush()]
    return "".join(d.reasoning for d in deltas), "".join(d.answer for d in deltas)


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag`, without the whole tag."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)
