"""Tool calls of V3, R1 and V3.1 as grammar rules: the form of `parse_fenced.py`."""

from __future__ import annotations

from collections.abc import Sequence

from tiefsee.text.control import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEP
from tiefsee.text.conversation import Tool
from tiefsee.text.grammar import parameters_of
from tiefsee.text.lark import NEWLINES, Rules, json_rule, lark_string
from tiefsee.text.parse_fenced import FENCE_CLOSE, FENCE_OPEN


class FencedCallGrammar:
    """`fenced` False is V3.1's form."""

    def __init__(self, *, fenced: bool) -> None:
        self._fenced = fenced

    def write(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool, text: str) -> tuple[str, str]:
        calls = " | ".join(self._call(rules, n, tool) for n, tool in enumerate(tools))
        rules.add("call", f"{rules.control(CALL_BEGIN)} ({calls}) {rules.control(CALL_END)}")
        between = r'"\n" ' if self._fenced else ""
        more = f" ({between}call)*" if parallel else ""
        rules.add("calls", f"{rules.control(CALLS_BEGIN)} call{more} {rules.control(CALLS_END)}")
        return f"{rules.add('BEFORE', NEWLINES)}? calls", f"{text} calls?"

    def _call(self, rules: Rules, n: int, tool: Tool) -> str:
        function = tool["function"]
        arguments = rules.add(f"arguments_{n}", json_rule(parameters_of(tool), lenient=not function.get("strict")))
        if not self._fenced:
            return f"{lark_string(function['name'])} {rules.control(SEP)} {arguments}"
        head = f'"function" {rules.control(SEP)} {lark_string(function["name"] + FENCE_OPEN)}'
        return f"{head} {arguments} {lark_string(FENCE_CLOSE)}"
