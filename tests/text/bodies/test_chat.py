"""Bodies of Chat Completions, as OpenAI's, DeepSeek's and vLLM's clients write them."""

from __future__ import annotations

import pytest

from tests.text.answers import WEATHER
from tiefsee.errors import RequestError
from tiefsee.text import ResponseFormat, read_chat

ASK = {"role": "user", "content": "2+2?"}
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Bonn", "days": 1}'}}


def read(**body):
    return read_chat({"model": "m", "messages": [ASK], **body})


def test_messages_of_every_role():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    talk = [
        {"role": "developer", "content": "Be kind.", "name": "d"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "content": parts, "tool_call_id": "c"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "reasoning": "why"},
        ASK,
    ]
    assert read(messages=talk).messages == (
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "a\n\nb", "tool_call_id": "c"},
        {"role": "assistant", "content": "No.", "reasoning_content": "why"},
        ASK,
    )


def test_defaults_and_unknown_fields():
    conversation = read(no_stop_trim=True, separate_reasoning=False, metadata={}, tools=None, tool_choice=None)
    assert (conversation.tools, conversation.tool_choice, conversation.may_call) == ((), "auto", False)
    assert (conversation.thinking, conversation.effort, conversation.continues) == (None, None, False)
    assert conversation.response_format == ResponseFormat()


@pytest.mark.parametrize(
    ("body", "thinking", "effort"),
    [
        ({"thinking": {"type": "disabled"}}, False, None),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "medium"}, True, "high"),
        ({"reasoning_effort": "none"}, False, None),
        ({"reasoning_effort": "minimal"}, None, "low"),
        ({"reasoning_effort": "xhigh"}, None, "max"),
        ({"chat_template_kwargs": {"thinking": True}}, True, None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False, None),
    ],
)
def test_thinking(body, thinking, effort):
    assert (read(**body).thinking, read(**body).effort) == (thinking, effort)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"response_format": {"type": "text"}}, ResponseFormat()),
        ({"response_format": {"type": "json_object"}}, ResponseFormat("json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}},
            ResponseFormat("json_schema", '{"type": "null"}'),
        ),
        ({"response_format": {"type": "regex", "pattern": "a+"}}, ResponseFormat("regex", "a+")),
        ({"response_format": {"type": "grammar", "grammar": "start: /a/"}}, ResponseFormat("grammar", "start: /a/")),
        ({"guided_regex": "a+", "guided_json": None}, ResponseFormat("regex", "a+")),
        ({"guided_json": '{"type": "null"}'}, ResponseFormat("json_schema", '{"type": "null"}')),
        ({"structured_outputs": {"choice": ["yes", "n.o"]}}, ResponseFormat("regex", "yes|n\\.o")),
    ],
)
def test_response_formats(body, wanted):
    assert read(**body).response_format == wanted


def test_tools_and_their_choice():
    assert read(tools=[WEATHER]).tools == (WEATHER,)
    assert read(tools=[WEATHER], tool_choice="none").may_call is False
    named = read(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}})
    assert (named.tool_choice, named.tool_name) == ("named", "weather")
    assert read(tools=[WEATHER], parallel_tool_calls=False).parallel_tool_calls is False


def test_a_prefix_is_the_last_message():
    begun = {"role": "assistant", "content": "It"}
    assert read(messages=[ASK, {**begun, "prefix": True}]).continues
    assert read(messages=[ASK, begun], continue_final_message=True).continues
    assert not read(messages=[ASK, {**begun, "prefix": False}]).continues
    with pytest.raises(RequestError, match=r"messages\[1\] is a prefix"):
        read(messages=[ASK, {**begun, "prefix": True}, ASK])


def calling(arguments: str) -> dict:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": None}, "messages is missing"),
        ({"messages": [3]}, r"messages\[0\] is of type int"),
        ({"messages": [{"role": "boss", "content": ""}]}, r"messages\[0\].role is 'boss'"),
        ({"messages": [{"role": "user"}]}, r"content is missing"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "type 'image_url'.*nothing is fetched"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"content\[0\].text is missing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id is missing"),
        ({"messages": [ASK, calling("{")]}, "no JSON"),
        ({"messages": [ASK, calling("[]")]}, "list; needed"),
        ({"functions": []}, "send tools"),
        ({"tools": [{"type": "web_search"}]}, "calls nothing itself"),
        ({"tools": [{"type": "function", "function": {}}]}, "name is missing"),
        ({"tools": [WEATHER, WEATHER]}, "different names"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "names 'x'"),
        ({"tool_choice": "any"}, "tool_choice is 'any'"),
        ({"reasoning_effort": "huge"}, "none or one of minimal"),
        ({"thinking": {"type": "on"}}, "enabled, disabled"),
        ({"parallel_tool_calls": 1}, "true or false"),
        ({"response_format": {"type": "xml"}}, "type is 'xml'"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "schema is missing"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "asked for twice"),
        ({"guided_json": "{"}, "no JSON"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "asks for choice and regex"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structural_tag is not served"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(body, words):
    with pytest.raises(RequestError, match=words):
        read(**body)
