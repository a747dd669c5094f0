"""Which characters of a rendered template came from the client, so that a typed `<｜User｜>` stays text.

A template is rendered twice: with the real values, and with a placeholder for each text of the client. Putting
the texts back into the second must give the first; then everything else is the template's own, and only there
a control token is one. A template that takes a text apart (R1's cuts at `</think>`) shows as a difference.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from tiefsee.errors import RequestError

# What looks like a control token of the family; a match that is no token of the vocabulary is text.
CONTROL = re.compile(r"<[｜|][^｜|<>\n]{1,40}[｜|]>|</?think>|｜DSML｜")
_COMPARED = frozenset({"role", "type"})  # templates look at these


class Placeholders:
    """Texts hidden in one rendering. The marks hold a random number, so that no client can write one."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(8)
        self._texts: list[str] = []
        self._mark = re.compile(f"\ue000{self._nonce}:([0-9]+)\ue001")

    def hide(self, value: Any, key: str = "") -> Any:
        """The same messages or tools with a placeholder for each text; empty texts stay, as they are tested."""
        if isinstance(value, str):
            compared = key in _COMPARED and not CONTROL.search(value)
            return value if not value or compared else self.hide_text(value)
        if isinstance(value, Mapping):
            if any(CONTROL.search(str(name)) for name in value):
                raise RequestError(f"a field of {list(value)!r:.200} is named like a control token; rename it")
            return {k: self.hide(v, k) for k, v in value.items()}
        return [self.hide(v) for v in value] if isinstance(value, (list, tuple)) else value

    def hide_text(self, text: str) -> str:
        self._texts.append(text)
        return f"\ue000{self._nonce}:{len(self._texts) - 1}\ue001"

    def dump(self, value: Any, **options: Any) -> str:
        """`tojson` of a value, with placeholders inside or not: all of it is the client's."""
        text = json.dumps(value, ensure_ascii=False, **options)
        return self.hide_text(self._mark.sub(lambda m: _escaped(self._texts[int(m[1])]), text))

    def show(self, value: Any) -> str:
        """The same for a value without placeholders, and text as it is."""
        return self.hide_text(value) if isinstance(value, str) else self.dump(value)

    def fill(self, rendered: str) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text with everything put back, and the ranges of the template's own control tokens."""
        text = ""
        ranges: list[tuple[int, int]] = []
        for piece, is_own in self._pieces(rendered):
            if is_own:
                ranges += [(len(text) + m.start(), len(text) + m.end()) for m in CONTROL.finditer(piece)]
            text += piece
        return text, tuple(ranges)

    def end_of(self, text: str, rendered: str) -> int | None:
        """Where in the filled text a hidden text ends, the last time it was written; None if it was not."""
        marks = [m for m in self._mark.finditer(rendered) if self._texts[int(m[1])] == text]
        return len(self.fill(rendered[: marks[-1].end()])[0]) if marks else None

    def _pieces(self, rendered: str) -> Iterator[tuple[str, bool]]:
        own_from = 0
        for mark in self._mark.finditer(rendered):
            yield rendered[own_from : mark.start()], True
            yield self._texts[int(mark[1])], False
            own_from = mark.end()
        yield rendered[own_from:], True


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
