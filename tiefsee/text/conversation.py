"""What a request asks of a chat model, whichever protocol carried it: one frozen `Conversation`.

`bodies/` makes it of a Chat Completions, Responses or Messages body; a `ChatFormat` renders it, parses the
answer and writes the grammar that constrains the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
ToolChoice = Literal["auto", "none", "required", "named"]
ResponseKind = Literal["text", "json_object", "json_schema", "regex", "grammar"]


@dataclass(frozen=True)
class ResponseFormat:
    """What the answer after the reasoning must be.

    `source` is the JSON text of the schema, the regular expression or the Lark grammar; "" for the others.
    """

    kind: ResponseKind = "text"
    source: str = ""


@dataclass(frozen=True)
class Conversation:
    """Messages in the spelling of the OpenAI API, content as text, and what is asked of the answer.

    Roles are system, developer, user, assistant, tool. A last message of the assistant with
    `"prefix": True` is continued by the answer instead of answered.
    `tools` are {"type": "function", "function": {"name", "description", "parameters", "strict"}}.
    `thinking` None leaves the choice to the checkpoint. `thinking_budget` is the number of reasoning tokens
    that the client offered (Anthropic); no format writes it, the engine may end the reasoning by it.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None  # the one that "named" names
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    thinking: bool | None = None
    effort: str | None = None
    thinking_budget: int | None = None

    @property
    def continues(self) -> bool:
        """The answer goes on where the last message stops."""
        return bool(self.messages) and bool(self.messages[-1].get("prefix"))

    @property
    def may_call(self) -> bool:
        """Whether an answer may hold tool calls."""
        return bool(self.tools) and self.tool_choice != "none"
