"""Tool calls of V3, R1 and V3.1: control tokens around the name and the JSON of the arguments.

    V3, R1   <calls begin><call begin>function<sep>NAME\\n```json\\n{...}\\n```<call end>\\n<call begin>...<calls end>
    V3.1     <calls begin><call begin>NAME<sep>{...}<call end><call begin>...<calls end>

Sources: the chat templates of the releases deepseek-ai/DeepSeek-V3-0324, DeepSeek-R1-0528 and DeepSeek-V3.1,
and the model card of V3.1.
"""

from __future__ import annotations

from collections.abc import Callable

from tiefsee.text.answer import new_call_id
from tiefsee.text.control import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    CLOSE,
    OPEN,
    SEP,
    char,
    overlap,
)  # fmt: skip
from tiefsee.text.parse import first_of
from tiefsee.text.parse_calls import CallParser, MoreText, match_head
from tiefsee.text.prompt import ChatPrompt
from tiefsee.text.tokenizer import Tokenizer

FENCE_OPEN, FENCE_CLOSE = "\n```json\n", "\n```"


class FencedCallParser(CallParser):
    """Parses both forms; `fenced` False is V3.1's."""

    tokens = (OPEN, CLOSE, CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEP)
    openings = (char(CALLS_BEGIN),)

    def __init__(
        self,
        prompt: ChatPrompt,
        tokenizer: Tokenizer | None = None,
        make_id: Callable[[], str] = new_call_id,
        *,
        fenced: bool,
    ) -> None:
        super().__init__(prompt, tokenizer, make_id)
        self._fenced = fenced

    def _header(self, text: str) -> tuple[str, int] | MoreText | None:
        begin = char(CALL_BEGIN)
        literals = (f"{begin}function{char(SEP)}", FENCE_OPEN) if self._fenced else (begin, char(SEP))
        head = match_head(text, literals)
        if not isinstance(head, tuple):
            return head
        (name,), length = head
        return (name.strip(), length) if name.strip() else None

    def _in_call(self) -> bool:
        """Arguments up to the end of the call, as they were written, without the fence."""
        buffer, ends = self._buffer, (char(CALL_END), char(CALLS_BEGIN), char(CALLS_END), char(CALL_BEGIN))
        place, end = first_of(buffer, ends)
        if end is None:
            keep = 0 if self._final or not self._fenced else overlap(buffer, (FENCE_CLOSE + ends[0],))
            self._add_arguments(buffer[: len(buffer) - keep])
            self._buffer = buffer[len(buffer) - keep :]
            return False
        self._add_arguments(buffer[:place].removesuffix(FENCE_CLOSE) if self._fenced else buffer[:place])
        self._end_call(whole=True)
        self._buffer = buffer[place:].removeprefix(ends[0])  # a model may forget it before the next token
        self._state = self._between_calls
        return True

    def _between_calls(self) -> bool:
        return self._next_call(char(CALLS_END))
