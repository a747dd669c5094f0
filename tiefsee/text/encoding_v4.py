"""The chat format of DeepSeek-V4, through DeepSeek's own package `deepseek-recipe`.

Effort. V4 knows three levels of reasoning. The package writes them as the release of 0731 has them; the
first V4 releases wrote less for each level, so there the same texts belong to other names:

    text before the system message     first releases    0731
    none                               high (default)    low
    "Absolute maximum ..."             max               high (default)
    "Beyond maximum ..."               -                 max

Which of the two a checkpoint is, only its own encoding file tells; it is read as text and never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tiefsee.errors import ConfigError
from tiefsee.text.prompt import ChatPrompt, Message, check_messages, check_tools
from tiefsee.text.reasoning import OPEN

if TYPE_CHECKING:
    import deepseek_recipe

Release = Literal["first", "0731"]
RecipeEffort = Literal["low", "high", "xhigh", "max"]

_EFFORTS: dict[Release, dict[str, RecipeEffort]] = {
    "first": {"high": "low", "max": "high"},
    "0731": {"low": "low", "high": "high", "max": "max"},
}
_ONLY_IN_0731 = "Reasoning Effort: Beyond maximum"


class V4Format:
    """Writes conversations for V4. Thinking is on unless switched off."""

    name = "v4"

    def __init__(self, release: Release = "0731") -> None:
        self.release: Release = release

    @classmethod
    def from_encoding_file(cls, path: Path) -> V4Format:
        """The format of the release that ships this encoding_dsv4.py."""
        source = path.read_text(encoding="utf-8", errors="replace")
        return cls("0731" if _ONLY_IN_0731 in source else "first")

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        effort: str | None = None,
    ) -> ChatPrompt:
        import deepseek_recipe as recipe

        check_messages(messages)
        check_tools(tools)
        conversation = recipe.Conversation(
            [_message(recipe, message) for message in messages],
            thinking_mode=thinking is not False,
            tools=[_tool(recipe, tool["function"]) for tool in tools or ()],
            reasoning_effort=self._effort(effort, thinking),
        )
        rendered = recipe.DeepseekV4Encoding().render_conversation(conversation)
        return ChatPrompt(
            rendered.prompt,
            tuple(rendered.special_ranges),
            starts_in_reasoning=rendered.prompt.endswith(OPEN),
        )

    def _effort(self, effort: str | None, thinking: bool | None) -> RecipeEffort:
        if effort is not None and thinking is False:
            raise ConfigError(f"reasoning effort {effort!r} was asked for together with thinking off; drop one")
        levels = _EFFORTS[self.release]
        level = levels.get(effort or "high")
        if level is None:
            raise ConfigError(f"reasoning effort is {effort!r}; this release of V4 has {', '.join(levels)}; take one")
        return level


def _message(recipe: Any, message: Message) -> deepseek_recipe.Message:
    role, content = message["role"], message.get("content") or ""
    made: deepseek_recipe.Message
    if role == "system":
        made = recipe.SystemMessage(content)
    elif role == "user":
        made = recipe.UserMessage(content)
    elif role == "tool":
        made = recipe.ToolMessage(content, message.get("tool_call_id"))
    else:
        calls = [
            recipe.ToolCall(call.get("id", ""), call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ]
        made = recipe.AssistantMessage(content, message.get("reasoning_content"), calls or None)
    return made


def _tool(recipe: Any, function: Mapping[str, Any]) -> deepseek_recipe.ToolDefinition:
    made: deepseek_recipe.ToolDefinition = recipe.ToolDefinition(
        function["name"], function.get("description"), function.get("parameters"), function.get("strict")
    )
    return made
