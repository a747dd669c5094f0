"""Bodies of Responses, with items of every kind that a client passes back."""

from __future__ import annotations

import pytest

from tiefsee.errors import RequestError
from tiefsee.text import ResponseFormat, read_responses

TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}


def input_text(text):
    return {"type": "input_text", "text": text}


def read(given="hi", **body):
    return read_responses({"model": "m", "input": given, **body})


def test_text_and_instructions():
    assert read(instructions="Be short.", store=False).messages == (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "hi"},
    )


def test_items_of_a_turn_become_one_message():
    items = [
        {"role": "developer", "content": [input_text("Be kind.")]},
        {"type": "message", "role": "user", "content": [input_text("a"), input_text("b")]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "why"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Look:"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}', "status": "completed"},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [input_text("two")]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}], "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "content": "Done."},
        {"role": "user", "content": "Go on."},
    ]  # fmt: skip
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    other = {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert read(items).messages == (
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "Look:", "reasoning_content": "why", "tool_calls": [call, other]},
        {"role": "tool", "content": "one", "tool_call_id": "c1"},
        {"role": "tool", "content": "two", "tool_call_id": "c2"},
        {"role": "assistant", "content": "Done.", "reasoning_content": "short"},
        {"role": "user", "content": "Go on."},
    )


def test_settings():
    conversation = read(
        tools=[TOOL, {"type": "web_search"}],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "null"}}, "verbosity": "low"},
    )
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    assert conversation.tools == ({"type": "function", "function": function},)
    assert (conversation.tool_choice, conversation.tool_name) == ("named", "f")
    assert not conversation.parallel_tool_calls
    assert (conversation.thinking, conversation.effort) == (None, "high")
    assert conversation.response_format == ResponseFormat("json_schema", '{"type": "null"}')
    assert read(reasoning={"effort": "none"}).thinking is False


def test_previous_messages_are_the_callers_to_keep():
    with pytest.raises(RequestError, match="keeps no responses"):
        read(previous_response_id="resp_1")
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    body = {"input": "c", "previous_response_id": "resp_1", "instructions": "s"}
    assert [m["content"] for m in read_responses(body, before).messages] == ["s", "a", "b", "c"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"given": None}, "input is missing"),
        ({"given": []}, "input is empty"),
        ({"given": [{"type": "item_reference", "id": "x"}]}, "item of type 'item_reference'"),
        ({"given": [{"role": "tool", "content": "x"}]}, "role is 'tool'"),
        ({"given": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "nothing is fetched"),
        ({"given": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "'input_file'"),
        ({"given": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "call_id is missing"),
        ({"tools": [{"type": "file_search"}]}, "calls nothing itself"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice is"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"background": True}, "keeps no responses"),
        ({"conversation": "c"}, "keeps no responses"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(body, words):
    with pytest.raises(RequestError, match=words):
        read(**body)
