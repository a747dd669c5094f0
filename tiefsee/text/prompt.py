"""What goes into a chat format and what comes out: messages in, one prompt out.

Messages are plain dictionaries in the spelling of the OpenAI API: `role`, `content`, and for an
assistant `reasoning_content` and `tool_calls`, for a tool `tool_call_id`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tiefsee.errors import ConfigError, RequestError
from tiefsee.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered conversation.

    `special_ranges` are the (start, end) of `text` that are control tokens; None means that the format
    (a Jinja template) cannot tell them from what a user typed, so they are recognised everywhere.
    `starts_in_reasoning`: the prompt has opened `<think>`, so the answer begins inside it.
    """

    text: str
    special_ranges: tuple[tuple[int, int], ...] | None
    starts_in_reasoning: bool

    def token_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt's token ids; BOS is part of the text already."""
        if self.special_ranges is None:
            return tokenizer.encode(self.text, add_bos=False)
        return tokenizer.encode_ranges(self.text, self.special_ranges)


class ChatFormat(Protocol):
    """How one checkpoint wants a conversation written."""

    name: str

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        effort: str | None = None,
    ) -> ChatPrompt:
        """The prompt that ends where the assistant's next answer begins.

        `thinking` None leaves the choice to the checkpoint. Raises ConfigError for a switch that this
        format lacks, RequestError for messages that it cannot write.
        """
        ...


def check_messages(messages: Sequence[Message]) -> None:
    """Raises RequestError unless every message has a known role and text, and the assistant is next."""
    if not messages:
        raise RequestError("found no messages; a conversation needs at least one; begin with a user message")
    for n, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise RequestError(f"messages[{n}] has role {role!r}; needed is one of {', '.join(ROLES)}")
        for call in message.get("tool_calls") or ():
            _check_function(call, f"messages[{n}].tool_calls", "arguments")
        if role == "assistant" and content is None:
            continue  # an answer that only calls tools
        if not isinstance(content, str):
            raise RequestError(
                f"messages[{n}] has content of type {type(content).__name__}; needed is text; "
                "join the text parts, and leave images out"
            )
    if messages[-1]["role"] == "assistant":
        raise RequestError("the last message is the assistant's; needed is one to answer; end with a user message")


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> None:
    """Raises RequestError unless every tool is {"type": "function", "function": {"name": ..., ...}}."""
    for tool in tools or ():
        _check_function(tool, "tools")


def _check_function(item: Any, place: str, *needed: str) -> None:
    function = item.get("function") if isinstance(item, Mapping) else None
    fields = ("name", *needed)
    if not isinstance(function, Mapping) or not all(field in function for field in fields):
        raise RequestError(f"{place} holds {item!r:.80}; needed is a `function` with {' and '.join(fields)}")


def refuse_effort(effort: str | None, name: str) -> None:
    """Only V4 has levels of effort; elsewhere the option must not vanish silently."""
    if effort is not None:
        raise ConfigError(f"reasoning effort {effort!r} was asked for, but {name} has no such levels; leave it out")
