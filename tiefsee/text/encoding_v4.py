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

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tiefsee.errors import ConfigError, RequestError
from tiefsee.text.answer import AnswerParser, new_call_id
from tiefsee.text.conversation import Conversation, Message, ResponseFormat
from tiefsee.text.grammar import answer_grammar, read_schema
from tiefsee.text.grammar_dsml import DsmlCallGrammar
from tiefsee.text.parse import PlainParser
from tiefsee.text.parse_dsml import DsmlParser
from tiefsee.text.prompt import ChatPrompt, check_messages, check_tools, developer_as_system, opens_reasoning
from tiefsee.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import deepseek_recipe

Release = Literal["first", "0731"]
RecipeEffort = Literal["low", "high", "xhigh", "max"]

BLOCK = "tool_calls"  # the tag around all calls
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

    @property
    def efforts(self) -> tuple[str, ...]:
        return tuple(_EFFORTS[self.release])

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
        response_format: ResponseFormat | None = None,
    ) -> ChatPrompt:
        import deepseek_recipe as recipe

        check_messages(messages)
        check_tools(tools)
        level = self._effort(effort, thinking)
        try:
            conversation = recipe.Conversation(
                [_message(recipe, message, thinking is not False) for message in developer_as_system(messages)],
                thinking_mode=thinking is not False,
                tools=[_tool(recipe, tool["function"]) for tool in tools or ()],
                reasoning_effort=level,
                **_response(response_format),
            )
            rendered = recipe.DeepseekV4Encoding().render_conversation(conversation)
        except (
            OverflowError,
            UnicodeEncodeError,
            RecursionError,
        ) as error:  # not in its JSON
            raise RequestError(f"V4's format cannot write this conversation: {error}; leave that out") from error
        ranges = tuple(rendered.special_ranges)
        in_reasoning = opens_reasoning(rendered.prompt, ranges)
        return ChatPrompt(rendered.prompt, ranges, in_reasoning, continues=bool(messages[-1].get("prefix")))

    def parser(
        self,
        prompt: ChatPrompt,
        *,
        tokenizer: Tokenizer | None = None,
        calls: bool = True,
        make_id: Callable[[], str] = new_call_id,
    ) -> AnswerParser:
        if not calls:
            return PlainParser(prompt, tokenizer)
        return DsmlParser(prompt, tokenizer, make_id, block=BLOCK)

    def grammar(self, conversation: Conversation, prompt: ChatPrompt, tokenizer: Tokenizer) -> str | None:
        return answer_grammar(conversation, prompt, tokenizer, DsmlCallGrammar(BLOCK))

    def _effort(self, effort: str | None, thinking: bool | None) -> RecipeEffort:
        if effort is not None and thinking is False:
            raise ConfigError(f"reasoning effort {effort!r} was asked for together with thinking off; drop one")
        levels = _EFFORTS[self.release]
        level = levels.get(effort or "high")
        if level is None:
            raise ConfigError(f"reasoning effort is {effort!r}; this release of V4 has {', '.join(levels)}; take one")
        return level


def _response(wanted: ResponseFormat | None) -> dict[str, Any]:
    """What the prompt says of the answer's form; it has no words for a regex or a grammar."""
    if wanted is not None and wanted.kind == "json_object":
        return {"response_format": "json_object"}
    if wanted is not None and wanted.kind == "json_schema":
        return {"response_schema": read_schema(wanted.source)}
    return {}


def _message(recipe: Any, message: Message, thinking: bool) -> deepseek_recipe.Message:
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
        prefix = bool(message.get("prefix"))
        # Without reasoning, DeepSeek's API writes an empty one in thinking mode, and none otherwise.
        reasoning = message.get("reasoning_content") or ("" if thinking else None)
        made = recipe.AssistantMessage(content, reasoning, calls or None, prefix)
    return made


def _tool(recipe: Any, function: Mapping[str, Any]) -> deepseek_recipe.ToolDefinition:
    made: deepseek_recipe.ToolDefinition = recipe.ToolDefinition(
        function["name"], function.get("description"), function.get("parameters"), function.get("strict")
    )
    return made
