"""How tools are described to models whose template writes calls but no tools: V3-0324, R1-0528, V3.1.

V3.1's wording is the one of its model card ("ToolCall", deepseek-ai/DeepSeek-V3.1), which is part of the format.
For V3 and R1 no wording was published; theirs here is our own, around the form that their templates write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiefsee.text.control import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEP
from tiefsee.text.parse_fenced import FENCE_CLOSE, FENCE_OPEN

_V31 = f"""

IMPORTANT: ALWAYS adhere to this exact format for tool use:
{CALLS_BEGIN}{CALL_BEGIN}tool_call_name{SEP}tool_call_arguments{CALL_END}{{additional_tool_calls}}{CALLS_END}

Where:
- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces"""

_V3 = f"""

To call functions, end your answer with one block of exactly this form, with one call or several on lines of
their own, each with the name of a function and its arguments as a JSON object that fits its parameters:
{CALLS_BEGIN}{CALL_BEGIN}function{SEP}NAME{FENCE_OPEN}{{"PARAMETER": "VALUE"}}{FENCE_CLOSE}{CALL_END}{CALLS_END}"""


def describe_tools(tools: Sequence[Mapping[str, Any]], dump: Callable[[Any], str], *, fenced: bool) -> str:
    """The text after the system prompt. `dump` writes what is the client's: names and descriptions too."""
    functions = [tool["function"] for tool in tools]
    if fenced:
        return "## Tools\n\nYou can call these functions:\n\n" + "\n".join(map(dump, functions)) + _V3
    parts = [
        f"### {dump(f['name'])}\nDescription: {dump(f.get('description') or '')}\n\nParameters: "
        + dump(f.get("parameters") or {})
        for f in functions
    ]
    return "## Tools\nYou have access to the following tools:\n\n" + "\n\n".join(parts) + _V31
