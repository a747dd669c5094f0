"""Bodies of Messages, as Anthropic's client and agents write them."""

from __future__ import annotations

import json

import pytest

from tiefsee.errors import RequestError
from tiefsee.text import ResponseFormat, read_messages, render_conversation
from tiefsee.text.encoding_v4 import V4Format

ASK = {"role": "user", "content": "2+2?"}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}


def read(*messages, **body):
    return read_messages({"model": "m", "max_tokens": 9, "messages": list(messages) or [ASK], **body})


def text(t):
    return {"type": "text", "text": t}


def test_blocks():
    conversation = read(
        {"role": "user", "content": [text("a"), text("b")]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "why", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            text("Look:"),
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "é"}},
            {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
        ]},
        {"role": "user", "content": [
            text("Here."),
            {"type": "tool_result", "tool_use_id": "t1", "content": [text("one")], "is_error": True},
            {"type": "tool_result", "tool_use_id": "t2"},
        ]},
        system=[text("Be short."), text("Be kind.")],
    )  # fmt: skip
    calls = [
        {"id": i, "type": "function", "function": {"name": "f", "arguments": a}}
        for i, a in (("t1", '{"a": "é"}'), ("t2", "{}"))
    ]
    assert conversation.messages == (
        {"role": "system", "content": "Be short.\n\nBe kind."},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "Look:", "reasoning_content": "why", "tool_calls": calls},
        {"role": "tool", "content": "one", "tool_call_id": "t1"},
        {"role": "tool", "content": "", "tool_call_id": "t2"},
        {"role": "user", "content": "Here."},
    )


def test_a_last_message_of_the_assistant_is_continued():
    conversation = read(ASK, {"role": "assistant", "content": "It is"})
    assert conversation.continues
    assert render_conversation(V4Format(), conversation).text.endswith("It is")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (None, None, None)),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, (True, None, 2048)),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, (None, "max", None)),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, (False, None, None)),
    ],
)
def test_thinking(body, expected):
    conversation = read(**body)
    assert (conversation.thinking, conversation.effort, conversation.thinking_budget) == expected


def test_tools_and_their_choice():
    conversation = read(tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert conversation.tools == ({"type": "function", "function": function},)
    assert (conversation.tool_choice, conversation.parallel_tool_calls) == ("required", False)
    named = read(tools=[TOOL], tool_choice={"type": "tool", "name": "f"})
    assert (named.tool_choice, named.tool_name, named.parallel_tool_calls) == ("named", "f", True)


def test_output_format():
    schema = {"type": "json_schema", "schema": {"type": "null"}}
    for body in ({"output_config": {"format": schema}}, {"output_format": schema}):
        assert read(**body).response_format == ResponseFormat("json_schema", json.dumps(schema["schema"]))


@pytest.mark.parametrize(
    ("messages", "body", "words"),
    [
        ([{"role": "tool", "content": "x"}], {}, "role is 'tool'"),
        ([{"role": "user", "content": [{"type": "image", "source": {"url": "http://x"}}]}], {}, "nothing is fetched"),
        ([{"role": "user", "content": [{"type": "document"}]}], {}, "'document'"),
        ([{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}], {}, "tool_use_id is missing"),
        ([{"role": "user", "content": 5}], {}, "content is of type int"),
        ([ASK, {"role": "assistant", "content": [{"type": "server_tool_use"}]}], {}, "'server_tool_use'"),
        ([ASK], {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "no tools of its own"),
        ([ASK], {"tools": [{"name": ""}]}, "name is empty"),
        ([ASK], {"tool_choice": {"type": "any"}}, "there are no tools"),
        ([ASK], {"tool_choice": {"type": "maybe"}}, "auto, any, none, tool"),
        ([ASK], {"thinking": {"type": "enabled", "budget_tokens": 0}}, "budget_tokens is 0"),
        ([ASK], {"output_format": {"type": "xml"}}, "json_schema"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(messages, body, words):
    with pytest.raises(RequestError, match=words):
        read(*messages, **body)


def test_no_messages():
    with pytest.raises(RequestError, match="messages is empty"):
        read_messages({"messages": []})
