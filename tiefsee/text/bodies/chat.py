"""Chat Completions (OpenAI, and what DeepSeek and vLLM add) to a `Conversation`.

thinking            {"type": "enabled" | "disabled"} (DeepSeek), reasoning_effort (none: off),
                    chat_template_kwargs.thinking or .enable_thinking (vLLM)
constraints         response_format of type json_object, json_schema, regex (`pattern`), grammar (`grammar`);
                    structured_outputs or guided_json, guided_regex, guided_grammar, guided_choice (vLLM)
an answer's start   a last assistant message with `prefix: true` (DeepSeek), continue_final_message (vLLM)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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

ROLES = ("system", "developer", "user", "assistant", "tool")


def read_chat(body: Body) -> Conversation:
    """The conversation of a Chat Completions body; raises RequestError naming the field at fault."""
    for key in ("functions", "function_call"):
        if body.get(key) is not None:
            raise RequestError(f"found {key}, which the API replaced; send tools and tool_choice")
    messages = [_message(m, f"messages[{n}]") for n, m in enumerate(as_list(body.get("messages"), "messages"))]
    if not messages:
        raise RequestError("messages is empty; needed is at least one")
    _mark_prefix(body, messages)
    tools = tuple(_tool(tool, f"tools[{n}]") for n, tool in enumerate(as_list(body.get("tools") or [], "tools")))
    choice, name = _choice(body.get("tool_choice"))
    check_choice(choice, name, tools)
    thinking, effort = _thinking(body)
    parallel = body.get("parallel_tool_calls")
    return Conversation(
        tuple(messages),
        tools=tools,
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=True if parallel is None else flag(parallel, "parallel_tool_calls"),
        response_format=response_format_of(body),
        thinking=thinking,
        effort=effort,
    )


def _message(message: Any, place: str) -> dict[str, Any]:
    message = as_object(message, place)
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{place}.role is {role!r}; needed is one of {', '.join(ROLES)}")
    made: dict[str, Any] = {"role": role}
    content = message.get("content")
    calls = as_list(message.get("tool_calls") or [], f"{place}.tool_calls")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if role == "assistant" and content is None and (calls or reasoning):
        made["content"] = None if calls else ""
    else:
        kinds = ("text", "refusal") if role == "assistant" else ("text",)
        made["content"] = text_of(content, f"{place}.content", kinds)
    if role == "assistant":
        if isinstance(reasoning, str):
            made["reasoning_content"] = reasoning
        if calls:
            made["tool_calls"] = [_call(call, f"{place}.tool_calls[{n}]") for n, call in enumerate(calls)]
        if message.get("prefix") is not None:
            made["prefix"] = flag(message["prefix"], f"{place}.prefix")
    if role == "tool":
        made["tool_call_id"] = as_text(message.get("tool_call_id"), f"{place}.tool_call_id")
    return made


def _call(call: Any, place: str) -> dict[str, Any]:
    call = as_object(call, place)
    function = as_object(call.get("function"), f"{place}.function")
    return {
        "id": as_text(call.get("id") or "", f"{place}.id"),
        "type": "function",
        "function": {
            "name": as_text(function.get("name"), f"{place}.function.name"),
            "arguments": arguments_of(function.get("arguments") or "", f"{place}.function.arguments"),
        },
    }


def _mark_prefix(body: Body, messages: list[dict[str, Any]]) -> None:
    """Only the last message may be a prefix, and only an assistant's."""
    if body.get("continue_final_message"):
        if messages[-1]["role"] != "assistant":
            raise RequestError("continue_final_message is true, but the last message is not the assistant's")
        messages[-1]["prefix"] = True
    for n, message in enumerate(messages):
        if message.pop("prefix", False):
            if n < len(messages) - 1:
                raise RequestError(f"messages[{n}] is a prefix, but not the last message; only that can be continued")
            message["prefix"] = True


def _tool(tool: Any, place: str) -> Tool:
    tool = as_object(tool, place)
    if tool.get("type", "function") != "function":
        raise RequestError(f"{place} is of type {tool.get('type')!r}; this server calls nothing itself; send functions")
    return function_tool(as_object(tool.get("function"), f"{place}.function"), f"{place}.function")


def _choice(choice: Any) -> tuple[ToolChoice, str | None]:
    if choice is None:
        return "auto", None
    if choice in ("auto", "none", "required"):
        return choice, None
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        function = as_object(choice.get("function"), "tool_choice.function")
        return "named", as_text(function.get("name"), "tool_choice.function.name")
    raise RequestError(f"tool_choice is {choice!r:.80}; needed is auto, none, required or one function by name")


def _thinking(body: Body) -> tuple[bool | None, str | None]:
    """The switch that says most wins: an explicit off or on over what an effort implies."""
    switch, _ = thinking_of(body.get("thinking"))
    if switch is None:
        variables = optional_object(body, "chat_template_kwargs")
        value = variables.get("thinking", variables.get("enable_thinking"))
        switch = None if value is None else flag(value, "chat_template_kwargs.thinking")
    implied, effort = effort_of(body.get("reasoning_effort"), "reasoning_effort")
    if switch is None:
        switch = implied
    return switch, None if switch is False else effort


def response_format_of(body: Body) -> ResponseFormat:
    """What form the answer must have, from `response_format` or vLLM's `structured_outputs`."""
    found = [f for f in (_standard(body), _structured(body)) if f.kind != "text"]
    if len(found) > 1:
        raise RequestError("the answer's form is asked for twice; send response_format or structured_outputs")
    return found[0] if found else ResponseFormat()


def _standard(body: Body) -> ResponseFormat:
    wanted = optional_object(body, "response_format")
    kind = wanted.get("type", "text")
    if kind in ("text", "json_object"):
        return ResponseFormat(kind)
    if kind == "json_schema":
        inner = as_object(wanted.get("json_schema"), "response_format.json_schema")
        return schema_format(inner.get("schema"), "response_format.json_schema.schema")
    if kind == "regex":
        pattern = wanted.get("pattern", wanted.get("regex"))
        return ResponseFormat("regex", as_text(pattern, "response_format.pattern"))
    if kind == "grammar":
        return ResponseFormat("grammar", as_text(wanted.get("grammar"), "response_format.grammar"))
    raise RequestError(f"response_format.type is {kind!r}; needed is text, json_object, json_schema, regex or grammar")


def _structured(body: Body) -> ResponseFormat:
    """vLLM's spelling, new and old."""
    wanted = dict(optional_object(body, "structured_outputs"))
    wanted |= {k: body[f"guided_{k}"] for k in ("json", "regex", "choice", "grammar") if body.get(f"guided_{k}")}
    known = ("json", "json_object", "regex", "grammar", "choice", "structural_tag")
    wanted = {key: value for key, value in wanted.items() if key in known and value not in (None, False)}
    if len(wanted) > 1:
        raise RequestError(f"structured_outputs asks for {' and '.join(sorted(wanted))}; needed is one form")
    if "structural_tag" in wanted:
        raise RequestError("structured_outputs.structural_tag is not served; send a grammar")
    if "json" in wanted:
        schema = wanted["json"]
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise RequestError(f"structured_outputs.json is no JSON ({error}); needed is a schema") from error
        return schema_format(schema, "structured_outputs.json")
    if wanted.get("json_object") is True:
        return ResponseFormat("json_object")
    for key in ("regex", "grammar"):
        if key in wanted:
            return ResponseFormat("regex" if key == "regex" else "grammar", as_text(wanted[key], key))
    if "choice" in wanted:
        choices = [as_text(c, "structured_outputs.choice") for c in as_list(wanted["choice"], "choice")]
        return ResponseFormat("regex", "|".join(re.escape(choice) for choice in choices))
    return ResponseFormat()
