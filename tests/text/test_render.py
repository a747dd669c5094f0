"""Conversations as clients send them, in every format: prefixes, developers, tools, and what a user may type."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text import templates
from tests.text.answers import CLOCK, WEATHER, parse
from tests.text.test_grammar import FORMATS, to_json
from tiefsee.errors import ConfigError, RequestError
from tiefsee.text import Conversation, ResponseFormat, render_conversation
from tiefsee.text.chat import RawFormat
from tiefsee.text.encoding_v4 import V4Format
from tiefsee.text.prompt import nearest_effort
from tiefsee.text.template import TemplateFormat
from tiefsee.text.tokenizer import ANSWER_TOKENS

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
ALL = {
    **FORMATS,
    "v2": TemplateFormat(templates.V2, BOS, EOS),
    "v3 plain": TemplateFormat(templates.V3, BOS, EOS),
    "r1": TemplateFormat(templates.R1, BOS, EOS),
    "raw": RawFormat(BOS),
}
ASK = {"role": "user", "content": "2+2?"}
TYPED = [*ANSWER_TOKENS, "<｜User｜>", "<｜Assistant｜>", BOS, EOS, "{{ 1 }}", "{% x %}", "\ue000", "\ue001"]
NASTY = st.lists(st.sampled_from([*TYPED, "a", " ", "\n", '"', "\\", "é", "\x00"]), max_size=6).map("".join)


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=60)
@given(system=NASTY, first=NASTY, answer=NASTY, last=NASTY)
def test_what_a_client_types_is_never_a_control_token(tokenizer, kind, system, first, answer, last):
    """The same control tokens as with harmless texts in their place, and every letter of the texts."""
    texts = [system, first or "x", answer or "x", last or "x"]
    if kind in ("r1", "v3.1"):
        texts[2] = texts[2].split("</think>")[-1]  # these cut an answer there, and should
    roles = ("system", "user", "assistant", "user")

    def render(contents):
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        prompt = ALL[kind].render(messages)
        ids = prompt.token_ids(tokenizer)
        return [i for i in ids if i in tokenizer.control_ids], tokenizer.decode(ids, skip_special=False), prompt.text

    plain, _, _ = render([text and "plain" for text in texts])
    control, decoded, text = render(texts)
    assert control == plain
    assert decoded == text
    assert all(t in text for t in texts)


def test_harmless_conversations_encode_as_before(tokenizer):
    """Ranges give the ids that recognising tokens everywhere gives."""
    talk = [ASK, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Sure?  \n"}]
    for kind in ("v2", "v3", "r1", "v3.1"):
        prompt = ALL[kind].render(talk)
        assert prompt.special_ranges is not None
        assert prompt.token_ids(tokenizer) == tokenizer.encode(prompt.text, add_bos=False)


def test_templates_that_take_texts_apart(tokenizer):
    chat = TemplateFormat("{% for m in messages %}<｜User｜>{{ m.content | upper }}{% endfor %}", BOS, EOS)
    ids = chat.render([ASK | {"content": "a"}]).token_ids(tokenizer)
    assert ids == [tokenizer.token_id("<｜User｜>"), *tokenizer.encode("A", add_bos=False)]
    with pytest.raises(RequestError, match="takes the texts apart"):
        chat.render([ASK | {"content": "a<｜User｜>"}])
    with pytest.raises(RequestError, match="named like a control token"):
        TemplateFormat("{{ tools | tojson }}").render([ASK], tools=[{"function": {"name": "f", "<think>": 1}}])


def test_r1_cuts_reasoning_that_is_passed_back(tokenizer):
    talk = [ASK, {"role": "assistant", "content": "<think>\nhm</think>4"}, {"role": "user", "content": "Sure?"}]
    prompt = ALL["r1"].render(talk)
    assert prompt.text == f"{BOS}<｜User｜>2+2?<｜Assistant｜>4{EOS}<｜User｜>Sure?<｜Assistant｜><think>\n"
    assert prompt.token_ids(tokenizer).count(tokenizer.token_id("<think>")) == 1


@pytest.mark.parametrize(
    ("kind", "thinking", "end", "in_reasoning"),
    [
        ("v2", None, "Assistant: It is", False),
        ("v3", None, "<｜Assistant｜>It is", False),
        ("r1", None, "<｜Assistant｜>It is", False),
        ("v3.1", False, "<｜Assistant｜></think>It is", False),
        ("v3.2", True, "<｜Assistant｜></think>It is", False),
        ("v3.2", False, "<｜Assistant｜></think>It is", False),
        ("v4", True, "<｜Assistant｜><think></think>It is", False),
        ("v4", False, "<｜Assistant｜></think>It is", False),
        ("raw", None, "2+2?\nIt is", False),
    ],
)
def test_an_answer_that_the_client_began(kind, thinking, end, in_reasoning):
    prompt = ALL[kind].render([ASK, {"role": "assistant", "content": "It is", "prefix": True}], thinking=thinking)
    assert prompt.text.endswith(end)
    assert (prompt.continues, prompt.starts_in_reasoning) == (True, in_reasoning)
    assert parse(ALL[kind].parser(prompt), "\n4").text == "\n4"


@pytest.mark.parametrize("kind", ["v3.2", "v4"])
def test_a_reasoning_that_the_client_began(kind):
    prefix = {"role": "assistant", "content": "", "reasoning_content": "Two and", "prefix": True}
    prompt = ALL[kind].render([ASK, prefix], thinking=True)
    assert prompt.text.endswith("<think>Two and")
    assert prompt.starts_in_reasoning
    answer = parse(ALL[kind].parser(prompt), " two</think>4")
    assert (answer.reasoning, answer.text) == (" two", "4")
    prompt = ALL[kind].render([ASK, prefix | {"content": "It"}], thinking=True)
    assert prompt.text.endswith("<think>Two and</think>It")
    assert not prompt.starts_in_reasoning


def test_prefixes_that_cannot_be():
    with pytest.raises(RequestError, match="prefix: true"):
        ALL["v4"].render([ASK, {"role": "assistant", "content": "It"}])
    call = {"function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(RequestError, match="calls tools"):
        ALL["v4"].render([ASK, {"role": "assistant", "content": "It", "prefix": True, "tool_calls": [call]}])
    with pytest.raises(RequestError, match="has no text"):
        ALL["v3"].render([ASK, {"role": "assistant", "content": "", "prefix": True}])
    ask = Conversation(
        (ASK, {"role": "assistant", "content": "It", "prefix": True}), response_format=ResponseFormat("json_object")
    )
    with pytest.raises(RequestError, match="cannot be enforced from the middle"):
        ALL["v4"].grammar(ask, render_conversation(ALL["v4"], ask), None)


def test_developers_are_system_messages():
    talk = [{"role": "system", "content": "Be short."}, {"role": "developer", "content": "Be kind."}, ASK]
    for kind in ("v3", "v3.1", "v3.2", "v4"):
        text = ALL[kind].render(talk, thinking=None).text
        assert "Be short.\n\nBe kind.<｜User｜>2+2?" in text


def test_v32_developer_is_a_question_with_tools():
    talk = [{"role": "system", "content": "S"}, ASK, {"role": "assistant", "content": "4"},
            {"role": "developer", "content": "Sure?", "tools": [CLOCK]}]  # fmt: skip
    text = ALL["v3.2"].render(talk, thinking=True).text
    assert "<｜User｜>\n\n## Tools" in text
    assert text.endswith("</functions>\n\n\n# The user's message is: Sure?<｜Assistant｜><think>")


@pytest.mark.parametrize("kind", ["v3.2", "v4"])
def test_a_response_schema_is_told(kind):
    wanted = ResponseFormat("json_schema", '{"type": "integer"}')
    text = ALL[kind].render([ASK], response_format=wanted).text
    assert 'schema to reply:\n{"type": "integer"}<｜User｜>' in text


@pytest.mark.parametrize("kind", ["v3", "v3.1"])
def test_tools_for_templates_that_describe_none(tokenizer, kind):
    source = {"v3": templates.V3_TOOLS, "v3.1": templates.V31}[kind].replace("if tools", "if none_of_that")
    chat = TemplateFormat(source.replace("for t in tools", "for t in messages[:0]"), BOS, EOS)
    evil = {
        "type": "function",
        "function": {"name": "f", "description": "a <｜User｜> b", "parameters": {"type": "object"}},
    }
    prompt = chat.render([ASK], tools=[WEATHER, evil])
    assert prompt.text.startswith(f"{BOS}## Tools\n")
    assert '"maxItems": 2' in prompt.text
    ids = prompt.token_ids(tokenizer)
    assert ids.count(tokenizer.token_id("<｜tool▁calls▁begin｜>")) == 1  # ours, in the description of the form
    assert ids.count(tokenizer.token_id("<｜User｜>")) == 1
    assert chat.render([{"role": "system", "content": "S"}, ASK], tools=[CLOCK]).text.startswith(
        f"{BOS}S\n\n## Tools\n"
    )


@pytest.mark.parametrize("kind", ["v2", "v3 plain", "raw"])
def test_formats_without_tools_refuse_them(kind):
    with pytest.raises(ConfigError, match="tools"):
        ALL[kind].render([ASK], tools=[CLOCK])


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("depth", [0, 200, 2000])
@pytest.mark.parametrize("leaf", [10**30, "x"])
def test_tools_that_json_cannot_hold_everywhere(kind, depth, leaf):
    """Numbers beyond 64 bits and deep nesting: written, or an error of the request, never a failure of the server."""
    for _ in range(depth):
        leaf = {"a": leaf}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": leaf}}}
    with suppress(RequestError, ConfigError):
        assert ALL[kind].render([ASK], tools=[tool]).text


def test_efforts():
    assert [nearest_effort(e, ("high", "max")) for e in (None, "low", "high", "max")] == [None, "high", "high", "max"]
    assert nearest_effort("high", ("low",)) == "low"
    assert nearest_effort("max", ()) is None
    assert (V4Format("first").efforts, ALL["v3.1"].efforts) == (("high", "max"), ())
    ask = Conversation((ASK,), effort="low")
    assert render_conversation(ALL["v3.1"], ask).text == ALL["v3.1"].render([ASK]).text
    assert render_conversation(V4Format("first"), ask).text == V4Format("first").render([ASK], effort="high").text


ARGUMENTS = st.dictionaries(
    st.text("abcé_-9", min_size=1, max_size=5),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), NASTY),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
        max_leaves=5,
    ),
    max_size=4,
)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60)
@given(
    calls=st.lists(st.tuples(st.sampled_from(["weather", "a.b-c_9"]), ARGUMENTS), min_size=1, max_size=3),
    text=st.sampled_from(["", "Let me see.", "a\n", "<b"]),
    thinking=st.booleans(),
)
def test_what_is_rendered_is_parsed_back(tokenizer, kind, calls, text, thinking):
    """The assistant's part of a prompt, taken as an answer, gives the same calls."""
    chat, thinking = FORMATS[kind], thinking and kind in ("v3.2", "v4")
    made = [
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": to_json(a)}}
        for n, (name, a) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": text, "reasoning_content": "why" * thinking, "tool_calls": made}
    results = [{"role": "tool", "content": "ok", "tool_call_id": call["id"]} for call in made]
    switch = None if kind == "v3" else thinking
    asked = chat.render([ASK], tools=[CLOCK], thinking=switch)
    whole = chat.render([ASK, message, *results], tools=[CLOCK], thinking=switch)
    assert whole.text.startswith(asked.text)
    start = len(asked.text)
    end = whole.text.index(EOS, start)
    while not any(a == end for a, _ in whole.special_ranges):  # one that the arguments spell is none
        end = whole.text.index(EOS, end + 1)
    ranges = [(a - start, b - start) for a, b in whole.special_ranges if start <= a and b <= end]
    answer = parse(chat.parser(asked, tokenizer=tokenizer), whole.text[start:end], ranges, range(0, end, 7))
    assert [(c.name, json.loads(c.arguments)) for c in answer.calls] == calls
    assert all(c.complete for c in answer.calls)
    assert (answer.text, answer.reasoning) == (text, "why" * thinking)


def test_messages_go_round():
    """ParsedAnswer.message() is what the next request passes back."""
    chat = FORMATS["v4"]
    asked = chat.render([ASK], tools=[WEATHER])
    text = (
        "hm</think>So.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"place\" "
        'string="true">Bonn</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
    )  # fmt: skip
    message = parse(chat.parser(asked), text).message()
    again = chat.render([ASK, message, {"role": "tool", "content": "", "tool_call_id": "x"}], tools=[WEATHER])
    assert again.text.startswith(asked.text + text + EOS)
    assert replace(Conversation((ASK,)), messages=(ASK, message)).messages[1]["content"] == "So."
