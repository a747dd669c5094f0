"""Messages (Anthropic) to a `Conversation`.

`tool_result` blocks become messages of the tool, ahead of the text beside them, as the protocol orders them.
A last message of the assistant is continued by the answer: clients start an answer that way. Thinking that
the client got from elsewhere in encrypted form (`redacted_thinking`) cannot be read and is left out.
"""

from __future__ import annotations

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
from tiefsee.text.conversation import Conversation, ResponseFormat, Tool, ToolChoice

CHOICES: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}


def read_messages(body: Body) -> Conversation:
    """The conversation of a Messages body; raises RequestError naming the field at fault."""
    messages: list[dict[str, Any]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": text_of(body["system"], "system")})
    given = as_list(body.get("messages"), "messages")
    if not given:
        raise RequestError("messages is empty; needed is at least one")
    for n, message in enumerate(given):
        place = f"messages[{n}]"
        message = as_object(message, place)
        role = message.get("role")
        if role == "user":
            messages += _user(message.get("content"), f"{place}.content")
        elif role == "assistant":
            messages.append(_assistant(message.get("content"), f"{place}.content"))
        elif role == "system":
            messages.append({"role": role, "content": text_of(message.get("content"), f"{place}.content")})
        else:
            raise RequestError(f"{place}.role is {role!r}; needed is user or assistant")
    if messages[-1]["role"] == "assistant":
        messages[-1]["prefix"] = True
    tools = tuple(_tool(tool, f"tools[{n}]") for n, tool in enumerate(as_list(body.get("tools") or [], "tools")))
    choice = optional_object(body, "tool_choice")
    kind, name = _choice(choice)
    check_choice(kind, name, tools)
    thinking, budget = thinking_of(body.get("thinking"))
    output = optional_object(body, "output_config")
    implied, effort = effort_of(output.get("effort"), "output_config.effort")
    thinking = implied if thinking is None else thinking
    single = choice.get("disable_parallel_tool_use", False)
    return Conversation(
        tuple(messages),
        tools=tools,
        tool_choice=kind,
        tool_name=name,
        parallel_tool_calls=not flag(single, "tool_choice.disable_parallel_tool_use"),
        response_format=_response_format(output.get("format") or body.get("output_format")),
        thinking=thinking,
        effort=None if thinking is False else effort,
        thinking_budget=budget,
    )


def _user(content: Any, place: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[dict[str, Any]] = []
    texts: list[Any] = []
    for n, block in enumerate(as_list(content, place)):
        block = as_object(block, f"{place}[{n}]")
        if block.get("type") == "tool_result":
            inner = block.get("content")
            results.append({
                "role": "tool",
                "content": "" if inner is None else text_of(inner, f"{place}[{n}].content"),
                "tool_call_id": as_text(block.get("tool_use_id"), f"{place}[{n}].tool_use_id"),
            })  # fmt: skip
        else:
            texts.append(block)
    if texts or not results:
        results.append({"role": "user", "content": text_of(texts, place)})
    return results


def _assistant(content: Any, place: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant", "content": content if isinstance(content, str) else None}
    if isinstance(content, str):
        return made
    texts, thoughts, calls = [], [], []
    for n, block in enumerate(as_list(content, place)):
        where = f"{place}[{n}]"
        block = as_object(block, where)
        kind = block.get("type")
        if kind == "text":
            texts.append(as_text(block.get("text"), f"{where}.text"))
        elif kind == "thinking":
            thoughts.append(as_text(block.get("thinking"), f"{where}.thinking"))
        elif kind == "tool_use":
            function = {
                "name": as_text(block.get("name"), f"{where}.name"),
                "arguments": arguments_of(block.get("input") or {}, f"{where}.input"),
            }
            calls.append({"id": as_text(block.get("id"), f"{where}.id"), "type": "function", "function": function})
        elif kind != "redacted_thinking":
            raise RequestError(f"{where} is a block of type {kind!r}; needed is text, thinking or tool_use")
    if texts or not calls:
        made["content"] = "\n\n".join(texts)
    if thoughts:
        made["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return made


def _tool(tool: Any, place: str) -> Tool:
    tool = as_object(tool, place)
    if tool.get("type", "custom") not in ("custom", None):
        raise RequestError(
            f"{place} is of type {tool['type']!r}; this server runs no tools of its own; send tools with input_schema"
        )
    return function_tool(tool, place, "input_schema")


def _choice(choice: Body) -> tuple[ToolChoice, str | None]:
    kind = choice.get("type", "auto")
    if kind not in CHOICES:
        raise RequestError(f"tool_choice.type is {kind!r}; needed is one of {', '.join(CHOICES)}")
    return CHOICES[kind], as_text(choice.get("name"), "tool_choice.name") if kind == "tool" else None


def _response_format(wanted: Any) -> ResponseFormat:
    if wanted is None:
        return ResponseFormat()
    wanted = as_object(wanted, "output_config.format")
    if wanted.get("type") != "json_schema":
        raise RequestError(f"output_config.format.type is {wanted.get('type')!r}; needed is json_schema")
    return schema_format(wanted.get("schema"), "output_config.format.schema")
