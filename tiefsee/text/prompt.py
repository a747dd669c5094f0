"""What goes into a chat format and what comes out: messages in, one prompt out.

Messages are plain dictionaries in the spelling of the OpenAI API: `role`, `content`, and for an
assistant `reasoning_content` and `tool_calls`, for a tool `tool_call_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tiefsee.errors import ConfigError, RequestError
from tiefsee.text.answer import AnswerParser, new_call_id
from tiefsee.text.control import CLOSE, OPEN
from tiefsee.text.conversation import Conversation, Message, ResponseFormat
from tiefsee.text.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "high", "max")  # V4's levels of reasoning, from least to most


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered conversation.

    `special_ranges` are the (start, end) of `text` that are control tokens; what a user typed never is.
    None means that nobody knows, and they are recognised everywhere.
    `starts_in_reasoning`: the prompt has opened `<think>`, so the answer begins inside it.
    `continues`: the prompt ends inside the assistant's message, and the answer goes on with it.
    """

    text: str
    special_ranges: tuple[tuple[int, int], ...] | None
    starts_in_reasoning: bool
    continues: bool = False

    def token_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt's token ids; BOS is part of the text already."""
        if self.special_ranges is None:
            return tokenizer.encode(self.text, add_bos=False)
        return tokenizer.encode_ranges(self.text, self.special_ranges)


class ChatFormat(Protocol):
    """How one checkpoint wants a conversation written."""

    name: str

    @property
    def efforts(self) -> tuple[str, ...]:
        """The levels of reasoning that it can write, from least to most; usually none."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        effort: str | None = None,
        response_format: ResponseFormat | None = None,
    ) -> ChatPrompt:
        """The prompt that ends where the assistant's next answer begins.

        `thinking` None leaves the choice to the checkpoint. `response_format` is told to the model where the
        format has words for it (V3.2, V4); enforcing it is the grammar's part. A last message of the assistant
        with `"prefix": True` is left open. Raises ConfigError for a switch that this format lacks, RequestError
        for messages that it cannot write.
        """
        ...

    def parser(
        self,
        prompt: ChatPrompt,
        *,
        tokenizer: Tokenizer | None = None,
        calls: bool = True,
        make_id: Callable[[], str] = new_call_id,
    ) -> AnswerParser:
        """A parser for the answer to `prompt`.

        `calls` False takes tool calls as text (`Conversation.may_call`). With a `tokenizer`, the tokens
        that its vocabulary has are recognised only where `special_ranges` say so.
        """
        ...

    def grammar(self, conversation: Conversation, prompt: ChatPrompt, tokenizer: Tokenizer) -> str | None:
        """Lark source in llguidance's dialect for the answer to `prompt`; None if it is free.

        It names control tokens by id, so llguidance's tokenizer must know every id of
        `tokenizer.control_ids` as special. Raises RequestError for a schema that cannot be enforced.
        """
        ...


def render_conversation(chat: ChatFormat, conversation: Conversation) -> ChatPrompt:
    """The prompt of a client's conversation.

    Clients of the OpenAI API send an effort unasked, so it is rounded to a level that the format has: the same,
    else the next above, else the highest; where there are no levels it says nothing.
    """
    return chat.render(
        conversation.messages,
        thinking=conversation.thinking,
        tools=conversation.tools or None,
        effort=nearest_effort(conversation.effort, chat.efforts),
        response_format=conversation.response_format,
    )


def nearest_effort(effort: str | None, levels: Sequence[str]) -> str | None:
    """nearest_effort("low", ("high", "max")) is "high"."""
    if effort is None or not levels:
        return None
    above = EFFORTS[EFFORTS.index(effort) :]
    return next((level for level in above if level in levels), levels[-1])


def opens_reasoning(text: str, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether a prompt ends inside `<think>`: the last control token that has a say."""
    for start, end in reversed(ranges):
        token = text[start:end]
        if token in (OPEN, CLOSE, "<｜Assistant｜>", "<｜User｜>"):
            return token == OPEN
    return False


def developer_as_system(messages: Sequence[Message]) -> list[Message]:
    """Most formats have no role of developer; OpenAI's clients mean system by it."""
    return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]


def check_messages(messages: Sequence[Message]) -> None:
    """Raises RequestError unless every message has a known role and text, and the assistant is next.

    The assistant is next also after a message of its own that is a prefix.
    """
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
    last = messages[-1]
    if last["role"] == "assistant" and not last.get("prefix"):
        raise RequestError(
            "the last message is the assistant's; needed is one to answer; end with a user message, or mark it "
            "with prefix: true to have it continued"
        )
    if last["role"] == "assistant" and last.get("tool_calls"):
        raise RequestError("the last message calls tools; needed are their results; send them as tool messages")


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
