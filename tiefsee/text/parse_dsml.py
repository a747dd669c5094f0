"""Tool calls of V3.2 and V4: DSML, an XML whose tags carry the token `｜DSML｜`.

    <｜DSML｜tool_calls>                                  (V3.2: function_calls)
    <｜DSML｜invoke name="clock">
    <｜DSML｜parameter name="zone" string="true">CET</｜DSML｜parameter>
    <｜DSML｜parameter name="n" string="false">1</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜tool_calls>

The JSON of the arguments is built while the parameters come. Strings stream as they are, objects and arrays as
the model writes them; a number or a word waits for its end, and one that is no JSON becomes a string.
Source: the prompt encoding of `deepseek-recipe` 0.2 and encoding/encoding_dsv32.py of the release V3.2.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from tiefsee.text.answer import new_call_id
from tiefsee.text.control import CLOSE, DSML, OPEN, char, overlap, spell
from tiefsee.text.parse_calls import BLANK, MORE, CallParser, MoreText, count_blank, match_head, read_json
from tiefsee.text.prompt import ChatPrompt
from tiefsee.text.tokenizer import Tokenizer

_D = char(DSML)
_END_PARAMETER = f"</{_D}parameter>"
_END_CALL = f"</{_D}invoke>"
_PARAMETER = (f'<{_D}parameter name="', '" string="', '">')


class DsmlParser(CallParser):
    """`block` is the name of the tag around all calls: "tool_calls" in V4, "function_calls" in V3.2."""

    tokens = (OPEN, CLOSE, DSML)
    separator = "\n\n"

    def __init__(
        self,
        prompt: ChatPrompt,
        tokenizer: Tokenizer | None = None,
        make_id: Callable[[], str] = new_call_id,
        *,
        block: str,
    ) -> None:
        opening = f"<{_D}{block}>"
        # With the separator before it, so that the separator waits to see whether calls follow.
        self.openings = (opening, f"\n{opening}", f"\n\n{opening}")
        self._end_block = f"</{_D}{block}>"
        super().__init__(prompt, tokenizer, make_id)

    def _header(self, text: str) -> tuple[str, int] | MoreText | None:
        head = match_head(text, (f'<{_D}invoke name="', '">'))
        if not isinstance(head, tuple):
            return head
        (name,), length = head
        return (name, length) if name else None

    def _at_opening(self, place: int, opening: str) -> bool:
        newlines = len(opening) - len(opening.lstrip("\n"))
        return super()._at_opening(place + newlines, opening[newlines:])

    def _in_call(self) -> bool:
        """Before a parameter or the end of the call."""
        blank = count_blank(self._buffer, 0)
        rest = self._buffer[blank:]
        if rest.startswith(_END_CALL):
            self._add_arguments("}" if self._arguments else "{}")
            self._end_call(whole=True)
            self._buffer, self._state = rest[len(_END_CALL) :], self._between_calls
            return True
        head = match_head(rest, _PARAMETER)
        if isinstance(head, tuple) and head[0][1] in ("true", "false"):
            (name, is_string), length = head
            self._add_arguments((", " if self._arguments else "{") + _json(spell(name)) + ": ")
            self._buffer = rest[length:]
            self._state = self._begin_string if is_string == "true" else self._begin_json
            return True
        if head is MORE or _END_CALL.startswith(rest):
            return self._wait()
        return self._break_call()

    def _begin_string(self) -> bool:
        self._add_arguments('"')
        self._state = self._in_string
        return True

    def _in_string(self) -> bool:
        value, is_over = self._value()
        self._add_arguments(_json(spell(value))[1:-1] + ('"' if is_over else ""))
        return is_over

    def _begin_json(self) -> bool:
        start = self._buffer.lstrip(BLANK)
        if not start and not self._final:
            return False
        self._state = self._in_aggregate if start[:1] in ("{", "[") else self._in_scalar
        return True

    def _in_aggregate(self) -> bool:
        value, is_over = self._value()
        self._add_arguments(value)
        return is_over

    def _in_scalar(self) -> bool:
        """A number, a word or a quoted string: short, so it waits for its end."""
        end = self._buffer.find(_END_PARAMETER)
        if end < 0 and not self._final:
            return False
        value, is_over = self._value()
        text = spell(value)
        self._add_arguments(text if not is_over or _is_json(text) else _json(text))
        return is_over

    def _value(self) -> tuple[str, bool]:
        """Take what is decided of a parameter's value, and whether it is over."""
        buffer = self._buffer
        end = buffer.find(_END_PARAMETER)
        if end >= 0:
            self._buffer, self._state = buffer[end + len(_END_PARAMETER) :], self._in_call
            return buffer[:end], True
        keep = 0 if self._final else overlap(buffer, (_END_PARAMETER,))
        self._buffer = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], False

    def _between_calls(self) -> bool:
        return self._next_call(self._end_block)


def _json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_json(text: str) -> bool:
    return text.strip(BLANK) == "null" or read_json(text) is not None
