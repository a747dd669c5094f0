"""Control tokens inside streaming text: each becomes one character that no text can hold.

A model may write `</think>` as the token, or spell it out of ordinary tokens because it talks about it. The
engine says which is which (`special_ranges`). Here a control token becomes one lone surrogate, U+DC80 and
on, which no UTF-8 decodes to; so a parser searches plain strings and cannot be fooled, and at the door every
one that is left gets its spelling back.
"""

from __future__ import annotations

from collections.abc import Sequence

from tiefsee.text.answer import Ranges
from tiefsee.text.tokenizer import ANSWER_TOKENS, Tokenizer

OPEN, CLOSE, DSML, CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEP = ANSWER_TOKENS
_CHAR = {token: chr(0xDC80 + n) for n, token in enumerate(ANSWER_TOKENS)}
_SPELLING = {ord(char): token for token, char in _CHAR.items()}
_FIRST, _LAST = _CHAR[ANSWER_TOKENS[0]], _CHAR[ANSWER_TOKENS[-1]]


def char(token: str) -> str:
    """The one character that stands for a control token inside a parser."""
    return _CHAR[token]


def marked(text: str) -> str:
    """Our own text, in which every spelling of a control token is one."""
    for token, mark in _CHAR.items():
        text = text.replace(token, mark)
    return text


def spell(text: str) -> str:
    """Marked text as a reader sees it."""
    return text if text.isascii() or not any(_FIRST <= c <= _LAST for c in text) else text.translate(_SPELLING)


class Marker:
    """Marks the control tokens in a stream of text.

    A token that the tokenizer has is one only inside `special_ranges`. One that it has not (or any, where
    nobody knows the ranges) is recognised by its spelling, and what may become one is held back.
    """

    def __init__(self, tokens: Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        self._tokens = frozenset(tokens)
        self._unknown = tuple(t for t in tokens if tokenizer is None or tokenizer.token_id(t) is None)
        self._all = tuple(tokens)
        self._held = ""

    def feed(self, text: str, special_ranges: Ranges | None = None) -> str:
        """The marked text that has become final with this piece."""
        if special_ranges is None:
            return self._search(text, self._all)
        if not special_ranges and not self._unknown and not self._held:
            return text
        marked_text, plain_from = "", 0
        for start, end in special_ranges:
            token = text[start:end]
            if token in self._tokens:
                marked_text += self._search(text[plain_from:start], self._unknown) + self.flush() + _CHAR[token]
                plain_from = end
        return marked_text + self._search(text[plain_from:], self._unknown)

    def flush(self) -> str:
        """What was held back; it became no token."""
        held, self._held = self._held, ""
        return held

    def _search(self, text: str, tokens: tuple[str, ...]) -> str:
        if not tokens:
            return self.flush() + text
        text, self._held = self._held + text, ""
        for token in tokens:
            text = text.replace(token, _CHAR[token])
        keep = overlap(text, tokens)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, tags: Sequence[str]) -> int:
    """Characters at the end of `text` that begin one of the tags, without a whole one: the longest such end.

    overlap("a</thi", ("</think>",)) is 5.
    """
    firsts = {tag[0] for tag in tags}
    longest = max(map(len, tags), default=0) - 1
    for place in range(max(0, len(text) - longest), len(text)):
        if text[place] in firsts:
            tail = text[place:]
            if any(len(tag) > len(tail) and tag.startswith(tail) for tag in tags):
                return len(tail)
    return 0
