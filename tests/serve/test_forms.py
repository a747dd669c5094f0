"""Constrained answers through the door: response_format and tools, streamed and whole, in three protocols."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest

from tests.engine.schemas import schema_and_value
from tiefsee import Sampling
from tiefsee.engine import Constraint
from tiefsee.serve.choice import Choice, Usage
from tiefsee.text.answer import join
from tiefsee.text.bodies import read_chat
from tiefsee.text.encoding_v4 import V4Format

MODEL = "tiefsee-demo"
HELLO = [{"role": "user", "content": "Say something."}]
QUIET = {"thinking": {"type": "disabled"}}


def ask(client, **options):
    return client.chat.completions.create(
        model=MODEL, messages=HELLO, **{"max_tokens": 500, "temperature": 1.5, **options}
    )


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


@pytest.mark.parametrize("thinking", [False, True])
def test_a_schema(client, thinking):
    schemas = [schema_and_value(seed)[0] for seed in range(12)]
    extra = {} if thinking else QUIET
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(
            lambda case: ask(client, response_format=schema_format(case[1]), seed=case[0], extra_body=extra),
            enumerate(schemas),
        ))  # fmt: skip
    ended = 0
    for schema, answer in zip(schemas, answers, strict=True):
        if answer.choices[0].finish_reason == "stop":
            ended += 1
            jsonschema.validate(json.loads(answer.choices[0].message.content), schema)
    assert ended >= (11 if not thinking else 0)  # this model does not know how to stop thinking


def test_json_mode_regex_choice_and_completions(client):
    made = ask(client, response_format={"type": "json_object"}, extra_body=QUIET, seed=2, max_tokens=1500)
    if made.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(made.choices[0].message.content), dict)
    digits = ask(client, extra_body={**QUIET, "structured_outputs": {"regex": "[0-9]{7}"}})
    assert digits.choices[0].message.content.isdigit()
    choice = ask(client, extra_body={**QUIET, "structured_outputs": {"choice": ["left", "right"]}})
    assert choice.choices[0].message.content in ("left", "right")
    text = client.completions.create(
        model=MODEL, prompt="The", max_tokens=50, extra_body={"structured_outputs": {"regex": "[a-c]{5}"}}
    )
    assert set(text.choices[0].text) <= set("abc")
    assert text.choices[0].finish_reason == "stop"


def tool(name, seed):
    return {"type": "function", "function": {"name": name, "parameters": schema_and_value(seed)[0]}}


TOOLS = [tool("weather", 1), tool("search", 2), tool("note", 3)]


def check_calls(calls):
    by_name = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), by_name[name])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "search"}}])
def test_tools_that_must_be_called(client, choice):
    ended = 0
    for seed in range(8):
        answer = ask(client, tools=TOOLS, tool_choice=choice, seed=seed, extra_body=QUIET, parallel_tool_calls=False)
        (found,) = answer.choices
        if found.finish_reason == "length":
            continue
        ended += 1
        assert found.finish_reason == "tool_calls"
        (call,) = found.message.tool_calls
        check_calls([(call.function.name, call.function.arguments)])
        assert choice == "required" or call.function.name == "search"
    assert ended >= 7


def test_a_streamed_call_is_the_whole_one(client):
    options = {"tools": TOOLS, "tool_choice": "required", "seed": 4, "extra_body": QUIET, "parallel_tool_calls": False}
    whole = ask(client, **options).choices[0]
    name, arguments, ending = "", "", None
    for chunk in ask(client, **options, stream=True):
        for choice in chunk.choices:
            ending = choice.finish_reason or ending
            for call in choice.delta.tool_calls or ():
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    (call,) = whole.message.tool_calls
    assert (name, arguments, ending) == (call.function.name, call.function.arguments, whole.finish_reason)


def test_no_call_when_none_is_wanted(client):
    for seed in range(4):
        answer = ask(client, tools=TOOLS, tool_choice="none", seed=seed, extra_body=QUIET, max_tokens=60)
        assert answer.choices[0].message.tool_calls is None


def test_the_other_protocols_call_too(client, claude):
    parameters = TOOLS[0]["function"]["parameters"]
    found = client.responses.create(
        model=MODEL, input="Say something.", max_output_tokens=500, tool_choice="required",
        reasoning={"effort": "none"},
        tools=[{"type": "function", "name": "weather", "parameters": parameters, "strict": True}],
        parallel_tool_calls=False, extra_body={"seed": 1},
    )  # fmt: skip
    if found.status == "completed":
        (call,) = [item for item in found.output if item.type == "function_call"]
        jsonschema.validate(json.loads(call.arguments), parameters)
    message = claude.messages.create(
        model=MODEL, messages=HELLO, max_tokens=500, thinking={"type": "disabled"},
        tools=[{"name": "weather", "input_schema": parameters}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )  # fmt: skip
    if message.stop_reason == "tool_use":
        (block,) = [b for b in message.content if b.type == "tool_use"]
        jsonschema.validate(block.input, parameters)


def test_a_schema_that_cannot_be_enforced(client):
    import openai

    with pytest.raises(openai.BadRequestError):
        ask(client, response_format=schema_format({"type": "strin"}), extra_body=QUIET)
    assert ask(client, max_tokens=2).usage.completion_tokens == 2


def test_arguments_of_200_tools_are_valid(llm):
    """A hot sampler, a tool of a random schema each: what ends is a call that fits, and at least 95 % end.

    The prompt is short (it does not matter for the form), so the engine is asked directly; the answers go through
    the parser that the door uses.
    """
    form = V4Format()
    tokenizer = llm.core.tokenizer
    choices, asked = [], []
    for seed in range(200):
        body = {"messages": HELLO, "tools": [tool("note", seed)], "tool_choice": "required", **QUIET}
        conversation = read_chat({**body, "parallel_tool_calls": False})
        prompt = form.render(conversation.messages, thinking=False, tools=conversation.tools, effort=None)
        constraint = Constraint("grammar", form.grammar(conversation, prompt, tokenizer))
        asked.append(Sampling(temperature=1.5, max_tokens=500, seed=seed, constraint=constraint))
        choices.append((Choice(0, Usage(0), form.parser(prompt, tokenizer=tokenizer)), []))
    for (choice, pieces), sampling in zip(choices, asked, strict=True):

        def note(_, delta, choice=choice, pieces=pieces):
            pieces += choice.feed(delta)

        llm.core.add(tokenizer.encode("Note this:"), sampling, note)
    while llm.core.has_work():
        llm.core.step()
    ended = [(seed, pieces) for seed, (choice, pieces) in enumerate(choices) if choice.ending == "tool_calls"]
    assert {choice.ending for choice, _ in choices} <= {"tool_calls", "length"}
    for seed, pieces in ended:
        (call,) = join(pieces).calls
        jsonschema.validate(json.loads(call.arguments), schema_and_value(seed)[0])
    print(f"{len(ended)} of 200 calls ended, all valid")
    assert len(ended) >= 190
