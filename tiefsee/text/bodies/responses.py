"""Responses (OpenAI) to a `Conversation`.

`instructions` come first, as a system message. Items of one turn of the assistant (reasoning, message, function
calls) become one message. Reasoning is taken from `content`, else from `summary`; encrypted reasoning is
nobody's here and is left out. Nothing is stored: `previous_response_id` needs the caller to pass the messages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tiefsee.errors import RequestError
from tiefsee.text.bodies.fields import (
    Body,
    arguments_of,
    as_list,
    as_object,
    as_text,
    check_choice,
    effort_of,
    flag,
    function_tool,
    optional_object,
    schema_format,
    text_of,
    thinking_of,
)  # fmt: skip
from tiefsee.text.conversation import Conversation, Message, ResponseFormat, Tool, ToolChoice

INPUT_TEXT = ("input_text", "text", "output_text")
OUTPUT_TEXT = ("output_text", "text", "input_text", "refusal")
# DeepSeek's package drops these too: agents declare them always, and do without.
IGNORED_TOOLS = frozenset({"web_search", "web_search_preview"})


def read_responses(
    body: Body, previous: Sequence[Message] | None = None, *, ignored_tools: Collection[str] = IGNORED_TOOLS
) -> Conversation:
    """The conversation of a Responses body.

    `previous` are the messages of the response that `previous_response_id` names, with its answer and without
    its instructions. Without them such a request is refused.
    """
    for key in ("previous_response_id", "conversation"):
        if body.get(key) is not None and previous is None:
            raise RequestError(
                f"{key} is {body[key]!r:.60}, but this server keeps no responses; send the whole input instead"
            )
    if body.get("background"):
        raise RequestError("background is true, but this server keeps no responses; leave it out and stream")
    messages: list[dict[str, Any]] = []
    if body.get("instructions") is not None:
        messages.append({"role": "system", "content": as_text(body["instructions"], "instructions")})
    messages += [dict(message) for message in previous or ()]
    messages += read_input(body.get("input"))
    if not messages or messages[-1]["role"] == "system":
        raise RequestError("input is empty; needed is text or a list of items")
    tools = tuple(
        made for n, tool in enumerate(as_list(body.get("tools") or [], "tools"))
        if (made := _tool(tool, f"tools[{n}]", ignored_tools)) is not None
    )  # fmt: skip
    choice, name = _choice(body.get("tool_choice"))
    check_choice(choice, name, tools)
    thinking, budget = thinking_of(body.get("thinking"))
    implied, effort = effort_of(optional_object(body, "reasoning").get("effort"), "reasoning.effort")
    thinking = implied if thinking is None else thinking
    parallel = body.get("parallel_tool_calls")
    return Conversation(
        tuple(messages),
        tools=tools,
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=True if parallel is None else flag(parallel, "parallel_tool_calls"),
        response_format=_response_format(optional_object(body, "text")),
        thinking=thinking,
        effort=None if thinking is False else effort,
        thinking_budget=budget,
    )


def read_input(given: Any) -> list[dict[str, Any]]:
    """The messages of `input`: one of the user, or items."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for n, item in enumerate(as_list(given, "input")):
        _add_item(messages, as_object(item, f"input[{n}]"), f"input[{n}]")
    return messages


def _add_item(messages: list[dict[str, Any]], item: Body, place: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise RequestError(f"{place}.role is {role!r}; needed is system, developer, user or assistant")
        text = text_of(item.get("content"), f"{place}.content", OUTPUT_TEXT if role == "assistant" else INPUT_TEXT)
        if role == "assistant":
            turn = _turn(messages)
            turn["content"] = f"{turn['content']}\n\n{text}" if turn["content"] else text
        else:
            messages.append({"role": role, "content": text})
    elif kind == "reasoning":
        turn = _turn(messages)
        turn["reasoning_content"] = turn.get("reasoning_content", "") + _reasoning(item, place)
    elif kind == "function_call":
        turn = _turn(messages)
        function = {
            "name": as_text(item.get("name"), f"{place}.name"),
            "arguments": arguments_of(item.get("arguments") or "", f"{place}.arguments"),
        }
        call = {"id": as_text(item.get("call_id"), f"{place}.call_id"), "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        call_id = as_text(item.get("call_id"), f"{place}.call_id")
        text = text_of(item.get("output"), f"{place}.output", INPUT_TEXT)
        messages.append({"role": "tool", "content": text, "tool_call_id": call_id})
    else:
        raise RequestError(
            f"{place} is an item of type {kind!r}; needed is message, reasoning, function_call or function_call_output"
        )


def _turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that the item belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _reasoning(item: Body, place: str) -> str:
    for key, kind in (("content", "reasoning_text"), ("summary", "summary_text")):
        if item.get(key):
            return text_of(item[key], f"{place}.{key}", (kind,))
    return ""


def _tool(tool: Any, place: str, ignored: Collection[str]) -> Tool | None:
    tool = as_object(tool, place)
    kind = tool.get("type")
    if kind in ignored:
        return None
    if kind != "function":
        raise RequestError(f"{place} is of type {kind!r}; this server calls nothing itself; send functions")
    return function_tool(tool, place)


def _choice(choice: Any) -> tuple[ToolChoice, str | None]:
    if choice is None:
        return "auto", None
    if choice in ("auto", "none", "required"):
        return choice, None
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return "named", as_text(choice.get("name"), "tool_choice.name")
    raise RequestError(f"tool_choice is {choice!r:.80}; needed is auto, none, required or one function by name")


def _response_format(text: Body) -> ResponseFormat:
    wanted = optional_object(text, "format", "text.format")
    kind = wanted.get("type", "text")
    if kind in ("text", "json_object"):
        return ResponseFormat(kind)
    if kind == "json_schema":
        return schema_format(wanted.get("schema"), "text.format.schema")
    if kind in ("regex", "grammar"):
        key = "pattern" if kind == "regex" else "grammar"
        return ResponseFormat(kind, as_text(wanted.get(key), f"text.format.{key}"))
    raise RequestError(f"text.format.type is {kind!r}; needed is text, json_object, json_schema, regex or grammar")
